"""The elements of a DICOM file, walked in bytes from length to length up to the pixels, which are not read.

Most of pydicom's time goes into objects for elements that nobody asks for; here only the wanted ones are touched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container

LEFT_OUT = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
"""Transfer syntaxes too rare to be walked here: big-endian and deflated."""

SYNTAX = 0x00020010
"""The element with the transfer syntax."""

PIECE = 16384
"""Bytes read at once: the header of most slices; what is longer is read in further pieces."""

UNDEFINED = 0xFFFFFFFF
"""The length of an element that ends with a delimiter of its own."""

FIRST_PIXELS, LAST_PIXELS = 0x7FE00008, 0x7FE00010
"""FloatPixelData, DoubleFloatPixelData and PixelData: an element from here on ends the header."""

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
"""Tags inside of sequences and of compressed pixels."""

LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with a length of 4 bytes after 2 reserved ones."""

_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHL").unpack_from
_length = struct.Struct("<L").unpack_from


class Damaged(ValueError):  # noqa: N818 - the name says what the file is
    """The bytes of a file break off or make no sense; says where."""


class Source:
    """A file's bytes, read in pieces as they are asked for."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.first = os.read(descriptor, PIECE)

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer at the end of the file."""
        if offset + length <= len(self.first):
            return self.first[offset : offset + length]
        return os.pread(self.descriptor, length, offset)


def start(file: Source) -> int | None:
    """Where the elements begin: behind the preamble, or at once in a file without one; None if it is not DICOM."""
    if file.first[128:132] == b"DICM":
        return 132
    if len(file.first) < 8:
        return None
    group, element, vr, _ = _explicit(file.first, 0)
    likely = group in (2, 8) and element <= 0x18
    return 0 if likely and (vr.isupper() or _implicit(file.first, 0)[2] <= 64) else None


def walk(file: Source, at: int, wanted: Container[int], raw: dict[int, bytes]) -> tuple[int | None, int]:  # noqa: PLR0912
    """Go from element to element up to the pixels, and put the values of those that are wanted into `raw`.

    One loop, since a call per element would take as long again.

    Args:
        file: a DICOM file, of any transfer syntax but those in `LEFT_OUT`, in which the walk ends behind the file
            meta information.
        at: where its elements begin.
        wanted: tags.
        raw: tag -> bytes; filled also where the file is damaged, as far as it can be read.

    Returns:
        The byte at which the pixels begin, None without pixels, and their length, which may be `UNDEFINED`.

    Raises:
        Damaged: the file ends within an element or before the last byte of its pixels.
    """
    data, base = file.first, 0
    implicit, meta = False, True
    while True:
        if at + 12 > len(data) and base + len(data) < file.size:
            base += at
            data, at = file.at(base, PIECE), 0
        if at + 8 > len(data):
            if data[at:].strip(b"\0"):
                raise Damaged("it ends within an element")
            return None, 0
        if meta and data[at : at + 2] != b"\x02\x00":
            meta = False
            if raw.get(SYNTAX, b"").rstrip(b"\0 ").decode("ascii", "replace") in LEFT_OUT:
                return None, 0
            implicit = not data[at + 4 : at + 6].isupper()  # the bytes tell more surely than the declared syntax
        group, element, vr, length = _explicit(data, at)
        if implicit or not vr.isupper():  # some writers change to implicit on the way
            length = _implicit(data, at)[2]
        elif vr in LONG:
            at += 4
            if at + 8 > len(data):
                raise Damaged("it ends within an element")
            length = _length(data, at + 4)[0]
        at += 8
        tag = group << 16 | element
        if tag > LAST_PIXELS:
            return None, 0
        if tag >= FIRST_PIXELS:
            _require_pixels(file, base + at, length)
            return base + at, length
        if length == UNDEFINED:
            base, at = _behind_items(file, base + at, implicit or vr == b"UN"), 0
            data = file.at(base, PIECE)
            continue
        if base + at + length > file.size:
            raise Damaged(f"element ({group:04X},{element:04X}) is longer than the rest of the file")
        if tag in wanted:
            raw[tag] = data[at : at + length] if at + length <= len(data) else file.at(base + at, length)
        at += length


def _require_pixels(file: Source, offset: int, length: int) -> None:
    """Refuse a file that ends before its pixels do."""
    if length == UNDEFINED:
        _behind_items(file, offset, implicit=True)
    elif offset + length > file.size:
        raise Damaged(f"{offset + length - file.size} of {length} bytes of pixels are missing")


def _behind_items(file: Source, offset: int, implicit: bool) -> int:
    """The byte behind a sequence, or compressed pixels, of undefined length."""
    while True:
        tag, length = _item(file, offset)
        offset += 8
        if tag == SEQUENCE_END:
            return offset
        if tag != ITEM:
            raise Damaged("a sequence holds something that is no item")
        offset = _behind_elements(file, offset, implicit) if length == UNDEFINED else offset + length


def _behind_elements(file: Source, offset: int, implicit: bool) -> int:
    """The byte behind an item of undefined length."""
    while True:
        tag, length = _item(file, offset)
        if tag == ITEM_END:
            return offset + 8
        head = file.at(offset, 12)
        offset += 8
        vr = head[4:6]
        if implicit or not vr.isupper():
            vr = b""
        elif vr not in LONG:
            length = _explicit(head, 0)[3]
        elif len(head) == 12:
            length = _length(head, 8)[0]
            offset += 4
        offset = _behind_items(file, offset, implicit or vr == b"UN") if length == UNDEFINED else offset + length


def _item(file: Source, offset: int) -> tuple[int, int]:
    """Tag and length, as an implicit data set has them, at a byte of the file."""
    head = file.at(offset, 8)
    if len(head) < 8:
        raise Damaged("it ends within a sequence or within compressed pixels")
    group, element, length = _implicit(head, 0)
    return group << 16 | element, length
