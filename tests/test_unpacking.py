"""Zips that would do harm are refused with a sentence, before or while they are unpacked, and leave nothing behind."""

import io
import shutil
import stat
import struct
import subprocess
import zipfile

import pytest

from pipeline import unpacking
from pipeline.errors import InputError
from pipeline.unpacking import unpack


def zipped(*entries, compression=zipfile.ZIP_DEFLATED):
    """The bytes of a zip with (name or ZipInfo, content) each."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


def special(name, mode, content=b"/etc/passwd"):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info, content


GOOD = zipped(("net/a.txt", b"one"), ("net/docs/b.txt", b"two"))
FILES = {"a.txt": b"one", "docs/b.txt": b"two"}


def test_a_good_zip(tmp_path):
    (tmp_path / "good.zip").write_bytes(GOOD)
    folder = unpack(tmp_path / "good.zip", tmp_path / "out")
    assert folder == tmp_path / "out" / "net"
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert [p.name for p in folder.parent.iterdir()] == ["net"]


def test_a_zip_that_another_program_made_as_a_stream(tmp_path):
    if shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    for name, content in FILES.items():
        (tmp_path / "net" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "net" / name).write_bytes(content)
    made = subprocess.run(["zip", "-r", "-", "net"], cwd=tmp_path, capture_output=True, check=True).stdout
    (tmp_path / "good.zip").write_bytes(made)
    assert (unpack(tmp_path / "good.zip", tmp_path / "out") / "a.txt").read_bytes() == b"one"


def encrypted():
    """The flag alone, in both headers."""
    data = bytearray(GOOD)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def overlapping():
    """The second entry of the list points at the bytes of the first."""
    data = bytearray(zipped(("net/a", b"one"), ("net/b", b"two")))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    return bytes(data)


def with_gap():
    """Bytes between the last entry and the list, which the end record is told of."""
    data = bytearray(GOOD)
    at = data.index(b"PK\1\2")
    data[at:at] = b"hidden"
    data[-6:-2] = struct.pack("<L", at + 6)
    return bytes(data)


def lying_about_size():
    """The list says that 3 bytes come out; a megabyte does."""
    data = bytearray(zipped(("net/a", b"x" * 2**20)))
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<L", 3)
    return bytes(data)


def two_of(name, other):
    return zipped((f"net/{name}", b"one"), (f"net/{other}", b"two"))


HARMFUL = {
    "parent": (zipped(("net/../../evil", b"")), "leads out of the folder"),
    "parent with backslashes": (zipped(("net\\..\\evil", b"")), "leads out of the folder"),
    "absolute": (zipped(("/etc/evil", b"")), "absolute path"),
    "drive": (zipped(("C:evil", b"")), "absolute path"),
    "share": (zipped(("\\\\host\\evil", b"")), "absolute path"),
    "backslash": (zipped(("net/a\\b", b"")), "not every file system takes"),
    "NUL": (zipped(("net/aXb", b"")).replace(b"net/aXb", b"net/a\0b"), "not every file system takes"),
    "colon": (zipped(("net/a:b", b"")), "not every file system takes"),
    "trailing point": (zipped(("net/a.", b"")), "not every file system takes"),
    "empty part": (zipped(("net//a", b"")), "not every file system takes"),
    "another form of a letter": (two_of("\u00e9", "e\u0301"), "not every file system takes"),
    "symlink": (zipped(special("net/a", stat.S_IFLNK | 0o777)), "link or another special file"),
    "device": (zipped(special("net/a", stat.S_IFCHR | 0o666)), "link or another special file"),
    "fifo": (zipped(special("net/a", stat.S_IFIFO | 0o666)), "link or another special file"),
    "folder that is none": (zipped(special("net/a", stat.S_IFDIR | 0o777)), "link or another special file"),
    "long name": (zipped(("net/" + "a" * 200, b"")), "204 characters"),
    "same name in capitals": (two_of("a", "A"), "two entries for 'net/a'"),
    "file and folder": (two_of("a", "a/b"), "is a file and a folder"),
    "two tops": (zipped(("net/a", b""), ("other/a", b"")), "no single folder"),
    "file at the top": (zipped(("net", b"")), "no single folder"),
    "encrypted": (encrypted(), "is encrypted"),
    "bzip2": (zipped(("net/a", b"x"), compression=zipfile.ZIP_BZIP2), "another way than deflate"),
    "expansion": (zipped(("net/a", b"\0" * 2**21)), "expands more than 200 times"),
    "many": (zipped(*((f"net/{n}", b"") for n in range(101))), "lists 101 entries"),
    "very many": (zipped(*((f"net/{n}", b"") for n in range(20_000))), "lists more than 100 entries"),
    "overlap": (overlapping(), "entries overlap"),
    "hidden bytes": (with_gap(), "bytes between them"),
    "lie": (lying_about_size(), "not a readable zip"),
    "comment": (GOOD[:-2] + b"\4\0evil", "does not end as a zip does"),
    "trailing bytes": (GOOD + b"#!/bin/sh", "does not end as a zip does"),
    "program before it": (b"#!/bin/sh\n" + GOOD, "does not begin as a zip"),
    "cut off": (GOOD[:-30], "does not end as a zip does"),
    "empty": (b"", "does not begin as a zip"),
    "no zip": (b"PK\3\4" + b"\0" * 200, "does not end as a zip does"),
    "changed byte": (
        GOOD[:40] + b"~" + GOOD[41:],
        "not a readable",
    ),
}


@pytest.mark.parametrize("attack", HARMFUL)
def test_harmful_zips_are_refused_and_leave_nothing(attack, tmp_path):
    content, sentence = HARMFUL[attack]
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        unpack(tmp_path / "bad.zip", tmp_path / "out" / "deeper")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["bad.zip"]
    assert not (tmp_path / "out" / "deeper").exists()


def test_a_name_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        (tmp_path / "bad.zip").write_bytes(two_of("a", "a"))
    with pytest.raises(InputError, match="two entries for 'net/a'"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")


def test_the_sum_is_counted_as_it_comes_out(tmp_path, monkeypatch):
    (tmp_path / "bad.zip").write_bytes(zipped(("net/a", b"0123456789"), ("net/b", b"0123456789")))
    monkeypatch.setattr(unpacking, "CHUNK", 8)
    unpack(tmp_path / "bad.zip", tmp_path / "fine")
    size = (tmp_path / "bad.zip").stat().st_size
    monkeypatch.setattr(unpacking, "MOST_BYTES", size)
    (tmp_path / "worse.zip").write_bytes(zipped(("net/a", b"0" * size), ("net/b", b"0")))
    with pytest.raises(InputError, match="unpacks to more than"):
        unpack(tmp_path / "worse.zip", tmp_path / "out")


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "good.zip").write_bytes(GOOD)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "mine").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        unpack(tmp_path / "good.zip", tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["good.zip", "mine", "net"]


def test_what_a_killed_one_left_is_removed(tmp_path):
    (tmp_path / "good.zip").write_bytes(GOOD)
    left = tmp_path / ".unpacking.999999999.tmp"
    left.mkdir()
    unpack(tmp_path / "good.zip", tmp_path)
    assert not left.exists()


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        unpack(tmp_path / "none.zip", tmp_path)
