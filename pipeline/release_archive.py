"""A folder as a signed zip: digests of all its files, a signature over them, and equal bytes for equal contents."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.atomic import atomic
from pipeline.digests import file_digest
from pipeline.release_files import SIGNATURE, SUMS

BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The date of every file in an archive, the earliest that zip knows."""

MODE = 0o100644 << 16
"""A plain file that everybody may read."""

UNIX = 3
"""The system that an archive says it was made on, wherever it was."""


def seal(folder: Path, sign: Callable[[bytes], bytes]) -> None:
    """Write `SHA256SUMS`, as `sha256sum -c` reads it, and the signature over its bytes."""
    files = [file for file in files_of(folder) if file not in (SUMS, SIGNATURE)]
    sums = "".join(f"{file_digest(folder / file)}  {file}\n" for file in files).encode()
    (folder / SUMS).write_bytes(sums)
    (folder / SIGNATURE).write_bytes(sign(sums))


def pack(folder: Path, out: Path) -> None:
    """Write a folder with everything in it as a zip whose one top folder it is."""
    with atomic(out) as temporary:
        write_zip({f"{folder.name}/{file}": folder / file for file in files_of(folder)}, temporary)


def write_zip(files: Mapping[str, Path | bytes], path: Path) -> None:
    """A zip of files in the given order, each with the same date and rights: the same files make the same bytes.

    Args:
        files: name in the archive -> where it lies, or what it holds.
        path: of the archive.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, BEGINNING)
            info.external_attr, info.create_system, info.compress_type = MODE, UNIX, zipfile.ZIP_DEFLATED
            archive.writestr(info, content if isinstance(content, bytes) else content.read_bytes())


def files_of(folder: Path) -> list[str]:
    """The files of a folder, relative to it, in the order of their names."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
