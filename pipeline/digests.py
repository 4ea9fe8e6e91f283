"""Digests of files and of what they decode to: a copy is recognised whatever its format and name."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import orientation
from pipeline.manifest import BLANK
from pipeline.pictures import read_pages
from pipeline.progress import Progress, silent
from pipeline.volumes import is_volume, read_volume


class Decoded(NamedTuple):
    """What decoding a file once tells: its digest, its pages' pixel digests, and the channels of its first page."""

    sha256: str
    pixels: list[str]
    channels: int


def pixel_digest(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and values of a decoded array, channel-first, whatever the file format.

    An image of one value everywhere has none but says so, as `blank 0`: two patients may well share a black slice.
    """
    if array.size and (array == array.flat[0]).all():
        return f"{BLANK} {array.flat[0]:g}"
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decoded(path: Path) -> Decoded:
    """The digests of a picture's pages, or of a volume turned to RAS, so that it is known however it is stored.

    Raises:
        InputError: the file cannot be read.
    """
    if is_volume(path):
        stored, affine = read_volume(path)
        turned, _ = orientation.to_ras(stored if stored.ndim == 4 else stored[None], affine)
        return Decoded(file_digest(path), [pixel_digest(turned)], len(turned))
    pages = [(pixel_digest(page), page.shape[0]) for page in read_pages(path)]
    return Decoded(file_digest(path), [digest for digest, _ in pages], pages[0][1])


def all_decoded(root: Path, paths: list[str], progress: Progress = silent) -> dict[str, Decoded]:
    """Every file, decoded on all processors."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda path: decoded(root / path), paths)
        return dict(zip(paths, progress(results, len(paths), "digests"), strict=True))


def joined(digests: list[str]) -> str:
    """One digest for the channels of a case that lie in files of their own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
