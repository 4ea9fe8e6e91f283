"""Folders of volumes as the Decathlon and nnU-Net lay them out become manifests as they are."""

import json

import nibabel as nib
import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline.audit import audit
from pipeline.duplicates import clusters, planes
from pipeline.index import index
from pipeline.recipe import recipe
from pipeline.split import split_by_patient

MSD = {
    "name": "Hippo",
    "licence": "CC-BY-SA 4.0",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "anterior", "2": "posterior"},
    "numTraining": 3,
    "training": [{"image": f"./imagesTr/case{n}.nii.gz", "label": f"./labelsTr/case{n}.nii.gz"} for n in range(3)],
}
NNUNET = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "tumour": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def save(array, path, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    nib.save(image, path)


def write(root, told, ending="", labels=3):
    rng = np.random.default_rng(0)
    channels = len(told.get("channel_names") or told["modality"])
    for n in range(3):
        for c in range(channels):
            number = f"_{c:04d}" if ending else ""
            volume = rng.integers(0, 999, (7, 6, 5), dtype=np.int16)
            save(volume, root / f"imagesTr/case{n}{number}.nii.gz")
        label = (np.arange(210).reshape(7, 6, 5) % labels).astype(np.uint8)
        save(label, root / f"labelsTr/case{n}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(told))


def test_the_decathlons_description_is_all_that_is_needed(overtile, tmp_path):
    write(tmp_path, MSD)
    code, said = overtile("index", tmp_path, "--patients-unknown", "--public", "--out", tmp_path / "m.json")
    found = manifests.read(tmp_path / "m.json")
    assert (code, "3 cases of unknown patients" in said) == (0, True)
    assert (found.name, found.licence, found.modality) == ("Hippo", "CC-BY-SA 4.0", {"0": "MRI"})
    assert found.label_values == {"0": 0, "1": 1, "2": 2}
    assert [case.image for case in found.unassigned] == [f"imagesTr/case{n}.nii.gz" for n in range(3)]
    assert [f.rule for f in audit(found, tmp_path)] == ["unassigned cases"]


def test_the_channels_of_nnunet_are_files_of_one_case(overtile, tmp_path):
    write(tmp_path, NNUNET, ending="_0000", labels=2)
    words = ("--patients-unknown", "--public", "--name", "brain")
    assert overtile("index", tmp_path, *words, "--out", tmp_path / "m.json")[0] == 0
    found = manifests.read(tmp_path / "m.json")
    assert found.modality == {"0": "T1", "1": "FLAIR"}
    assert found.unassigned[1].image == ["imagesTr/case1_0000.nii.gz", "imagesTr/case1_0001.nii.gz"]
    assert [f.rule for f in audit(found, tmp_path)] == ["unassigned cases"]

    (tmp_path / "imagesTr/case1_0001.nii.gz").unlink()
    code, said = overtile("index", tmp_path, *words, "--out", tmp_path / "n.json")
    assert (code, "case1_0000.nii.gz: channels [0] of its case are there, other cases have [0, 1]" in said) == (2, True)


def test_a_patient_is_read_out_of_a_name_only_as_declared(overtile, tmp_path):
    write(tmp_path, MSD)
    code, said = overtile("index", tmp_path, "--public", "--out", tmp_path / "m.json")
    assert code == 2
    assert "--patients-unknown" in said
    words = ("--patient-id", r"(?P<patient>case)(?P<study>\d)", "--public")
    assert overtile("index", tmp_path, *words, "--out", tmp_path / "m.json")[0] == 0
    cases = manifests.read(tmp_path / "m.json").unassigned
    assert ({case.patient for case in cases}, len({case.study for case in cases})) == ({"CASE"}, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": None}, "it has no `labels`"),
        ({"labels": {"whole": [1, 2], "background": 0}}, "'whole' is no single number"),
        ({"numTraining": 4}, "says 4 training cases, labelsTr holds 3"),
        ({"training": [{"image": "i", "label": "labelsTr/x.nii.gz"}]}, "names labelsTr/x.nii.gz, which is not there"),
        ({"file_ending": ".mha"}, r"no file imagesTr/\*.mha"),
    ],
)
def test_a_description_that_is_not_true_is_refused(overtile, tmp_path, change, sentence):
    import re

    write(tmp_path, MSD | change)
    code, said = overtile("index", tmp_path, "--patients-unknown", "--public", "--out", tmp_path / "m.json")
    assert code == 2
    assert re.search(sentence, said)
    assert not (tmp_path / "m.json").exists()


def indexed(root):
    plan = {"name": "v", "image": "i/{case}.nii", "label": "l/{case}.nii", "classes": [("a", 0), ("b", 1)]}
    return index(root, recipe(plan | {"patients_unknown": True}))


def head(seed, shape=(24, 28, 20)):
    """A smooth asymmetric thing: white noise has no edges that two copies could share."""
    from scipy.ndimage import gaussian_filter

    return (1000 * gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)).astype(np.int16)


def test_copies_of_a_volume_stay_together_however_they_are_stored(tmp_path):
    label = np.zeros((24, 28, 20), np.uint8)
    label[3:9] = 1
    for name, volume in {"a": head(1), "b": head(2), "mirrored": head(1)[::-1] + 50}.items():
        save(volume, tmp_path / f"i/{name}.nii")
        save(label, tmp_path / f"l/{name}.nii")
    groups = clusters(indexed(tmp_path), tmp_path)
    assert groups["a"] == groups["mirrored"] != groups["b"]


def test_the_same_volume_along_other_axes_has_the_same_digest(tmp_path):
    label = np.zeros((24, 28, 20), np.uint8)
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = 23
    save(head(1), tmp_path / "i/a.nii")
    save(head(1)[::-1], tmp_path / "i/b.nii", turned)
    save(label, tmp_path / "l/a.nii")
    save(label, tmp_path / "l/b.nii", turned)
    one, other = indexed(tmp_path).unassigned
    assert one.pixels == other.pixels
    assert one.sha256 != other.sha256


def test_left_and_right_alike_in_a_picture_of_planes():
    volume = head(3)[None].astype(np.float32)
    np.testing.assert_array_equal(planes(volume[:, ::-1]), planes(volume)[:, ::-1])
    assert planes(volume).shape == (28 + 20, 24)


def test_the_audit_names_both_affines_of_a_label_that_lies_elsewhere(tmp_path):
    moved = np.eye(4)
    moved[2, 3] = 5
    for name in "abc":
        save(head(ord(name)), tmp_path / f"i/{name}.nii")
        save((head(1) > 0).astype(np.uint8), tmp_path / f"l/{name}.nii", moved if name == "b" else None)
    save(np.full((24, 28, 20), np.nan, np.float32), tmp_path / "i/c.nii")
    found = split_by_patient(indexed(tmp_path), (0.4, 0.3, 0.3), 1, by="image")
    for thorough, bad in (
        (False, {("different grids", "b")}),
        (True, {("different grids", "b"), ("NaN or infinity", "c")}),
    ):
        errors = [f for f in audit(found, tmp_path, thorough=thorough) if f.severity == "error"]
        assert {(f.rule, f.case) for f in errors} == bad
        assert len(errors) == len(bad)
        affines = "corners 5 voxels apart; affines [1 0 0 0; 0 1 0 0; 0 0 1 0] and [1 0 0 0; 0 1 0 0; 0 0 1 5]"
        assert any(affines in error.message for error in errors)
