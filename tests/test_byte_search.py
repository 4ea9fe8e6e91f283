"""The searcher of the planted-identity test finds what is hidden on purpose, in every kind of container."""

import base64
import gzip
import html
import io
import json
import sqlite3
import urllib.parse
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tests.byte_search import found

NAME = "Zwiebelmüller^Quirina"


def png(compressed):
    about, file = PngImagePlugin.PngInfo(), io.BytesIO()
    about.add_itxt("note", NAME, zip=compressed)
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(NAME.encode()))
    return file.getvalue()


def named_member():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{NAME}/data.pkl", "nothing")
    return file.getvalue()


def checkpoint():
    file = io.BytesIO()
    torch.save({"note": NAME}, file)
    return file.getvalue()


def nifti():
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["descrip"] = NAME.encode()
    return gzip.compress(image.to_bytes())


def page(name):
    uri = base64.b64encode(png(compressed=True)).decode()
    return f"<p>{html.escape(name)}</p><img src='data:image/png;base64,{uri}'>".encode()


def entities():
    return "".join(f"&#{ord(letter)};" for letter in NAME).encode()


HIDDEN = {
    "utf-8": NAME.encode(),
    "utf-16": NAME.encode("utf-16"),
    "utf-16-be": NAME.encode("utf-16-be"),
    "latin-1": NAME.encode("latin-1"),
    "capitals": NAME.upper().encode(),
    "small letters": NAME.lower().encode("latin-1"),
    "json": json.dumps({"name": NAME}).encode(),
    "escapes of ascii": b"".join(b"\\u%04x" % ord(letter) for letter in NAME),
    "percent": urllib.parse.quote(NAME).encode(),
    "percent of everything": "".join(f"%{byte:02X}" for byte in NAME.encode()).encode(),
    "hex": NAME.encode().hex().encode(),
    "entities": entities(),
    **{f"base64 after {n} bytes": base64.b64encode(b"x" * n + NAME.encode() + b"more") for n in range(3)},
    "gzip": gzip.compress(NAME.encode()),
    "zlib in the midst": b"head" + zlib.compress(NAME.encode() * 3) + b"tail",
    "zlib that breaks off": zlib.compress(NAME.encode() + bytes(100_000))[:-20] + b"broken" * 4,
    "gzip in a zip": zipped(),
    "name of a zip's member": named_member(),
    "text chunk of a PNG": png(compressed=False),
    "compressed text chunk of a PNG": png(compressed=True),
    "behind a PNG": png(compressed=False)[:-12].replace(NAME.encode(), b"") + zlib.compress(NAME.encode()),
    "checkpoint": checkpoint(),
    "header of a compressed NIfTI": nifti(),
    "data URI of an HTML page": page("nobody"),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_it_finds_a_name(tmp_path, kind):
    (tmp_path / "file").write_bytes(HIDDEN[kind])
    assert found([tmp_path], [NAME])


@pytest.mark.parametrize("how", ["there", "longer than a page", "deleted", "in the log"])
def test_it_finds_a_name_in_a_database(tmp_path, how):
    store = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    store.execute(f"pragma journal_mode = {'wal' if how == 'in the log' else 'delete'}")
    store.execute("pragma secure_delete = off")
    store.execute("create table runs (note text)")
    store.execute("insert into runs values (?)", ["x" * 4000 * (how == "longer than a page") + NAME])
    if how == "deleted":
        store.execute("delete from runs")
    assert found([tmp_path], [NAME])
    store.close()


def test_it_finds_names_of_files_and_folders(tmp_path):
    (tmp_path / NAME).mkdir()
    assert found([tmp_path], [NAME])


def test_it_finds_nothing_where_nothing_is(tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(500_000))
    (tmp_path / "page.html").write_bytes(page("nobody").replace(b"data:image", b""))
    (tmp_path / "digest").write_text("2b5f41d2a8c0")
    (tmp_path / "page.html").write_bytes(b"&lt;p&gt; %20 \\u0041 nothing")
    assert found([tmp_path], [NAME, "19370213"]) == []
