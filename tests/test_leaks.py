import numpy as np
import pytest
import tifffile

from pipeline.errors import DataError
from pipeline.index import index
from pipeline.leaks import declared_leaks
from pipeline.manifest import Case, Manifest
from pipeline.provenance import refuse_overlap, training_record
from pipeline.recipe import Recipe


def case(name, **fields):
    return {"id": name, "patient": name, "image": f"{name}.png"} | fields


def leaks(split=None, pseudonyms=None, **partitions):
    manifest = Manifest(name="x", modality={"0": "x"}, split=split, pseudonyms=pseudonyms, **partitions)
    return {(finding.severity, finding.rule, finding.case) for finding in declared_leaks(manifest)}


FOLDS = {"by": "patient", "folds": 2, "seed": 1, "validation": 0.5}


def test_strangers_in_two_partitions_are_no_leak():
    assert (
        leaks(training=[case("a", study="s")], test=[case("b", study="t")], unassigned=[case("c", study="s")]) == set()
    )


def test_one_study_under_two_patients_in_two_partitions():
    found = leaks(training=[case("a", study="s")], validation=[case("b", study="s")])
    assert found == {("error", "study in two partitions", "s")}


def test_folds_leak_as_partitions_do():
    rows = [case("a", patient="p", fold=1), case("b", patient="p", fold=2), case("c", study="s", fold=1)]
    rows += [case("d", study="s", pixels="same", fold=2), case("e", pixels="same", fold=1)]
    assert leaks(FOLDS, unassigned=rows) == {
        ("error", "patient in two folds", "p"),
        ("error", "study in two folds", "s"),
        ("error", "equal pixels in two folds", "e"),
    }


def test_what_is_not_divided_is_called_what_it_is():
    found = leaks({"by": "cluster"}, training=[case("a", patient="c")], test=[case("b", patient="c")])
    assert found == {("error", "cluster in two partitions", "c")}


@pytest.mark.parametrize("other", ["tcga-cs-4941", "TCGA CS 4941", "TCGA_CS_04941"])
def test_one_patient_under_two_spellings(other):
    rule = ("error", "one patient under two spellings?", "-")
    assert leaks(training=[case("TCGA_CS_4941")], test=[case(other)]) == {rule}
    assert leaks(training=[case("TCGA_CS_4942")], test=[case(other)]) == set()


def test_pseudonyms_images_and_clusters_have_no_spelling():
    rows = [case("a", patient="P-0123456789ab"), case("b", patient="P-123456789ab0")]
    assert leaks(unassigned=rows) == set()
    spelt = [case("X-1"), case("x1")]
    assert leaks(unassigned=spelt, pseudonyms="key:0123456789ab") == set()
    assert leaks({"by": "image"}, unassigned=spelt) == set()
    assert leaks(unassigned=spelt) != set()


def test_black_slices_of_two_patients_are_no_leak(tmp_path):
    for patient in "ab":
        tifffile.imwrite(tmp_path / f"{patient}.tif", np.zeros((8, 8), np.uint8))
    found = index(tmp_path, Recipe(name="x", image="{patient}.tif"))
    assert {case.pixels for case in found.unassigned} == {"blank 0"}
    first, second = found.unassigned
    dealt = found.model_copy(update={"unassigned": [], "training": [first], "test": [second]})
    assert list(declared_leaks(dealt)) == []
    assert refuse_overlap(training_record(dealt), dealt, "test")["overlap_with_training_pixels"] == "none"


def test_a_cluster_that_was_trained_on_is_not_scored():
    cases = [Case(id=name, patient="cluster of a", image=f"{name}.png", pixels=name * 64) for name in "ab"]
    trained = Manifest(name="x", modality={"0": "grey"}, split={"by": "cluster"}, training=cases[:1])
    scored = trained.model_copy(update={"training": [], "test": cases[1:]})
    with pytest.raises(DataError, match=r"b \(its cluster\)"):
        refuse_overlap(training_record(trained), scored, "test")
