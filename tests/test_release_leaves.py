"""A release may leave the site: whoever unpacks it finds nothing of a patient, of their images, or of the site."""

import getpass
import json
import platform
from zipfile import ZipFile

import pytest
import torch

from pipeline import bundle
from pipeline.digests import file_digest
from pipeline.manifest import read
from pipeline.release import release
from tests.byte_search import found

EM = bundle.find("neuron_em_segmentation")
SHORT = 4
"""Letters of a computer's or an account's name that stand in any file."""

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".dcm", ".nii", ".gz", ".html")


def evaluated(weights_sha256, patients):
    """An evaluation of some patients, in the few keys that a release reads, and names that it must not tell."""
    people = [f"PSEUDONYM-{number:02d}" for number in range(patients)]
    scores = {"dice": {"membrane": 0.812345}, "interval_95": {"dice": {"membrane": [0.79, 0.83]}}}
    return {
        "partition": "test",
        "unit": "patient",
        "classes": ["cell", "membrane"],
        "checkpoint_sha256": weights_sha256,
        "manifest": "heads of the clinic",
        "manifest_sha256": "5d" * 32,
        "overlap_with_training_patients": "none",
        "overlap_with_training_pixels": "none",
        "summary": {"network": scores},
        "patients": [{"patient": name, "cases": 1, "network": {"dice": {"membrane": 0.987654}}} for name in people],
        "cases": [{"id": f"{name}/case", "patient": name} for name in people],
    }


@pytest.fixture(scope="module")
def secrets(trained, phantom_manifest):
    """All that says who they were: names of patients and cases, digests of them and of their images, paths."""
    record = torch.load(trained / "model.pt", weights_only=True)["training"]
    manifest = read(phantom_manifest)
    cases = [case for _, case in manifest.cases()]
    texts = {case.patient for case in cases} | {case.id for case in cases} | {case.image for case in cases}
    texts |= {digest for case in cases for digest in (case.sha256, case.pixels, case.label_sha256) if digest}
    texts |= {digest for name in ("training", "validation") for part in record[name].values() for digest in part}
    texts |= {record[key] for key in ("patients_sha256", "pixels_sha256", "manifest_sha256")}
    texts |= {str(phantom_manifest.parent), str(trained), "heads of the clinic", "5d" * 32, "PSEUDONYM"}
    names = {name for name in (platform.node(), getpass.getuser()) if len(name) > SHORT}
    return sorted(texts | names)


def members(release):
    """What is in a release, by name, but for the wheel: that holds the package and nothing else (test_wheel_file)."""
    with ZipFile(release) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(".whl")}


@pytest.mark.parametrize("patients", [0, 4, 5])
def test_figures_are_of_five_patients_or_more(trained, secrets, tmp_path, patients):
    table = evaluated(file_digest(trained / "model.pt"), patients) if patients else None
    held = members(release(EM, trained, tmp_path, key=tmp_path / "site.key", evaluation=table))
    card, metadata = (held[f"{EM.name}/{file}"].decode() for file in ("docs/README.md", "configs/metadata.json"))
    assert ("0.812" in card, "0.8123" in metadata) == (patients == 5, patients == 5)
    assert "0.98" not in card + metadata  # a single patient's
    assert json.loads(metadata)["eval_metrics"].get("patients") == (5 if patients == 5 else None)
    assert found([card.encode(), metadata.encode()], secrets) == []


def test_no_byte_of_it_tells_of_anybody(released, secrets):
    assert len(secrets) > 40
    held = members(released)
    assert found([*held.values(), *map(str.encode, held)], secrets) == []


def test_the_only_picture_is_the_synthetic_one(released):
    assert [name for name in members(released) if name.endswith(PICTURES)] == [f"{EM.name}/reference/image.tif"]


def test_no_date_tells_when_it_was_made(released):
    with ZipFile(released) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_search_finds_what_a_release_must_not_hold(trained, secrets):
    """The training's own file would not pass."""
    assert found([(trained / "model.pt").read_bytes()], secrets)
