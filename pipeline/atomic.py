"""A file that is the old one or the new one, never half of one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.errors import InputError


@contextmanager
def atomic(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and goes when it does not.

    Args:
        path: of the file.
        keep: a file that another process has put there meanwhile stays.
    """
    make_folder(path.parent)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _place(temporary, path, keep)
    finally:
        temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path, keep: bool) -> None:
    if not keep:
        temporary.replace(path)
        return
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        temporary.replace(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        InputError: a file stands in its place, or nothing can be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left, SQLite's journals included."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
        pid = old.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            old.unlink(missing_ok=True)
