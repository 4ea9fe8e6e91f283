"""Nothing that identifies a patient gets where it should not: a known identity goes through the whole line.

It stands in headers, in names of files and folders, and in letters burnt into the air. It may be in the dataset's own
folder alone, where manifest, key and DICOM answers lie; runs, store, checkpoints and report must not have it.
"""

import contextlib
import dataclasses
import io
import shutil
import sqlite3
import sys
from pathlib import Path
from zipfile import ZipFile

import nibabel as nib
import numpy as np
import pytest
import yaml
from pydicom import dcmread

from pipeline import compare, reference_case
from pipeline.audit import checked_cases
from pipeline.bundle import find
from pipeline.errors import DataError
from pipeline.failures import without_paths
from pipeline.loading import LoadCased
from pipeline.manifest import Case, read
from pipeline.tracking import sqlite_store
from tests import planted
from tests.byte_search import found
from tests.glyph_search import FOUND, pictures, strongest
from tests.test_children import FakeRuns
from tests.test_tracking import trainer
from tests.test_trials import plan

VOLUMES, XRAYS = "hippocampus_mri_segmentation", "chest_xray_segmentation"
NETWORK = ["--width", 4, "--depth", 2]
SMALL = {VOLUMES: [*NETWORK], XRAYS: [*NETWORK, "--size", 96]}
PATCH = {VOLUMES: "[32, 32, 8]", XRAYS: 96}
INDEXED = {
    VOLUMES: [],
    XRAYS: ["--label", "masks/{patient}.png", "--class", "background=0", "--class", "lung=255"],
}
SCALES = 300 / planted.SIDE * 1.045 ** np.arange(5)
"""Pixels of a picture for one of the image: 300 for the longest side, or for that of a part with letters in it."""

WRITE = {VOLUMES: planted.write_mr, XRAYS: planted.write_dx}


def overtile(*words):
    """Run a command in this process: exit code, and what the terminal was told."""
    from pipeline.cli import main

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["overtile", *map(str, words)])
        patch.setattr(sys, "excepthook", sys.excepthook)
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, told.getvalue()


@pytest.fixture(scope="module")
def line(tmp_path_factory, empty_store):
    """Six patients from index to report: the dataset's folder, the results' folder, what the terminal was told."""
    return run_line(VOLUMES, tmp_path_factory.mktemp("line"), empty_store)


def run_line(bundle, folder, empty_store):
    site, out = WRITE[bundle](folder / planted.SITE), folder / "out"
    shutil.copytree(empty_store.parent, out)
    told, before = {}, beside(bundle)
    for words in commands(bundle, site, out):
        code, said = overtile(*words)
        assert code == 0, said
        told[words[0]] = said
    assert beside(bundle) == before  # nothing was written where nobody looks
    return site, out, told


def beside(bundle):
    """What MLflow has left where a command runs, and all that stands in the bundle."""
    return {*Path.cwd().glob("ml*"), *find(bundle).rglob("*")}


def commands(bundle, site, out):
    """The line, from files to answers; what a release is made by is to come last."""
    manifest, store = site / "manifest.json", sqlite_store(out)
    training = ["--epochs", 2, "--patch", PATCH[bundle], "--workers", 0, "--tracking_uri", store, *SMALL[bundle]]
    return [
        ["index", site, "--name", "phantom", "--out", manifest, *INDEXED[bundle]],
        ["split", manifest, "--fractions", 0.5, 0.2, 0.3],
        ["audit", manifest],
        ["run", bundle, "training", "--manifest", manifest, "--output_dir", out / "run", *training],
        evaluation(bundle, manifest, out / "test", store, out / "run/model.pt"),
        ["predict", "--bundle", bundle, "--checkpoint", out / "run/model.pt", "--input", site,
         "--output", site / "answers", *SMALL[bundle]],
        ["runs", out],
        ["report", out / "test", "--out", out / "report.html"],
        ["release", out / "run", "--out", out, "--key", site / "site.key",
         "--evaluation", out / "test" / "evaluation.json", "--recipe", recipe(site)],
    ]  # fmt: skip


def recipe(site):
    """As a site would write it, naming its only patient and where the files came from."""
    written = site / "recipe.yaml"
    downloads = [{"url": f"https://{planted.SITE}/Zwiebelacker.zip"}]
    fields = {"name": "heads", "dicom": {}, "label": "{patient}/{study}/SEG {series}.dcm"}
    written.write_text(yaml.safe_dump(fields | {"patient": "Zwiebelacker, Quirina", "downloads": downloads}))
    return written


def evaluation(bundle, manifest, output, store, checkpoint):
    places = ["--manifest", manifest, "--output", output, "--tracking-uri", store, "--checkpoint", checkpoint]
    return ["evaluate", "--bundle", bundle, *places, *SMALL[bundle]]


