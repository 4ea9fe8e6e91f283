"""Downloads from a server in this process, and the Oxford-IIIT Pet recipe on a miniature in its layout."""

import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import manifest as manifests
from pipeline.errors import InputError
from pipeline.fetch import downloads, fetch
from pipeline.index import index
from pipeline.loading import LoadCased
from pipeline.recipe import read_recipe, recipe
from tests.conftest import ROOT

PETS = ("Abyssinian_1", "Abyssinian_2", "beagle_1", "boxer_7", "Bombay_10")
GREY = "Egyptian_Mau_129"
"""Among the images of the real set, but not on its list."""


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, path -> bytes; what stands in `cut` is broken off half-way."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.cut, self.asked = {}, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path in self.server.cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def archive(members):
    """A .tar.gz of path -> bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def picture(array, kind):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=kind)
    return stream.getvalue()


def recipe_of(path, entries, **fields):
    path.write_text(yaml.safe_dump({"name": "x", "image": "{patient}.png", "downloads": entries} | fields))
    return path


def one_file(server, path, content=b"ten bytes.", **changes):
    server.files["/data/a.bin"] = content
    entry = {"url": f"{server.url}/data/a.bin", "checksum": "sha256:" + hashlib.sha256(content).hexdigest()}
    return recipe_of(path, [entry | changes])


def left(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_downloaded_once_and_verified(server, tmp_path):
    plan = one_file(server, tmp_path / "r.yaml")
    assert fetch(plan, tmp_path / "out") == [tmp_path / "out/a.bin"]
    assert (tmp_path / "out/a.bin").read_bytes() == b"ten bytes."
    fetch(plan, tmp_path / "out")
    assert server.asked == ["/data/a.bin"]
    (tmp_path / "out/a.bin").write_bytes(b"ten")
    fetch(plan, tmp_path / "out")
    assert (tmp_path / "out/a.bin").read_bytes() == b"ten bytes."


def test_progress_counts_mebibytes(server, tmp_path):
    told = []

    def progress(items, total, description):
        chunks = list(items)
        told.append((len(chunks), total, description))
        return chunks

    fetch(one_file(server, tmp_path / "r.yaml", bytes(2**21 + 1)), tmp_path / "out", progress)
    assert told == [(3, 3, "a.bin")]


def test_what_is_not_delivered_is_told_in_a_sentence_and_leaves_nothing(server, tmp_path):
    with Server() as closed:  # its port refuses connections from here on
        pass
    cases = [
        ({"checksum": "md5:" + "0" * 32}, r"a\.bin: delivers another file than the recipe expects \(md5:0000"),
        ({"url": f"{server.url}/data/b.bin"}, r"b\.bin: the server answers 404 Not Found; nothing of it is kept"),
        ({"url": f"{closed.url}/a.bin"}, r"a\.bin: no connection \(ConnectionError\); nothing of it is kept"),
    ]
    for changes, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            fetch(one_file(server, tmp_path / "r.yaml", **changes), tmp_path / "out")
    server.cut = {"/data/a.bin"}
    with pytest.raises(InputError, match="the connection broke off before the end of the file; nothing of it is kept"):
        fetch(one_file(server, tmp_path / "r.yaml", bytes(4000)), tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_what_came_before_a_broken_download_is_not_fetched_again(server, tmp_path):
    first = read_recipe(one_file(server, tmp_path / "r.yaml"))["downloads"][0]
    server.files["/b.tar.gz"] = content = archive({"b/c.txt": b"c"})
    server.cut = {"/b.tar.gz"}
    checksum = "md5:" + hashlib.md5(content).hexdigest()
    second = {"url": f"{server.url}/b.tar.gz", "checksum": checksum, "unpack": "b"}
    plan = recipe_of(tmp_path / "r.yaml", [first, second])
    with pytest.raises(InputError):
        fetch(plan, tmp_path / "out")
    server.cut = set()
    assert fetch(plan, tmp_path / "out") == [tmp_path / "out/a.bin", tmp_path / "out/b"]
    assert server.asked == ["/data/a.bin", "/b.tar.gz", "/b.tar.gz"]
    assert left(tmp_path / "out") == ["a.bin", "b", "b.tar.gz", "b/c.txt"]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"b/c.txt": b"c", "../evil.txt": b"e"}, r"b\.tar\.gz: cannot be unpacked safely \(.*outside"),
        ({"other/c.txt": b"c"}, r"b\.tar\.gz: has no folder 'b' in it"),
        (None, r"b\.tar\.gz: cannot be unpacked safely"),
    ],
)
def test_an_archive_writes_nothing_outside_and_nothing_by_half(server, tmp_path, members, sentence):
    server.files["/b.tar.gz"] = content = b"no archive" if members is None else archive(members)
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    plan = recipe_of(tmp_path / "r.yaml", [{"url": f"{server.url}/b.tar.gz", "checksum": checksum, "unpack": "b"}])
    with pytest.raises(InputError, match=sentence):
        fetch(plan, tmp_path / "out")
    assert left(tmp_path) == ["out", "out/b.tar.gz", "r.yaml"]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "names no `downloads`"),
        ([{"url": "ftp://x.org/a.zip", "checksum": "md5:00"}], "download `url`: .*got 'ftp://x.org/a.zip'"),
        ([{"url": "https://x.org/a.zip", "checksum": "00"}], "download `checksum`: .*got '00'"),
        ([{"url": "https://x.org/a.zip"}], "download `checksum`: Field required"),
        ([{"url": "https://x.org/a.zip", "checksum": "md5:00", "unpack": "../b"}], "download `unpack`"),
        ([{"url": f"https://{x}.org/a.zip", "checksum": "md5:00"} for x in "xy"], "two downloads of one file name"),
    ],
)
def test_a_recipe_that_cannot_be_fetched_is_refused(tmp_path, entries, sentence):
    with pytest.raises(InputError, match=sentence):
        downloads(recipe_of(tmp_path / "r.yaml", entries))


def test_the_pet_recipe_asks_for_the_files_that_torchvision_knows():
    site = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
    assert [(d.url, d.checksum) for d in downloads(ROOT / "data_manifest/oxford_pet.yaml")] == [
        (f"{site}/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        (f"{site}/annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
    ]


@pytest.fixture
def pets(server, tmp_path):
    """The pet recipe with a miniature of its archives on the server: 5 photographs on the list, one beside it."""
    rng = np.random.default_rng(0)
    images, annotations = {"images/Abyssinian_100.mat": b"stray"}, {"annotations/trimaps/._beagle_1.png": b"macOS"}
    for number, name in enumerate((*PETS, GREY)):
        height, width = 20 + number, 30
        colours = rng.integers(0, 256, (height, width, 3), np.uint8)
        trimap = np.full((height, width), 2, np.uint8)
        trimap[4:16, 4:20] = 3
        trimap[6:14, 6:18] = 1
        images[f"images/{name}.jpg"] = picture(colours[..., 0] if name == GREY else colours, "JPEG")
        annotations[f"annotations/trimaps/{name}.png"] = picture(trimap, "PNG")
    transparent = np.dstack([colours[:20], np.arange(600).reshape(20, 30) % 256]).astype(np.uint8)
    images["images/Abyssinian_1.jpg"] = picture(transparent, "PNG")  # as Abyssinian_5.jpg of the real set
    lines = ["#Image CLASS-ID SPECIES BREED ID", *(f"{name} 1 1 1" for name in PETS)]
    annotations["annotations/list.txt"] = "\n".join(lines).encode()
    fields = read_recipe(ROOT / "data_manifest/oxford_pet.yaml")
    for entry, content in zip(fields["downloads"], (archive(images), archive(annotations)), strict=True):
        entry["url"] = entry["url"].replace("https://www.robots.ox.ac.uk", server.url)
        entry["checksum"] = "md5:" + hashlib.md5(content).hexdigest()
        server.files[entry["url"].removeprefix(server.url)] = content
    path = tmp_path / "oxford_pet.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def test_pets_are_fetched_indexed_split_and_audited(pets, tmp_path, overtile):
    folder, manifest = tmp_path / "pets", tmp_path / "pets/oxford_pet.json"
    code, output = overtile("fetch", pets, folder)
    command = f"overtile index {folder} --recipe {pets} --out {manifest}"
    assert (code, output.splitlines()[-1]) == (0, f"next: {command}")
    code, output = overtile(*command.split()[1:])
    assert (code, output.splitlines()[-1]) == (0, f"5 cases of unknown patients, 5 unassigned -> {manifest}")
    assert overtile("split", manifest, "--fractions", 0.6, 0.2, 0.2)[0] == 0
    code, output = overtile("audit", manifest)
    assert (code, output.splitlines()[-1]) == (0, f"0 errors, 0 warnings in {manifest}")
    read = manifests.read(manifest)
    assert read.labels == {"0": "background", "1": "pet", "2": "border"}
    assert read.modality == {"0": "red", "1": "green", "2": "blue"}
    assert {case.patient for _, case in read.cases()} == set(PETS)
    assert not (folder / "overtile.key").exists()


def test_a_pet_and_its_trimap_load(pets, tmp_path):
    fetch(pets, tmp_path / "pets")
    manifest = index(tmp_path / "pets", recipe(read_recipe(pets)))
    case = next(case for _, case in manifest.cases() if case.patient == "beagle_1")
    item = {"image": str(tmp_path / "pets" / case.image), "label": str(tmp_path / "pets" / case.label)}
    loaded = LoadCased(["image", "label"], manifest.label_values)(item)
    assert loaded["image"].shape == (3, 22, 30)
    assert loaded["label"][0, [0, 4, 6], [0, 4, 6]].tolist() == [0, 2, 1]
