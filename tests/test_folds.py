"""Folds of a manifest: `m.json#2` is a manifest with partitions, and every place that takes a path takes it."""

import pytest
from monai.bundle import ConfigParser

from pipeline import manifest as manifests
from pipeline.audit import checked_cases
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.weights import training_class_weights


@pytest.fixture
def nine(tmp_path):
    """Patients p0 ... p8 with two cases each, in three folds of three: p0, p3 and p6 are fold 1."""
    record = {"by": "patient", "folds": 3, "seed": 1, "stratify": None, "validation": 0.3}
    rows = [
        {"id": f"p{n}_{s}", "patient": f"p{n}", "image": f"p{n}.tif", "page": s, "fold": n % 3 + 1}
        for n in range(9)
        for s in range(2)
    ]
    path = tmp_path / "m.json"
    manifests.write(Manifest(name="x", modality={"0": "EM"}, split=record, unassigned=rows), path)
    return path


def patients(manifest, name):
    return {case.patient for case in manifest.partition(name)}


def test_a_fold_is_the_test_partition_and_the_others_are_shared_out(nine):
    first, second, third = (manifests.read(f"{nine}#{fold}") for fold in (1, 2, 3))
    assert patients(first, "test") == {"p0", "p3", "p6"}
    assert patients(second, "test") == {"p1", "p4", "p7"}
    assert patients(third, "test") == {"p2", "p5", "p8"}
    for fold in (first, second, third):
        assert [len(fold.partition(name)) for name in ("training", "validation", "test", "unassigned")] == [8, 4, 6, 0]
        assert not patients(fold, "training") & patients(fold, "validation")
    assert second.split == manifests.read(nine).split | {"fold": 2}


def test_a_fold_has_digests_of_its_own_that_stay(nine):
    digests = {
        manifests.read(path).split_digests()["pixels_sha256"]
        for path in (nine, *(f"{nine}#{fold}" for fold in (1, 2, 3)))
    }
    assert len(digests) == 4
    assert manifests.read(f"{nine}#2").digest() == manifests.read(f"{nine}#2").digest()


def test_a_new_case_of_an_old_patient_is_unassigned_in_every_fold(nine):
    manifest = manifests.read(nine)
    late = manifests.Case(id="late", patient="p0", image="late.tif")
    manifests.write(manifest.model_copy(update={"unassigned": [*manifest.unassigned, late]}), nine)
    assert [case.id for case in manifests.read(f"{nine}#2").unassigned] == ["late"]


def test_the_mark_as_monai_writes_it(nine):
    parser = ConfigParser({"manifest": f"{nine}#2"})
    path = parser.get_parsed_content("manifest")
    assert path == f"{nine}::2"
    assert manifests.read(path) == manifests.read(f"{nine}#2")


@pytest.mark.parametrize(
    ("suffix", "sentence"),
    [
        ("#4", r"m\.json#4: there is no fold 4, only 3 folds"),
        ("#0", "there is no fold 0"),
        ("#two", "'two' is no number of a fold; write .*m.json#1"),
        ("#", "'' is no number"),
        ("#-1", "'-1' is no number"),
        ("x#1", "m.jsonx: no such manifest"),
    ],
)
def test_a_wrong_fold_is_a_sentence(nine, suffix, sentence):
    with pytest.raises(InputError, match=sentence):
        manifests.read(f"{nine}{suffix}")


def test_a_manifest_without_folds_has_no_second_one(phantom_manifest):
    with pytest.raises(InputError, match="json#2: this manifest is not split into folds; `overtile split --folds 5`"):
        manifests.read(f"{phantom_manifest}#2")


def test_a_file_whose_name_has_the_mark_is_itself(phantom_manifest, tmp_path):
    (tmp_path / "m.json#2").write_text(phantom_manifest.read_text())
    (tmp_path / "a#b").mkdir()
    (tmp_path / "a#b" / "m.json").write_text(phantom_manifest.read_text())
    for path in (tmp_path / "m.json#2", tmp_path / "a#b" / "m.json"):
        assert manifests.read(path) == manifests.read(phantom_manifest)


def test_who_wants_partitions_is_told_what_to_give(nine):
    sentence = r"m.json: this manifest is split into 3 folds: give .*m.json#1 ... .*m.json#3, or `overtile crossvalid"
    with pytest.raises(InputError, match=sentence):
        checked_cases(nine, None, "training", ["cell"], 1)
    with pytest.raises(InputError, match=sentence):
        training_class_weights(nine)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fold": 4}, "case 'p0_0' has fold 4: write a whole number from 1 to 3"),
        ({"fold": "1"}, "has fold '1'"),
        ({"fold": True}, "has fold True"),
    ],
)
def test_a_wrong_column_names_the_case(nine, change, sentence):
    fields = manifests.read(nine).model_dump(exclude_unset=True)
    fields["unassigned"][0] |= change
    with pytest.raises(ValueError, match=sentence):
        Manifest(**fields)
