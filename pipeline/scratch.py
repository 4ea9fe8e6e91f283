"""Arrays that may be larger than memory: beyond a size they lie in a temporary file that nobody else sees."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from pipeline.errors import InputError

LARGE = 256 * 2**20
"""Bytes from which an array lies in a file: the kernel may write its pages out instead of ending the process."""


def scratch(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros to be written to; from `LARGE` on backed by an unlinked file in `TMPDIR`.

    The file is gone with the array, also after a crash. The pages of such an array are the kernel's to drop, so they do
    not count as the process's own (anonymous) memory.

    Args:
        shape: of the array.
        dtype: of its elements.

    Raises:
        InputError: there is no room for the file. (Room is taken at once: a disk that fills up later ends the process.)
    """
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if size < LARGE:
        return np.zeros(tuple(shape), kind)
    with tempfile.TemporaryFile(prefix="overtile-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            folder = tempfile.gettempdir()
            raise InputError(
                f"a volume needs {size / 1e9:.1f} GB of temporary space, {folder} has "
                f"{shutil.disk_usage(folder).free / 1e9:.1f} GB: set TMPDIR to a folder on a larger disk"
            ) from None
        return np.memmap(file, dtype=kind, mode="r+", shape=tuple(shape))
