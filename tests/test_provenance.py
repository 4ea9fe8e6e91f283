"""Weights are not scored on what they were trained on, and nobody's name goes with them."""

import json
import sqlite3

import numpy as np
import pytest
import tifffile
import torch

from pipeline import bundle, checkpoint, provenance
from pipeline import manifest as manifests
from pipeline.checkpoint import load_weights, training_of
from pipeline.errors import DataError
from pipeline.manifest import PUBLIC, Manifest
from pipeline.patients import fingerprint
from pipeline.phantom import write_em_patients
from pipeline.provenance import refuse_overlap, training_record
from pipeline.split import split_by_patient
from tests.conftest import edited, index_phantom, run_overtile

HERE, ELSEWHERE = (fingerprint(letter * 32) for letter in (b"a", b"b"))


def cases(text):
    """`a1 b2`: image 1 of patient a, image 2 of patient b."""
    return [{"id": f"case-{word}", "patient": word[0], "image": "x", "pixels": 64 * word[1]} for word in text.split()]


def site(training="", validation="", test="", *, key=HERE, by="patient"):
    parts = {name: cases(text) for name, text in zip(manifests.PARTITIONS, (training, validation, test), strict=True)}
    return Manifest(name="x", modality={"0": "EM"}, pseudonyms=key, split={"by": by}, **parts)


WEIGHTS = training_record(site("a1 a2 b3", "c4", "d5"))


@pytest.mark.parametrize(
    ("manifest", "partition", "sentence"),
    [
        (
            site(test="d5 a6"),
            "test",
            r"1 of 2 cases to score were in the training partition .* case-a6 \(its patient\);",
        ),
        (site(test="d5 e3"), "test", r"1 of 2 .*: case-e3 \(its pixels\); .*: take them out of `test`, or evaluate"),
        (site(validation="a6"), "validation", "take them out of `validation`"),
        (site(test="c6"), "test", r"in the validation partition of this checkpoint, which chose its epoch: case-c6"),
        (site(test="f1", key=ELSEWHERE), "test", r"case-f1 \(its pixels\)"),
        (site(test="a6", key=None), "test", r"case-a6 \(its patient\)"),  # a manifest that does not say its key
        (site(test="a6", key=ELSEWHERE), "test", None),
        (site("a1 a2 b3", "c4", "d5"), "test", None),
        (site("a1 a2 b3", "c4", "d5"), "validation", None),
        (site("a1 a2 b3", "c4", "d5"), "training", "3 of 3 cases to score were in the training partition"),
    ],
)
def test_what_shaped_the_weights_is_not_scored(manifest, partition, sentence):
    if sentence is None:
        refuse_overlap(WEIGHTS, manifest, partition)
        return
    with pytest.raises(DataError, match=sentence):
        refuse_overlap(WEIGHTS, manifest, partition)


def test_a_refusal_names_five_cases_and_counts_the_rest():
    with pytest.raises(DataError, match=r"^7 of 8 .*: case-a1 .*, case-a5 \(its patient\) and 2 more; a score"):
        refuse_overlap(WEIGHTS, site(test="a1 a2 a3 a4 a5 a6 a7 d8"), "test")


def test_public_namesakes_get_a_way_out():
    weights = training_record(site("a1", key=PUBLIC))
    with pytest.raises(DataError, match="if other people have these public names, index them with a key"):
        refuse_overlap(weights, site(test="a6", key=PUBLIC), "test")


@pytest.mark.parametrize(
    ("record", "manifest", "patients"),
    [
        (WEIGHTS, site(test="d5"), "none"),
        (WEIGHTS, site(test="d5", key=ELSEWHERE), "unknown"),
        (WEIGHTS, site(test="d5", key=None), "unknown"),
        (None, site(test="a1"), "unknown: the checkpoint does not say what it was trained on"),
        ({"patients_sha256": "1"}, site(test="a1"), "unknown: the checkpoint does not say what it was trained on"),
        (training_record(site("a1", by="section")), site(test="a2", by="section"), "the same ones, as declared"),
        (training_record(site("a1", by="cluster")), site(test="b2", by="cluster"), "unknown: which images are of one"),
        (training_record(site("a1", by="image")), site(test="a2", by="image"), "unknown: which images are of one"),
    ],
)
def test_what_is_known_of_the_other_patients_is_said(record, manifest, patients):
    said = refuse_overlap(record, manifest, "test")
    assert said["overlap_with_training_patients"].startswith(patients)
    assert provenance.sentence(said).startswith(f"overlap with the release's training patients: {patients}")