def test_no_byte_of_the_results_tells_who_it_was(line):
    _, out, _ = line
    assert (out / "run/last.pt").is_file()
    assert (out / "test/evaluation.json").is_file()
    assert "data:image/png;base64," in (out / "report.html").read_text()
    assert found([out], planted.texts()) == []


def test_a_release_is_of_the_volumes_and_names_nobody(line, tmp_path):
    (release,) = line[1].glob("*.zip")
    assert found([release], planted.texts()) == []
    with ZipFile(release) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / VOLUMES
    assert (folder / "reference/image.nii.gz").is_file()
    assert reference_case.reproduce(folder).passed
    assert "no figures of so few leave the site" in (folder / "docs/README.md").read_text()
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {
        "name": "heads", "dicom": {}, "label": "{patient}/{study}/SEG {series}.dcm",
    }  # fmt: skip


def test_no_picture_shows_the_burnt_in_letters(line):
    seen = shown([line[1]])
    assert {"worst.png", "worst_1.png", "median.png", "best.png"} <= seen.keys()
    assert max(seen.values()) < FOUND - 0.15, seen


def test_the_letters_are_found_in_pictures_that_are_drawn_with_all_around_the_body(line, empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    words = evaluation(
        VOLUMES, line[0] / "manifest.json", tmp_path / "test", sqlite_store(tmp_path), line[1] / "run/model.pt"
    )
    assert overtile(*words, "--body", False)[0] == 0
    seen = shown([*(tmp_path / "test/pictures").iterdir(), tmp_path / "test/worst.png"])
    assert len(seen) >= 3
    assert min(seen.values()) > FOUND + 0.1, seen


def shown(folders):
    """Name of every picture -> how strongly it looks as if the letters stood in it."""
    letters = planted.written(planted.BURNT)
    return {name: strongest(picture, letters, SCALES) for name, picture in pictures(folders)}


def test_it_is_where_it_belongs(line):
    site, _, _ = line
    answers = sorted((site / "answers").rglob("*.dcm"))
    assert len(answers) == 6
    for file in [site / "manifest.json", *answers]:
        assert found([file], planted.texts()), file


def test_a_certificate_beside_an_answer_names_nobody(line):
    site, _, _ = line
    for number, file in enumerate(sorted((site / "answers").rglob("*.certificate.json"))):
        assert found([file], planted.texts()) == [], number


def test_the_terminal_names_files_and_quotes_no_header(line):
    for command, said in line[2].items():
        assert said
        assert [text for text in planted.HEADER_ONLY if text.lower() in said.lower()] == [], command


BROKEN = {
    "a slice is missing": lambda case, files: files[3].unlink(),
    "a slice is there twice": lambda case, files: again(files[3], "Zwiebelacker, copy.dcm"),
    "a file is cut short": lambda case, files: cut(files[3]),
    "a header has a name in the place of a number": lambda case, files: edited(files[3], PixelSpacing="Zwiebel\\1"),
    "the series is another one": lambda case, files: edited(*files, SeriesInstanceUID=f"{planted.UIDS}.99"),
    "its files are gone": lambda case, files: [file.unlink() for file in files],
    "the reference is no DICOM file": lambda case, files: Path(case["label"]).write_text("Zwiebel"),
    "the reference is of another patient": lambda case, files: case.update(label=str(of_another(case))),
    "the reference is gone": lambda case, files: Path(case["label"]).unlink(),
    "a class is not declared": lambda case, files: case.update(label_values={"0": 0, "1": 1}),
    "a volume has NaN": lambda case, files: as_nifti(case, np.nan),
    "a volume is cut short": lambda case, files: cut(as_nifti(case, 0)),
}


def again(file, name):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # a copy that is the same in every byte is passed over
    file.with_name(name).write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edited(*files, **attributes):
    for file in files:
        content = file.read_bytes()
        for keyword, value in attributes.items():
            old = dcmread(file)[keyword]
            plain = "\\".join(map(str, old.value)) if old.VM > 1 else str(old.value)
            assert plain.encode() in content
            content = content.replace(plain.encode(), value.ljust(len(plain))[: len(plain)].encode())
        file.write_bytes(content)


def of_another(case):
    return next(path for path in Path(case["root"]).rglob("SEG*.dcm") if str(path) != case["label"])


def as_nifti(case, value):
    path = Path(case["root"]) / "Zwiebelacker, Quirina.nii"
    image = nib.Nifti1Image(np.full((4, 4, 4), value, np.float32), np.eye(4))
    image.header["descrip"] = b"Zwiebelacker, Quirina"
    nib.save(image, path)
    case["image"] = str(path)
    return path


@pytest.mark.parametrize("what", BROKEN)
def test_an_error_is_told_to_the_store_without_it(line, tmp_path, what):
    site = shutil.copytree(line[0], tmp_path / planted.SITE, ignore=shutil.ignore_patterns("answers"))
    manifest = read(site / "manifest.json")
    case = manifest.training[0].model_dump(include={"id", "image", "label", "series"}) | {"root": str(site)}
    case |= {"image": str(site / case["image"]), "label": str(site / case["label"])}
    case["label_values"] = manifest.label_values
    BROKEN[what](case, sorted(Path(case["image"]).iterdir()))
    with pytest.raises(Exception) as caught:
        LoadCased(["image", "label"], case["label_values"])(case)
    told = without_paths(caught.value, [case for _, case in manifest.cases()])
    assert [text for text in planted.texts() if text.lower() in told.lower()] == [], told
    assert len(told) > len("DataError: ")


def test_a_file_that_goes_while_a_run_reads_is_told_by_case_and_rule(line, empty_store, tmp_path, monkeypatch):
    def checked_and_gone(*arguments):
        items = checked_cases(*arguments)
        sorted((site / case.image).iterdir())[3].unlink()
        return items

    site = shutil.copytree(line[0], tmp_path / planted.SITE, ignore=shutil.ignore_patterns("answers"))
    out = tmp_path / "out"
    shutil.copytree(empty_store.parent, out)
    case = read(site / "manifest.json").test[0]
    monkeypatch.setattr("pipeline.audit.checked_cases", checked_and_gone)
    code, said = overtile(
        *evaluation(VOLUMES, site / "manifest.json", out / "test", sqlite_store(out), line[1] / "run/model.pt")
    )
    assert (code, "Zwiebel" in said) == (2, True)  # the terminal names the file
    with sqlite3.connect(out / "mlflow.db") as store:
        ((reason,),) = store.execute("select value from tags where key = 'failure'")
    assert reason == f"Refused: {case.id}: missing slice"
    assert found([out], planted.texts()) == []


ENDS = {
    "a full disk": OSError(28, "No space left on device", f"/{planted.SITE}/last.pt"),
    "a stop": KeyboardInterrupt(f"stopped in {planted.SITE}"),
    "a library that quotes": RuntimeError(f"shape of {planted.SITE}/Zwiebelacker.nii is odd"),
}


@pytest.mark.parametrize("how", ENDS)
def test_however_a_training_ends_the_store_does_not_know_of_whom(line, empty_store, tmp_path, how):
    def explode(_):
        raise ENDS[how]

    shutil.copy(empty_store, tmp_path)
    with pytest.raises(type(ENDS[how])):
        trainer(line[0] / "manifest.json", tmp_path, explode).run()
    assert found([tmp_path], planted.texts()) == []


def test_what_waits_for_a_store_names_nobody(line, tmp_path, monkeypatch):
    def explode(_):
        raise ENDS["a library that quotes"]

    monkeypatch.setattr("pipeline.outbox.END_SECONDS", 0.1)
    with pytest.raises(RuntimeError):
        trainer(line[0] / "manifest.json", tmp_path, explode, store="http://127.0.0.1:9").run()
    assert list((tmp_path / "unsent").rglob("journal.jsonl"))
    assert found([tmp_path], planted.texts()) == []


def test_a_comparison_keeps_no_place_of_the_data(line, empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    planned = plan(line[0] / "manifest.json", tmp_path, "a=", "b=--width 8")
    planned = dataclasses.replace(planned, dataset_dir=line[0], store=sqlite_store(tmp_path))
    with pytest.raises(DataError):
        compare.compare(planned, run=FakeRuns(stop_at=2, code=2), say=lambda _: None)
    assert (tmp_path / "plan.json").is_file()
    assert list(tmp_path.rglob("trial.json"))
    assert found([tmp_path], planted.texts()) == []


def test_case_ids_are_pseudonyms(line):
    manifest = read(line[0] / "manifest.json")
    assert len({case.patient for _, case in manifest.cases()}) == 6
    for _, case in manifest.cases():
        assert isinstance(case, Case)
        assert not [text for text in planted.texts() if text.lower() in case.id.lower()]


@pytest.mark.slow
def test_x_rays_go_through_the_line_likewise(tmp_path, empty_store):
    site, out, _ = run_line(XRAYS, tmp_path, empty_store)
    assert found([out], planted.texts()) == []
    assert max(shown([out]).values()) < FOUND - 0.15
    certificates = sorted((site / "answers").rglob("*.certificate.json"))
    assert len(certificates) == 6
    assert [found([file.read_bytes()], planted.texts()) for file in certificates] == [[]] * 6
