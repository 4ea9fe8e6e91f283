from collections import Counter

import pytest

from pipeline.errors import DataError, InputError
from pipeline.manifest import Manifest
from pipeline.split import split_by_patient, split_by_section


def dataset(patients, sections=2, **partitions):
    def rows(names):
        return [
            {"id": f"{p}_{s}", "patient": p, "image": f"{p}.tif", "page": s} for p in names for s in range(sections)
        ]

    return Manifest(
        name="x", modality={"0": "EM"}, unassigned=rows(patients), **{k: rows(v) for k, v in partitions.items()}
    )


def homes(manifest):
    return {case.patient: name for name, case in manifest.cases()}


def test_fractions_of_twenty_patients():
    split = split_by_patient(dataset([f"p{n}" for n in range(20)]), (0.7, 0.15, 0.15), seed=1)
    assert Counter(homes(split).values()) == {"training": 14, "validation": 3, "test": 3}
    assert split.split == {"by": "patient", "seed": 1, "fractions": [0.7, 0.15, 0.15]}


def test_no_patient_is_in_two_partitions_and_none_is_lost():
    split = split_by_patient(dataset([f"p{n}" for n in range(7)], sections=5), (0.6, 0.2, 0.2), seed=3)
    assert all(len({name for name, case in split.cases() if case.patient == p}) == 1 for p in homes(split))
    assert len(list(split.cases())) == 35


def test_deterministic_whatever_the_order_of_the_files():
    names = [f"p{n}" for n in range(10)]
    forward, backward = (homes(split_by_patient(dataset(n), (0.7, 0.15, 0.15), seed=1)) for n in (names, names[::-1]))
    assert forward == backward
    assert forward != homes(split_by_patient(dataset(names), (0.7, 0.15, 0.15), seed=2))


def test_three_patients_fill_three_partitions():
    split = split_by_patient(dataset("abc"), (0.7, 0.15, 0.15), seed=1)
    assert Counter(homes(split).values()) == {"training": 1, "validation": 1, "test": 1}


def test_old_patients_stay_and_new_ones_fill_the_deficit():
    manifest = dataset(["new1", "new2"], training=["a", "b", "c", "d"], validation=["e"])
    after = homes(split_by_patient(manifest, (0.6, 0.2, 0.2), seed=1))
    assert [after[p] for p in "abcde"] == ["training"] * 4 + ["validation"]
    assert "test" in (after["new1"], after["new2"])


def test_a_new_case_of_an_old_patient_goes_where_the_patient_is():
    manifest = dataset([], test=["a"], training=["b"], validation=["c"])
    fields = manifest.model_dump(exclude_unset=True)
    fields["unassigned"] = [{"id": "late", "patient": "a", "image": "late.tif"}]
    split = split_by_patient(Manifest(**fields), (0.7, 0.15, 0.15), seed=1)
    assert "late" in [case.id for case in split.test]


@pytest.mark.parametrize(
    ("fractions", "sentence"),
    [
        ((0.7, 0.2, 0.2), "add up to 1, got 0.7 0.2 0.2"),
        ((1.2, -0.1, -0.1), "add up to 1"),
        ((float("nan"), 0.0, 0.0), "add up to 1"),
        ((0.0, 0.5, 0.5), "training partition needs a fraction above 0"),
    ],
)
def test_wrong_fractions(fractions, sentence):
    with pytest.raises(InputError, match=sentence):
        split_by_patient(dataset("abc"), fractions, seed=1)


def test_fewer_patients_than_partitions_is_refused():
    with pytest.raises(InputError, match="2 patients cannot fill 3 partitions: add patients, or set a fraction to 0"):
        split_by_patient(dataset("ab"), (0.7, 0.15, 0.15), seed=1)


def test_training_is_never_left_empty():
    split = split_by_section(dataset(["s"], sections=6), (0.2, 0.4, 0.4), gap=1, because="x")
    assert [len(split.partition(name)) for name in ("training", "validation", "test")] == [1, 1, 2]