def test_sections_of_one_patient_are_told_by_their_pixels():
    weights = training_record(site("a1", by="section"))
    with pytest.raises(DataError, match=r"case-b1 \(its pixels\)"):
        refuse_overlap(weights, site(test="b1", by="section"), "test")
    with pytest.raises(DataError, match=r"case-a2 \(its patient\)"):
        refuse_overlap(weights, site(test="a2"), "test")  # here nobody declared that sections are divided


def test_a_fold_is_not_scored_with_the_weights_of_another():
    rows = [case | {"fold": number + 1} for number, case in enumerate(cases("a1 b2 c3 d4"))]
    record = {"by": "patient", "folds": 4, "seed": 1, "validation": 0.3}
    folds = Manifest(name="x", modality={"0": "EM"}, pseudonyms=HERE, split=record, unassigned=rows)
    weights = training_record(manifests.one_fold(folds, 2))
    assert refuse_overlap(weights, manifests.one_fold(folds, 2), "test")["overlap_with_training_patients"] == "none"
    with pytest.raises(DataError, match=r"1 of 1 cases to score were in the \w+ partition of this checkpoint"):
        refuse_overlap(weights, manifests.one_fold(folds, 1), "test")


def test_digests_of_dicom_that_begin_alike_are_not_taken_for_one_another():
    release, theirs = site(training="a1"), site(test="b2", key=ELSEWHERE)
    for manifest, name, end in ((release, "training", "0"), (theirs, "test", "f")):
        object.__setattr__(manifest.partition(name)[0], "pixels", "instances " + 8 * "a" + 56 * end)
    assert refuse_overlap(training_record(release), theirs, "test")["overlap_with_training_pixels"] == "none"
    object.__setattr__(theirs.test[0], "pixels", release.training[0].pixels)
    with pytest.raises(DataError, match=r"case-b2 \(its pixels\)"):
        refuse_overlap(training_record(release), theirs, "test")


def test_a_case_without_a_digest_of_its_pixels_is_not_taken_for_another():
    blind = site("a1", test="b2")
    for case in (*blind.training, *blind.test):
        object.__setattr__(case, "pixels", None)
    said = refuse_overlap(training_record(blind), blind, "test")["overlap_with_training_pixels"]
    assert said.startswith("unknown: not every case has a digest of its pixels")


def test_weights_are_read_with_what_they_were_trained_on_and_without(tmp_path):
    network, path = torch.nn.Linear(1, 1), tmp_path / "model.pt"
    checkpoint.save_weights(network, WEIGHTS, path)
    assert training_of(path) == WEIGHTS
    assert torch.equal(load_weights(torch.nn.Linear(1, 1), path).weight, network.weight)
    checkpoint.save(network.state_dict(), path)  # a foreign file
    assert training_of(path) is None
    assert torch.equal(load_weights(torch.nn.Linear(1, 1), path).weight, network.weight)


