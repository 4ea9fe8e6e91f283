import sys
import types

import numpy as np
import pytest
from PIL import Image

from pipeline import manifest as manifests
from pipeline.errors import DataError, InputError
from pipeline.grouping import group_by_cluster
from pipeline.index import index
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.split import split_by_patient, split_into_folds

WHY = "the archive names no patient"


def images(names, split=None, **partitions):
    """Images that are each a patient of their own."""

    def rows(those):
        return [{"id": name, "patient": name, "image": f"{name}.png"} for name in those]

    homes = {name: rows(those) for name, those in partitions.items()}
    return Manifest(name="x", modality={"0": "light"}, split=split, unassigned=rows(names), **homes)


def clusters(*words):
    """clusters("ab", "c"): a and b are near-duplicates."""
    return {case: f"cluster {number}" for number, word in enumerate(words) for case in word}


def patients(manifest):
    return {case.id: case.patient for _, case in manifest.cases()}


def grouped(manifest, *words):
    return group_by_cluster(manifest, clusters(*words), WHY)


def test_a_cluster_stands_where_a_patient_would():
    manifest = grouped(images("abcdef", {"by": "image"}), "ad", "b", "cef")
    assert patients(manifest) == {"a": "a", "d": "a", "b": "b", "c": "c", "e": "c", "f": "c"}
    assert manifest.split == {"by": "cluster", "because": WHY}
    assert manifests.unit_name(manifest) == "cluster"
    split = split_by_patient(manifest, (0.4, 0.3, 0.3), 1, by="cluster")
    assert sorted(len({case.patient for case in split.partition(name)}) for name in manifests.PARTITIONS) == [1, 1, 1]
    assert split.split == {"by": "cluster", "because": WHY, "seed": 1, "fractions": [0.4, 0.3, 0.3]}


def test_clusters_are_dealt_to_folds():
    manifest = split_into_folds(grouped(images("abcdef"), "ad", "b", "c", "e", "f"), 3, 1, by="cluster")
    assert len({case.fold for case in manifest.unassigned if case.id in "ad"}) == 1
    assert manifest.split["because"] == WHY


def test_a_new_image_joins_the_cluster_and_the_partition_of_its_near_duplicate():
    before = images("yn", {"by": "cluster"}, training="az", test="m")
    manifest = grouped(before, "a", "zy", "m", "n")
    assert patients(manifest) == {"a": "a", "z": "z", "y": "z", "m": "m", "n": "n"}
    split = split_by_patient(manifest, (0.5, 0.0, 0.5), 1, by="cluster")
    assert "y" in [case.id for case in split.training]


def test_what_was_one_cluster_stays_one_and_clusters_of_one_partition_may_join():
    before = grouped(images("abc"), "ab", "c")
    assert patients(grouped(before, "a", "b", "c")) == patients(before)
    chain = grouped(images("amn"), "mn", "a")
    assert set(patients(grouped(chain, "na", "m")).values()) == {"a"}
    joined = grouped(images("n", {"by": "cluster"}, training="ab"), "anb")
    assert set(patients(joined).values()) == {"a"}


@pytest.mark.parametrize("how", ["partitions", "folds"])
def test_a_new_image_between_two_partitions_is_refused(how):
    if how == "partitions":
        before = images("n", {"by": "cluster"}, training="a", test="b")
    else:
        dealt = split_into_folds(grouped(images("abcd"), *"abcd"), 4, 1, by="cluster")
        late = manifests.Case(id="n", patient="n", image="n.png")
        before = dealt.model_copy(update={"unassigned": [*dealt.unassigned, late]})
    with pytest.raises(DataError, match=r"'a' in .* and 'b' in .* near-duplicates, by way of 'n': take the new images"):
        grouped(before, "anb")


@pytest.mark.parametrize(
    ("manifest", "because", "sentence"),
    [
        (images("ab"), " ", 'say --because "..." no patient is known'),
        (images("ab", {"by": "patient"}), WHY, "split by patient already: index it anew to split it by cluster"),
        (images("", {"by": "image"}, training="a"), WHY, "split by image already"),
    ],
)
def test_what_is_not_grouped(manifest, because, sentence):
    with pytest.raises(InputError, match=sentence):
        group_by_cluster(manifest, clusters("ab"), because)


def test_patients_that_are_known_are_not_grouped_away(phantom_manifest):
    fields = manifests.read(phantom_manifest).model_dump(exclude_unset=True)
    rows = [row for name in manifests.PARTITIONS for row in fields.pop(name)]
    with pytest.raises(InputError, match="knows 4 patients of its 12 cases: split it by patient"):
        group_by_cluster(Manifest(**(fields | {"unassigned": rows, "split": None})), {}, WHY)


def test_the_command_by_cluster_keeps_the_clusters_when_images_are_indexed_anew(tmp_path, overtile, monkeypatch):
    stub = types.SimpleNamespace(clusters=lambda manifest, root, progress: {c.id: c.id[0] for _, c in manifest.cases()})
    monkeypatch.setitem(sys.modules, "pipeline.duplicates", stub)
    path, recipe = tmp_path / "m.json", Recipe(name="x", image="{case}.png", patients_unknown=True)
    words = ["split", path, "--by", "cluster", "--because", WHY, "--fractions", 0.4, 0.3, 0.3]

    def add(*names):
        for name in names:
            Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / f"{name}.png")
        manifests.write(index(tmp_path, recipe, previous=path), path)

    add("a1", "a2", "b1", "b2", "c1")
    code, output = overtile(*words)
    assert code == 0
    assert output.splitlines()[0].split() == ["partition", "cases", "clusters"]
    assert output.splitlines()[-1] == f"5 cases dealt by cluster; every earlier one kept its partition -> {path}"
    before = manifests.read(path)
    add("b0")
    assert patients(before).items() <= patients(manifests.read(path)).items()
    assert overtile(*words)[0] == 0
    after = manifests.read(path)
    assert patients(after) == patients(before) | {"b0": "b1"}
    assert [name for name, case in after.cases() if case.id == "b0"] == [n for n, c in before.cases() if c.id == "b1"]
    code, output = overtile("split", path)
    assert (code, output.splitlines()[-1][:64]) == (
        2,
        "error: this manifest is split by cluster: say --by cluster to de",
    )