def test_nothing_to_deal_changes_nothing():
    split = split_by_patient(dataset("abcd"), (0.5, 0.25, 0.25), seed=1)
    assert split_by_patient(split, (1.0, 0.0, 0.0), seed=9) == split


def test_by_section_leaves_a_gap_between_contiguous_blocks():
    split = split_by_section(dataset(["s"], sections=25), (0.6, 0.2, 0.2), gap=1, because="one specimen")
    pages = {name: [case.page for case in split.partition(name)] for name in ("training", "validation", "test")}
    assert pages == {"training": [*range(13)], "validation": [*range(14, 19)], "test": [*range(20, 25)]}
    assert [case.page for case in split.unassigned] == [13, 19]
    assert split.split["because"] == "one specimen"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"gap": 1, "because": " "}, "leaks unless there is a reason"),
        ({"gap": 0, "because": "x"}, "--gap must be at least 1"),
        ({"gap": 12, "because": "x"}, "25 sections are too few for 3 blocks with gaps of 12"),
    ],
)
def test_by_section_needs_a_reason_a_gap_and_sections(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        split_by_section(dataset(["s"], sections=25), (0.6, 0.2, 0.2), **arguments)


def test_a_manifest_keeps_its_kind_of_split():
    by_patient = split_by_patient(dataset("abc"), (0.7, 0.15, 0.15), seed=1)
    with pytest.raises(InputError, match="split by patient: index it anew"):
        split_by_section(by_patient, (0.6, 0.2, 0.2), gap=1, because="x")


def columned(values, column="sex", **rest):
    """One case per patient, patient -> value of the column; None: the column is empty."""
    rows = [{"id": p, "patient": p, "image": "x.tif", column: value, **rest} for p, value in values.items()]
    return Manifest(name="x", modality={"0": "MR"}, unassigned=rows)


def test_stratified_partitions_have_their_share_of_every_value():
    values = {f"p{n}": ("F", "M", None)[min(n // 10, 2)] for n in range(24)}
    split = split_by_patient(columned(values), (0.5, 0.25, 0.25), seed=1, stratify="sex")
    counts = Counter((values[patient], name) for patient, name in homes(split).items())
    assert counts[None, "training"] == 2
    assert counts[None, "validation"] == counts[None, "test"] == 1
    assert counts["F", "training"] == counts["M", "training"] == 5
    assert Counter(homes(split).values()) == {"training": 12, "validation": 6, "test": 6}
    assert split.split == {"by": "patient", "seed": 1, "fractions": [0.5, 0.25, 0.25], "stratify": "sex"}


def test_a_column_that_nobody_has_lists_those_there_are():
    manifest = columned({"a": "F", "b": "M", "c": "M"}, institution="CS", fold=None)
    with pytest.raises(InputError, match="no column 'age' to stratify by; there is institution, sex$"):
        split_by_patient(manifest, (0.7, 0.15, 0.15), seed=1, stratify="age")


def test_a_patient_of_two_values_is_named_one_of_a_value_and_none_is_not():
    def manifest(*values):
        rows = [{"id": f"a{n}", "patient": "a", "image": "x", "sex": value} for n, value in enumerate(values)]
        return Manifest(name="x", modality={"0": "MR"}, unassigned=rows)

    with pytest.raises(DataError, match="patient 'a' has two values in 'sex', 'F' and 'M'"):
        split_by_patient(manifest("F", None, "M"), (1, 0, 0), seed=1, stratify="sex")
    assert len(split_by_patient(manifest(None, "F", None), (1, 0, 0), seed=1, stratify="sex").training) == 3


def test_a_dataset_without_patients_is_split_by_image():
    manifest = dataset("abcd", sections=1).model_copy(update={"split": {"by": "image"}})
    assert split_by_patient(manifest, (0.5, 0.25, 0.25), seed=1).split["by"] == "image"