NAMES = ("DOELLING_JANNECKE_19470213_MRN0042", "Doelling, Ruediger Maria 19561231 MRN0815", "ROEMER^ADELE", "SCHMIDT")
PARTS = (
    "doelling",
    "jannecke",
    "19470213",
    "mrn0042",
    "ruediger",
    "maria",
    "19561231",
    "mrn0815",
    "roemer",
    "adele",
    "schmidt",
)
"""Names, dates and record numbers as folders of a site have them, and what must not be read anywhere."""


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A site whose folders bear names, indexed with its key: folder, manifest, and the folder of a short training."""
    folder = tmp_path_factory.mktemp("site")
    write_em_patients(folder / "data", patients=4, sections=2, size=64, seed=1)
    for old, name in zip(sorted((folder / "data").iterdir()), NAMES, strict=True):
        old.rename(old.with_name(name))
    path = folder / "data" / "manifest.json"
    manifest = split_by_patient(index_phantom(folder / "data", key=b"k" * 32), (0.5, 0.25, 0.25), seed=3)
    manifests.write(manifest, path)
    settings = {"manifest": str(path), "output_dir": str(folder / "run"), "save_every": 1, "width": 4, "depth": 2}
    settings |= {"epochs": 1, "patch": 64, "patches_per_case": 1, "workers": 0, "amp": False, "log_model": False}
    bundle.run(bundle.find("neuron_em_segmentation"), "training", settings)
    return folder / "data", path, folder / "run"


@pytest.fixture
def evaluate(named, tmp_path, capsys, monkeypatch):
    """Run `overtile evaluate` on the test partition of a manifest: code, output, and its folder."""

    def call(manifest, *words):
        data, _, run = named
        fixed = ["--bundle", "neuron_em_segmentation", "--dataset-dir", data, "--checkpoint", run / "model.pt"]
        more = ["--output", tmp_path / "out", "--width", 4, "--depth", 2, *words]
        code, output = run_overtile(["evaluate", *fixed, "--manifest", manifest, *more], capsys, monkeypatch)
        return code, output, tmp_path / "out"

    return call


def refuse_names(folder):
    """Read every byte in a folder, and every row of its stores."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes().lower() + str(path.relative_to(folder)).lower().encode()
        if path.suffix == ".db":
            with sqlite3.connect(path) as store:
                content += "\n".join(store.iterdump()).lower().encode()
        assert [part for part in PARTS if part.encode() in content] == [], path


def test_nothing_that_a_training_writes_bears_a_name(named):
    _, path, run = named
    names = {file.name for file in run.rglob("*")}
    assert {"model.pt", "epoch_0001.pt", "last.pt", "mlflow.db", "config.json", "worst.png"} <= names
    refuse_names(run)
    manifest = manifests.read(path)
    for name in ("model.pt", "epoch_0001.pt", "last.pt"):
        record = training_of(run / name)
        assert record == training_record(manifest)
        assert record.items() >= manifest.split_digests().items()
        assert manifest.training[0].patient not in str(record)
    assert record["key"] == fingerprint(b"k" * 32)


def test_an_evaluation_says_what_it_knows_and_bears_no_name(named, evaluate):
    code, output, out = evaluate(named[1])
    assert code == 0, output
    assert "overlap with the release's training patients: none; with its training pixels: none" in output
    table = json.loads((out / "evaluation.json").read_text())
    assert table.items() >= manifests.read(named[1]).split_digests().items()
    refuse_names(out)


def test_a_patient_that_moved_into_the_test_is_refused_by_the_command(named, evaluate, tmp_path):
    def move(fields):
        fields["test"].append(fields["training"].pop())
        fields["training"] = [c for c in fields["training"] if c["patient"] != fields["test"][-1]["patient"]]

    moved = edited(named[1], tmp_path / "moved.json", move)
    code, output, out = evaluate(moved)
    case = manifests.read(moved).test[-1].id
    assert code == 1
    assert f"error: 1 of 3 cases to score were in the training partition of this checkpoint: {case} (its" in output
    assert not out.exists()


def test_a_failed_run_bears_no_name(named, evaluate):
    data, path, _ = named
    label = data / manifests.read(path).test[0].label
    whole = label.read_bytes()
    try:
        tifffile.imwrite(label, np.full_like(tifffile.imread(label), 7))
        code, output, out = evaluate(path)
    finally:
        label.write_bytes(whole)
    assert (code, "Doelling, Ruediger Maria 19561231 MRN0815/label.tif" in output) == (1, True)  # the terminal may
    with sqlite3.connect(out / "mlflow.db") as store:
        ((failure,),) = store.execute("select value from tags where key = 'failure'")
    assert "7" in failure
    refuse_names(out)
