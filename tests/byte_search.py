"""Looks for planted texts in every byte of files: through archives, compression, databases and encodings."""

import base64
import bz2
import contextlib
import gzip
import hashlib
import html
import io
import json
import lzma
import re
import sqlite3
import unicodedata
import zipfile
import zlib
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

ZLIB_STARTS = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
"""The first two bytes of a zlib stream, as in the text chunks of a PNG."""

DATA_URI = re.compile(rb"base64,([A-Za-z0-9+/=\s]{8,})")
ESCAPED = re.compile(rb"\\u([0-9a-fA-F]{4})")
ZIP, PNG, SQLITE = b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"SQLite format 3\x00"
GZIP, BZ2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
PIECE = 512
DEEPEST = 6
"""How many containers may stand in one another."""


def found(folders, texts):
    """Where planted texts stand: `file > member: text`, in order.

    Args:
        folders: files, folders that are searched whole, the names of their files and folders included, or bytes.
        texts: to look for, in any spelling.
    """
    needles, seen, hits = _needles(texts), set(), set()
    for name, data in everything(folders):
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            continue
        seen.add(digest)
        low = data.lower()
        hits |= {f"{name}: {text}" for text, exact, spelling in needles if spelling in (data if exact else low)}
    return sorted(hits)


def everything(folders):
    """Every file's bytes, and all that they hold when they are unpacked: pairs of a name and bytes."""
    for folder in folders:
        if isinstance(folder, bytes):
            yield from unpacked("bytes", folder)
            continue
        for path in [Path(folder), *sorted(Path(folder).rglob("*"))]:
            yield f"{path} (its name)", path.name.encode()
            if path.is_file():
                yield from unpacked(path.name, path.read_bytes())


def unpacked(name, data, depth=0):
    """Bytes, and what they hold: members of a zip, compressed streams, tables of a database, data URIs, escapes."""
    yield name, data
    if depth < DEEPEST:
        for part, content in _parts(data):
            if content and content != data:
                yield from unpacked(f"{name} > {part}", content, depth + 1)


def spellings(text):
    """How a text may stand in a file: pairs of bytes and whether capitals matter."""
    for form in {unicodedata.normalize(kind, text) for kind in ("NFC", "NFD")}:
        for cased in {form, form.lower(), form.upper(), form.title()}:
            codes = [cased.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
            codes += [cased.encode("latin-1", "ignore")] if form.isascii() or form == _composed(form) else []
            for code in [*codes, json.dumps(cased)[1:-1].encode(), quote(cased, safe="").encode()]:
                yield code.lower(), False
            yield cased.encode().hex().encode(), False
            yield from ((piece, True) for piece in _base64(cased.encode()))


def _composed(text):
    return unicodedata.normalize("NFC", text)


def _needles(texts):
    return sorted({(text, exact, spelling) for text in texts for spelling, exact in spellings(text)})


def _base64(data):
    """The characters of base64 that depend on the bytes alone, wherever they begin."""
    for before in range(3):
        coded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        first = -(-before * 4 // 3)
        last = (before + len(data)) * 4 // 3
        yield coded[first:last].encode()


def _parts(data):
    if data.startswith(ZIP):
        yield from _zipped(data)
    for kind, start, opened in (
        ("gzip", GZIP, gzip.decompress),
        ("bz2", BZ2, bz2.decompress),
        ("xz", XZ, lzma.decompress),
    ):
        if data.startswith(start):
            yield kind, opened(data)
    if data.startswith(SQLITE):
        yield "tables", _dumped(data)
    data = _without_pixels(data) if data.startswith(PNG) else data
    yield "zlib", b"".join(_streams(data))
    for match in DATA_URI.finditer(data):
        yield f"data URI at {match.start()}", base64.b64decode(match[1] + b"===")
    if not data.startswith((ZIP, SQLITE, GZIP, BZ2, XZ)):  # changed bytes are no archive any more
        yield from _unescaped(data)


def _zipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        yield "comment", archive.comment
        for info in archive.infolist():
            yield f"name of {info.filename}", info.filename.encode()
            yield info.filename, archive.read(info)


def _streams(data):
    """What zlib unpacks, wherever a stream begins, up to its end or to where it is broken."""
    for match in ZLIB_STARTS.finditer(data):
        unpacking = zlib.decompressobj()
        with contextlib.suppress(zlib.error):
            for start in range(match.start(), len(data), PIECE):
                yield unpacking.decompress(data[start : start + PIECE])
                if unpacking.eof:
                    break


def _without_pixels(data):
    """A PNG's chunks but those of its pixels, and whatever stands behind it: pixels are for `glyph_search`."""
    kept, at = b"", len(PNG)
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind != b"IDAT":
            kept += data[at : at + 12 + length]
        at += 12 + length
        if kind == b"IEND":
            break
    return kept + data[at:]


def _dumped(data):
    """All tables as text: a value longer than a page stands in pieces in the file's own bytes."""
    store = sqlite3.connect(":memory:")
    store.deserialize(data[:18] + b"\x01\x01" + data[20:])  # a database in memory has no write-ahead log
    store.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    dump = "\n".join(store.iterdump())
    store.close()
    return dump.encode("utf-8", "surrogateescape")


def _unescaped(data):
    if ESCAPED.search(data):
        yield "escapes", ESCAPED.sub(lambda code: chr(int(code[1], 16)).encode("utf-8", "replace"), data)
    if b"&" in data and b";" in data:
        yield "entities", html.unescape(data.decode("latin-1")).encode("latin-1", "xmlcharrefreplace")
    if re.search(rb"%[0-9a-fA-F]{2}", data):
        yield "percent", unquote_to_bytes(data)
