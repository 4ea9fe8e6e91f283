"""Folds of a manifest: `m.json#2` is a manifest with partitions, and every place that takes a path takes it."""

import shutil
from collections import Counter

import pytest
from monai.bundle import ConfigParser

from pipeline import bundle
from pipeline import manifest as manifests
from pipeline.audit import audit, checked_cases
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.split import split_by_patient, split_into_folds
from pipeline.weights import training_class_weights
from tests.conftest import index_phantom


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


def test_names_with_the_mark_survive_monai(nine, tmp_path):
    (tmp_path / "a#b").mkdir()
    for name in ("m.json", "m#2.json"):
        path = tmp_path / "a#b" / name
        path.write_text(nine.read_text())
        for given in (path, f"{path}#2"):
            parser = ConfigParser({"manifest": str(given)})
            rewritten = parser.get_parsed_content("manifest")
            assert manifests.read(rewritten) == manifests.read(given)
            assert manifests.folder_of(rewritten) == tmp_path / "a#b"


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


def dataset(count, stratum=lambda n: "FM"[n % 2], rows=()):
    """Patients p0, p1, ... of two cases each, with a column `sex`, after the cases of `rows`."""
    new = [
        {"id": f"p{n}_{s}", "patient": f"p{n}", "image": "x.tif", "sex": stratum(n)}
        for n in range(count)
        for s in range(2)
        if f"p{n}_{s}" not in {row["id"] for row in rows}
    ]
    return Manifest(name="x", modality={"0": "MR"}, unassigned=[*rows, *new])


def folds_of(manifest):
    """Patient -> its folds, of all its cases."""
    found = {}
    for case in manifest.unassigned:
        found.setdefault(case.patient, set()).add(case.fold)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_five_folds_divide_the_patients_and_no_patient(seed):
    manifest = split_into_folds(dataset(23), 5, seed)
    assert manifest.split == {"by": "patient", "folds": 5, "seed": seed, "stratify": None, "validation": 0.125}
    assert all(len(found) == 1 for found in folds_of(manifest).values())
    assert sorted(Counter(min(found) for found in folds_of(manifest).values()).values()) == [4, 4, 5, 5, 5]
    views = [manifests.one_fold(manifest, fold) for fold in range(1, 6)]
    assert Counter(p for view in views for p in patients(view, "test")) == {f"p{n}": 1 for n in range(23)}
    for view in views:
        parts = [patients(view, name) for name in manifests.PARTITIONS]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 23
        assert len(parts[1]) == 2  # an eighth of 18 or 19
        assert sum(len(view.partition(name)) for name in manifests.PARTITIONS) == 46


@pytest.mark.parametrize("seed", range(10))
def test_stratified_folds_differ_by_one_patient_of_every_value(seed):
    manifest = split_into_folds(dataset(23, lambda n: "ABBCCCC"[n % 7]), 5, seed, stratify="sex")
    held = Counter((case.sex, case.fold) for case in manifest.unassigned if case.id.endswith("_0"))
    for value in "ABC":
        counts = [held[value, fold] for fold in range(1, 6)]
        assert max(counts) - min(counts) <= 1


def test_a_seed_makes_the_folds_whatever_the_order_of_the_files():
    manifest = dataset(20)
    backward = manifest.model_copy(update={"unassigned": manifest.unassigned[::-1]})
    forward = folds_of(split_into_folds(manifest, 5, 1))
    assert folds_of(split_into_folds(backward, 5, 1)) == forward
    assert folds_of(split_into_folds(manifest, 5, 2)) != forward


def test_the_seed_and_the_fold_choose_who_validates():
    fields = dataset(40).model_dump(exclude_unset=True)
    rows = [row | {"fold": 1} for row in fields["unassigned"]]

    def validating(seed, number):
        record = {"by": "patient", "folds": 3, "seed": seed, "validation": 0.5}
        view = manifests.one_fold(Manifest(**(fields | {"split": record, "unassigned": rows})), number)
        return patients(view, "validation")

    assert len(validating(1, 2)) == 20
    assert validating(1, 2) != validating(2, 2)
    assert validating(1, 2) != validating(1, 3)


def test_new_patients_are_dealt_and_the_old_keep_their_folds():
    before = split_into_folds(dataset(10), 5, 1)
    grown = dataset(15, rows=before.model_dump(exclude_unset=True)["unassigned"]).model_copy(
        update={"split": before.split}
    )
    after = split_into_folds(grown, 5, 1)
    assert folds_of(after).items() >= folds_of(before).items()
    assert set(Counter(min(found) for found in folds_of(after).values()).values()) == {3}
    assert split_into_folds(after, 5, 1) is after


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"folds": 4}, "split with --folds 5 --seed 1 --validation 0.125: say the same"),
        ({"seed": 2}, "split with --folds 5 --seed 1"),
        ({"stratify": "sex"}, "split with --folds 5 --seed 1"),
        ({"validation": 0.2}, "split with --folds 5 --seed 1"),
    ],
)
def test_folds_are_not_dealt_again_otherwise(change, sentence):
    folded = split_into_folds(dataset(10), 5, 1)
    with pytest.raises(InputError, match=sentence):
        split_into_folds(folded, **({"folds": 5, "seed": 1} | change))


