"""A zip of unknown origin into a folder: wholly and harmlessly, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import psutil

from pipeline.atomic import make_folder
from pipeline.errors import InputError

MOST_ENTRIES = 100
"""A release has about 15 files; a zip of a million empty ones would use up a file system."""

MOST_BYTES = 4 * 1024**3
"""Of all files together, unpacked. The weights are in a release twice, so this holds networks of 500 million
parameters; the paper's has 31 million."""

MOST_DIRECTORY_BYTES = 1024**2
"""Of the zip's list of its entries, which is read into memory as a whole; that of a release has about 2,000."""

MOST_EXPANSION = 200
"""Bytes that come out of one byte of an entry. Configs and tables of a release reach 20, deflate at most 1,032."""

EXPANSION_FREE = 1024**2
"""Bytes of an entry that may come out at any expansion: a small file of equal characters is no bomb."""

LONGEST_NAME = 150
"""Characters of an entry's path; Windows takes 260 with those of the folder above it."""

CHUNK = 1024**2
"""Bytes that are in memory at a time."""

END = struct.Struct("<4s4H2LH")
"""The end record of a zip: the last item is the length of its comment."""

END_64 = struct.Struct("<4sQ2H2L4Q")
"""The end record of a large zip, before the locator of LOCATOR_64 bytes and the end record."""

LOCATOR_64 = 20
"""Bytes between the two."""

LOCAL = struct.Struct("<4s5H3L2H")
"""The header before an entry's bytes: the last two items are the lengths of name and extra field."""

DESCRIPTORS = (0, 12, 16, 20, 24)
"""Lengths of what may follow an entry's bytes where bit 3 of its flags is set."""

ENCRYPTED, DESCRIBED = 0x1, 0x8
"""Bits of an entry's flags."""

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?<!\.)")
"""Of a path between two slashes: what every file system takes, and takes for the same name."""

BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OSError,
)
"""What reading a damaged zip ends with."""


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a zip that has one folder at its top.

    Everything that the zip says of itself is checked before a byte is written; how much comes out is counted, since
    what a zip says of that may be a lie.

    Args:
        archive: the zip.
        into: a folder; made if it is missing. A temporary folder in it takes the files until all are there.

    Returns:
        The unpacked folder, `into` / its name. File modes are those of any new file.

    Raises:
        InputError: there is no such zip, it could do harm, is damaged, or the folder is there already.
    """
    if archive.is_dir():
        raise InputError(f"{archive}: is a folder; give the zip that it was unpacked from")
    if not archive.is_file():
        raise InputError(f"{archive}: no such file")
    try:
        _refuse_strange_ends(archive)
        with zipfile.ZipFile(archive) as zipped:
            entries = [_checked(archive, info) for info in zipped.infolist()]
            top = _top(archive, entries)
            _refuse_twins(archive, entries)
            _refuse_hidden_bytes(archive, zipped)
            target = into / top
            if target.exists() or target.is_symlink():
                raise InputError(f"{target}: is there already; remove it, or choose another folder")
            with temporary_folder(into) as temporary:
                _extract(archive, zipped, temporary)
                (temporary / top).rename(target)
    except InputError:
        raise
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is to blame
        raise InputError(f"{archive}: not a readable zip ({error}); get the file again") from None
    return target


@contextmanager
def temporary_folder(into: Path) -> Iterator[Path]:
    """A new folder in `into` that is gone after the block, and so is `into` where it was made for this and is empty.

    What processes that were killed have left there is removed first.
    """
    made = not into.exists()
    make_folder(into)
    for old in into.glob(".unpacking.*.tmp"):
        pid = old.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    temporary = into / f".unpacking.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and not any(into.iterdir()):
            into.rmdir()


def _refuse_strange_ends(archive: Path) -> None:
    """A zip begins with an entry and ends with its end record: then it is no other kind of file at the same time."""
    size = archive.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{archive}: has more than {MOST_BYTES // 1024**3} GiB; no release is that large")
    with archive.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, size - END.size - LOCATOR_64 - END_64.size))
        tail = file.read()
    if start != b"PK\3\4":
        raise InputError(f"{archive}: does not begin as a zip does; get the file again")
    signature, *_, length, _, comment = END.unpack(tail[-END.size :])
    if signature != b"PK\5\6" or comment:
        raise InputError(
            f"{archive}: does not end as a zip does: it was cut off on its way, or has something behind it; get the "
            "file again"
        )
    if len(tail) >= END_64.size and tail.startswith(b"PK\6\6"):
        length = END_64.unpack(tail[: END_64.size])[-2]
    if length > MOST_DIRECTORY_BYTES:
        raise InputError(f"{archive}: lists more than {MOST_ENTRIES} entries; a release has about 15")


def _checked(archive: Path, info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The entry, if its name and kind are harmless."""
    name = info.orig_filename  # `filename` is what Python makes of it
    what = f"{archive}: its entry {name[:LONGEST_NAME]!r}"
    if len(name) > LONGEST_NAME:
        raise InputError(f"{what}... has a name of {len(name)} characters; {LONGEST_NAME} are the most")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise InputError(f"{what} has an absolute path")
    parts = name.removesuffix("/").split("/")
    if ".." in re.split(r"[/\\]", name):
        raise InputError(f"{what} leads out of the folder")
    if not all(PART.fullmatch(part) for part in parts):
        raise InputError(f"{what} has a name that not every file system takes; letters, digits and _ . + - are fine")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        raise InputError(f"{what} is a link or another special file")
    if info.flag_bits & ENCRYPTED:
        raise InputError(f"{what} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{what} is compressed in another way than deflate")
    return info


