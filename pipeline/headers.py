"""The headers of all DICOM images under a folder, however nested, read by all processors; and what else lies there."""

from __future__ import annotations

import difflib
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword

from pipeline.errors import InputError
from pipeline.header_file import (
    NOT_DICOM,
    NOT_LOOKED_FOR,
    SEGMENTATIONS,
    Header,
    Passed,
    Refusal,
    follow_parent,
    read,
    read_batch,
)
from pipeline.progress import Progress, silent

__all__ = [
    "COPY",
    "Header",
    "Refusal",
    "Scan",
    "below",
    "called",
    "holds_dicom",
    "is_segmentation",
    "representation",
    "scan",
]

PARALLEL_FROM = 20000
"""Files from which on further processes pay: one reads about 10,000 a second and takes a second to start."""

BATCH = 250
"""Files that a process reads before it answers: a fraction of a second, and Ctrl-C need not wait longer."""

COPY = "copy of another file"
"""What a file is that is passed over because another one holds the same instance."""

_Result = Header | Refusal | Passed


@dataclass
class Scan:
    """What a folder holds.

    Attributes:
        headers: of images and DICOM SEGs, in the order of their paths, each instance once.
        refused: files that hold an image and cannot be used; their paths are relative to the folder.
        passed: what a file is that is no image -> the files, relative to the folder.
    """

    headers: list[Header] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    passed: dict[str, list[str]] = field(default_factory=dict)


def scan(root: Path, keywords: Sequence[str] = (), progress: Progress = silent) -> Scan:
    """Read the header of every file under a folder; no pixels, and nothing that a file holds makes it fail.

    Of an instance (SOPInstanceUID) that is there twice the first file is taken where pixels and headers agree; where
    they do not, the second is refused.

    Args:
        root: folder of any nesting; symbolic links to folders are not followed.
        keywords: DICOM keywords to read besides `pipeline.header_file.KEYWORDS`.
        progress: told about every file.

    Raises:
        InputError: there is no such folder, or no such keyword.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    for keyword in keywords:
        representation(keyword)
    found = Scan()
    paths = list(_files(str(root), found.refused))
    seen: dict[str, Header] = {}
    for path, result in zip(paths, progress(_read_all(paths, tuple(keywords)), len(paths), "headers"), strict=True):
        _sort_in(found, path, result, seen)
    return Scan(
        found.headers,
        [_named(refusal, below(refusal.file, root)) for refusal in found.refused],
        {kind: [below(file, root) for file in files] for kind, files in found.passed.items()},
    )


def is_segmentation(header: Header) -> bool:
    """Whether it is the header of a DICOM SEG, not of an image."""
    return (header.get("SOPClassUID") or header.get("MediaStorageSOPClassUID")) in SEGMENTATIONS


def _named(refusal: Refusal, file: str) -> Refusal:
    """A refusal whose sentence begins with the file, as one that stands alone."""
    return replace(refusal, file=file, message=f"{file} {refusal.message}")


def holds_dicom(root: Path) -> bool:
    """Whether any file under a folder is DICOM, by its content."""
    return any(read(path) != Passed(NOT_DICOM) for path in _files(str(root), []))


def below(file: str, root: Path) -> str:
    """The path of a scanned file, relative to the folder that was scanned."""
    return file.removeprefix(str(root)).lstrip(os.sep) or "."


def called(path: str) -> str:
    """How a sentence calls a relative path: the scanned folder itself has no name there."""
    return "the folder" if path == "." else path


def representation(keyword: str) -> str:
    """The value representation of an attribute, such as DS or LO.

    Raises:
        InputError: there is no such keyword, or its values are no texts or numbers, or names of persons.
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        alike = difflib.get_close_matches(keyword, (entry[4] for entry in DicomDictionary.values()), 1)
        meant = f"; did you mean {alike[0]}?" if alike else ""
        raise InputError(f"{keyword!r} is no DICOM keyword{meant}")
    vr = dictionary_VR(tag)[:2]
    if vr in ("SQ", "OB", "OW", "UN", "AT", "PN"):
        raise InputError(f"{keyword} is no text or number, or a person's name; name another attribute")
    return vr


def _files(folder: str, refused: list[Refusal]) -> Iterator[str]:
    """Paths of all files under a folder, by name; folders that cannot be opened are refused."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        refused.append(
            Refusal("unreadable folder", folder, f"cannot be opened ({error.strerror}): give the right to read it")
        )
        return
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, refused)
        elif entry.is_file():
            yield entry.path


def _sort_in(found: Scan, path: str, result: _Result, seen: dict[str, Header]) -> None:
    """Put what was read of a file where it belongs; `seen` holds the headers by instance."""
    if isinstance(result, Passed):
        found.passed.setdefault(result.kind, []).append(path)
    elif isinstance(result, Refusal):
        found.refused.append(result)
    else:
        first = seen.setdefault(result.values["SOPInstanceUID"], result)
        if first is result:
            found.headers.append(result)
        elif _same(first, result):
            found.passed.setdefault(COPY, []).append(path)
        else:
            said = f"has the SOPInstanceUID of {Path(first.filename).name} and other content: remove one of the two"
            found.refused.append(Refusal("two files of one instance", path, said, result.values["SeriesInstanceUID"]))


def _same(one: Header, two: Header) -> bool:
    """Whether two files hold the same headers, as far as they were read, and the same bytes of pixels."""
    return one.values == two.values and _pixel_digest(one) == _pixel_digest(two)


def _pixel_digest(header: Header) -> bytes:
    with Path(header.filename).open("rb") as file:
        file.seek(max(header.pixels_at, 0) if header.pixels_at != NOT_LOOKED_FOR else 0)
        return hashlib.file_digest(file, "sha256").digest()


def _read_all(paths: list[str], keywords: tuple[str, ...]) -> Iterator[_Result]:
    """What `read` says of every path, in their order; by several processes where that pays."""
    done = 0
    processes = min(len(os.sched_getaffinity(0)), 8)
    if processes > 1 and len(paths) >= PARALLEL_FROM and multiprocessing.parent_process() is None:
        try:
            for result in _in_parallel(paths, keywords, processes):
                yield result
                done += 1
        except BrokenProcessPool:  # a process was killed, for want of memory perhaps: go on alone
            pass
    yield from (read(path, keywords) for path in paths[done:])


def _in_parallel(paths: list[str], keywords: tuple[str, ...], processes: int) -> Iterator[_Result]:
    """By fresh processes: forked ones would have the locks of whatever threads the caller runs."""
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=follow_parent)
    try:
        with _without_main():
            answers = pool.map(partial(read_batch, keywords), batches)
        for results in answers:
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not import the caller's script again, which costs seconds and may do anything."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