def test_a_column_of_the_same_name_is_not_overwritten():
    fields = dataset(4).model_dump(exclude_unset=True)
    fields["unassigned"][0]["fold"] = "left lung"
    with pytest.raises(InputError, match="a column 'fold' already: give it another name in the recipe"):
        split_into_folds(Manifest(**fields), 4, 1)


def test_partitions_and_folds_exclude_each_other():
    folded = split_into_folds(dataset(10), 5, 1)
    with pytest.raises(InputError, match="split into 5 folds: say --folds 5 to deal new patients"):
        split_by_patient(folded, (0.7, 0.15, 0.15), 1)
    with pytest.raises(InputError, match="has partitions already: index it anew"):
        split_into_folds(split_by_patient(dataset(10), (0.7, 0.15, 0.15), 1), 5, 1)
    with pytest.raises(InputError, match="this is fold 2 of a manifest: split deals the whole one"):
        split_into_folds(manifests.one_fold(folded, 2), 5, 1)


@pytest.mark.parametrize(
    ("patients", "folds", "validation", "sentence"),
    [
        (4, 5, 0.1, "4 patients are too few for 5 folds"),
        (3, 2, 0.1, "3 patients are too few for 2 folds: every fold needs one to test, and two others"),
        (9, 1, 0.1, "--folds must be at least 2, got 1"),
        (9, 3, 1.0, "--validation must be a share between 0 and 1, got 1"),
        (9, 3, float("nan"), "--validation must be a share between 0 and 1, got nan"),
    ],
)
def test_folds_that_cannot_be(patients, folds, validation, sentence):
    with pytest.raises(InputError, match=sentence):
        split_into_folds(dataset(patients), folds, 1, validation=validation)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_neither_training_nor_validation_is_empty(share):
    view = manifests.one_fold(split_into_folds(dataset(4), 4, 1, validation=share), 1)
    assert all(patients(view, name) for name in manifests.PARTITIONS)


@pytest.fixture
def folded(phantom_dir, tmp_path, overtile):
    """The four phantom patients in four folds, and what the command said."""
    path = tmp_path / "m.json"
    manifests.write(index_phantom(phantom_dir), path)
    return path, overtile("split", path, "--folds", 4)


def test_the_command_deals_folds_and_an_audit_takes_one(folded, phantom_dir, overtile):
    path, (code, output) = folded
    assert code == 0
    assert [line.split() for line in output.splitlines()] == [
        ["partition", "cases", "patients"],
        *(["fold", str(fold), "3", "1"] for fold in range(1, 5)),
        [
            *["12", "cases", "dealt", "by", "patient;", "every", "earlier", "one", "kept", "its", "fold", "->"],
            str(path),
        ],
    ]
    for name in (path, f"{path}#2"):
        code, output = overtile("audit", name, "--dataset-dir", phantom_dir)
        assert (code, output.splitlines()[-1]) == (0, f"0 errors, 0 warnings in {name}")


def test_a_bundle_trains_on_a_fold(folded, phantom_dir, monkeypatch):
    path, _ = folded
    folder = bundle.find("neuron_em_segmentation")
    monkeypatch.chdir(folder)
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "train.yaml"))
    parser.update({"manifest": f"{path}#2", "dataset_dir": str(phantom_dir)})
    view = manifests.read(f"{path}#2")
    for section, name in (("train", "training"), ("validate", "validation")):
        items = parser.get_parsed_content(f"{section}#data")
        assert [item["id"] for item in items] == [case.id for case in view.partition(name)]
    assert manifests.read(parser.get_parsed_content("manifest")).digest() == view.digest()


def test_an_audit_of_the_plain_file_finds_equal_pixels_in_two_folds(folded, phantom_dir):
    path, _ = folded
    fields = manifests.read(path).model_dump(exclude_unset=True)
    one, other = fields["unassigned"][0], fields["unassigned"][3]
    other["pixels"] = one["pixels"]
    found = audit(Manifest(**fields), phantom_dir, thorough=False)
    message = f"{one['id']} in fold {one['fold']} and {other['id']} in fold {other['fold']} have the same pixels"
    assert [(finding.severity, finding.message) for finding in found] == [("error", message)]


def test_a_case_that_lost_its_file_keeps_its_fold(folded, phantom_dir, tmp_path):
    path, _ = folded
    site = shutil.copytree(phantom_dir, tmp_path / "site")
    shutil.rmtree(site / "patient-01")
    with pytest.raises(InputError, match="3 cases that have a partition were not found again, patient-01_000 first"):
        index_phantom(site, previous=path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--folds", 4, "--fractions", 0.7, 0.15, 0.15], "with --folds say --validation"),
        (["--validation", 0.2], "--validation goes with --folds"),
        (["--by", "section", "--folds", 4, "--because", "x"], "sections are not dealt, they are cut"),
    ],
)
def test_options_that_would_do_nothing(phantom_manifest, overtile, words, sentence):
    code, output = overtile("split", phantom_manifest, *words)
    assert code == 2
    assert sentence in output