def _top(archive: Path, entries: list[zipfile.ZipInfo]) -> str:
    """The name of the one folder at the top."""
    if len(entries) > MOST_ENTRIES:
        raise InputError(f"{archive}: lists {len(entries)} entries; {MOST_ENTRIES} are the most")
    tops = {entry.filename.split("/")[0] for entry in entries}
    if len(tops) != 1 or any("/" not in entry.filename for entry in entries):
        raise InputError(f"{archive}: has no single folder at its top; get the file again")
    return tops.pop()


def _refuse_twins(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Two entries for one file: which of them is read depends on who reads it, and on the file system."""
    seen: dict[str, str] = {}
    files = {entry.filename.casefold() for entry in entries if not entry.is_dir()}
    for entry in entries:
        name = entry.filename.removesuffix("/")
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            raise InputError(f"{archive}: has two entries for {other!r}, {name!r} is the second")
        inside = [str(folder) for folder in PurePosixPath(name.casefold()).parents if str(folder) in files]
        if inside:
            raise InputError(f"{archive}: its entry {inside[0]!r} is a file and a folder")


def _refuse_hidden_bytes(archive: Path, zipped: zipfile.ZipFile) -> None:
    """Entries must fill the zip from its start to its list, none of them in another's bytes.

    Overlapping entries make bombs that no expansion of a single entry gives away; bytes of no entry are nobody's.
    """
    starts = [entry.header_offset for entry in zipped.infolist()]
    ends: list[int] = [0]
    gaps: list[tuple[int, ...]] = [(0,)]
    with archive.open("rb") as file:
        for entry in sorted(zipped.infolist(), key=lambda entry: entry.header_offset):
            file.seek(entry.header_offset)
            *_, name, extra = LOCAL.unpack(file.read(LOCAL.size))
            ends.append(entry.header_offset + LOCAL.size + name + extra + entry.compress_size)
            gaps.append(DESCRIPTORS if entry.flag_bits & DESCRIBED else (0,))
    for end, start, allowed in zip(ends, [*sorted(starts), zipped.start_dir], gaps, strict=True):
        if start - end not in allowed:
            raise InputError(f"{archive}: its entries overlap, or there are bytes between them that belong to none")


def _extract(archive: Path, zipped: zipfile.ZipFile, folder: Path) -> None:
    """Write the files, counting what comes out."""
    left = MOST_BYTES
    for entry in zipped.infolist():
        if entry.is_dir():
            continue
        target = folder / entry.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        most = max(EXPANSION_FREE, MOST_EXPANSION * entry.compress_size)
        with zipped.open(entry) as source, target.open("xb") as file:
            out = 0
            while chunk := source.read(CHUNK):
                out += len(chunk)
                if out > most:
                    raise InputError(
                        f"{archive}: its entry {entry.filename!r} expands more than {MOST_EXPANSION} times"
                    )
                if out > left:
                    raise InputError(f"{archive}: unpacks to more than {MOST_BYTES // 1024**3} GiB; no release does")
                file.write(chunk)
            left -= out
            file.flush()
            os.fsync(file.fileno())
