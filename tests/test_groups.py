import math

import pytest

from pipeline.groups import MISSING, MIXED, RARE, Grouping, columns, grouping
from pipeline.manifest import Manifest


def of(*values):
    """One case per patient."""
    return {f"p{number}": [value] for number, value in enumerate(values)}


def sizes(values):
    found = grouping(values)
    assert isinstance(found, Grouping), found
    groups = list(found.of.values())
    return {name: groups.count(name) for name in found.shown()}


def test_small_groups_are_put_together():
    assert sizes(of(*"AAAAAABBBBBCCCDD")) == {"A": 6, "B": 5, RARE: 5}


def test_a_rest_that_stays_small_is_not_shown():
    assert sizes(of(*"AAAAAABBBBBC")) == {"A": 6, "B": 5}


def test_a_patient_whose_cases_differ_is_in_a_group_of_its_own():
    values = of(*"AAAAAABBBBB") | {f"m{number}": ["A", "B"] for number in range(5)} | {"a": ["A", None]}
    assert sizes(values) == {"A": 7, "B": 5, MIXED: 5}


def test_a_value_that_is_none_nan_or_said_to_be_unknown_is_not_stated():
    assert sizes(of(*"AAAAA", None, math.nan, "", "NA", " unknown ")) == {"A": 5, MISSING: 5}


def test_numbers_with_many_values_are_cut_at_quartiles():
    found = grouping(of(*range(30, 70, 2)))
    assert found.edges == (39.5, 49.0, 58.5)
    assert sizes(of(*range(30, 70, 2))) == {
        "up to 39.5": 5, "above 39.5 up to 49": 5, "above 49 up to 58.5": 5, "above 58.5": 5
    }  # fmt: skip


def test_fewer_patients_make_fewer_bands():
    assert sizes(of(*[n / 3 for n in range(12)])) == {"up to 1.83": 6, "above 1.83": 6}


def test_few_numbers_are_categories():
    found = grouping(of(*[10] * 5, *[2.0] * 5, *[1] * 5))
    assert found.shown() == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None, math.nan, ""], "no case states it"),
        ([f"name {n}" for n in range(20)], "an identifier"),
        ([20210300 + n for n in range(20)], "an identifier"),
        ([20210300.0 + n for n in range(20)], "an identifier"),
        ([f"{n:04d}" for n in range(20)], "an identifier"),
        ("AAAAAABB", "fewer than two groups of 5"),
        ("AAAAAAA", "fewer than two groups of 5"),
    ],
)
def test_a_column_without_groups_says_why(values, reason):
    assert reason in grouping(of(*values))


def test_columns_are_those_of_the_cases_asked_for_without_the_fold():
    case = {"image": "x", "sex": "F", "fold": 1}
    about = {"name": "m", "modality": {"0": "MR"}, "labels": {"0": "a", "1": "b"}}
    cases = [case | {"id": "a", "patient": "p"}, case | {"id": "b", "patient": "p", "site": "X"},
             case | {"id": "c", "patient": "q", "other": 1}]  # fmt: skip
    manifest = Manifest.model_validate(about | {"unassigned": cases})
    assert columns(manifest, {"a": "p", "b": "p"}) == {"sex": {"p": ["F", "F"]}, "site": {"p": [None, "X"]}}
