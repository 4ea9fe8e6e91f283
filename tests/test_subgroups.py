import json

import numpy as np

from pipeline import subgroups
from pipeline.manifest import Manifest
from pipeline.metrics import bootstrap_interval
from pipeline.patient_table import tabulate


def evaluated(*groups, classes=("background", "lung"), **more):
    """A table and its manifest: (value, tp, fp, fn) per patient, one case each."""
    rows, cases = [], []
    for number, (value, *scored) in enumerate(groups):
        name = f"p{number:02d}"
        counts = np.array([[100, 0, 0], *([scored] * (len(classes) - 1))])
        rows.append({"id": name, "patient": name, "counts": {"network": counts}})
        cases.append(
            {"id": name, "patient": name, "image": "x", "site": value} | {k: v[number] for k, v in more.items()}
        )
    about = {"name": "m", "modality": {"0": "MR"}, "labels": {str(n): c for n, c in enumerate(classes)}, "test": cases}
    return tabulate(rows, classes) | {"measures": ["dice", "pixel_error"]}, Manifest.model_validate(about)


def tabulated(*groups, **how):
    return json.loads(json.dumps(subgroups.tabulated(*evaluated(*groups, **how))))


GOOD, BAD = ("A", 10, 0, 0), ("B", 5, 5, 5)


def test_means_and_differences_by_hand():
    """Dice 1 at A and 0.5 at B, without any spread."""
    found = tabulated(*[GOOD] * 6, *[BAD] * 5)
    site = found["subgroups"]["site"]
    assert list(site) == ["A", "B"]
    assert (site["A"]["patients"], site["B"]["cases"]) == (6, 5)
    assert site["A"]["dice"]["lung"] == {
        "mean": 1.0, "interval_95": [1.0, 1.0], "patients": 6, "difference": 0.5, "difference_interval_95": [0.5, 0.5]
    }  # fmt: skip
    assert site["B"]["dice"]["lung"]["difference"] == -0.5
    assert site["A"]["pixel_error"]["mean"] == 0
    assert (found["subgroups_about"]["comparisons"], found["subgroups_about"]["leave_out_0"]) == (2, 2)  # A against B
    assert "2 differences" in found["subgroups_about"]["note"]


def test_of_three_groups_each_is_compared_with_the_others():
    found = tabulated(*[GOOD] * 5, *[BAD] * 5, *[("C", 10, 0, 0)] * 5)
    assert found["subgroups"]["site"]["B"]["dice"]["lung"]["difference"] == -0.5
    assert found["subgroups_about"]["comparisons"] == 3 * 2


def test_a_class_that_no_patient_has_stays_none():
    found = tabulated(*[("A", 0, 0, 0)] * 5, *[("B", 0, 3, 0)] * 5)
    lung = found["subgroups"]["site"]["A"]["dice"]["lung"]
    assert (lung["mean"], lung["patients"], lung["difference"], lung["difference_interval_95"]) == (None, 0, None, None)


def test_columns_without_groups_are_said_and_small_rests_are_counted():
    groups = [*[GOOD] * 6, *[BAD] * 5, ("C", 5, 5, 5)]
    table, manifest = evaluated(*groups, name=[f"n{n}" for n in range(12)])
    found = subgroups.tabulated(table, manifest)
    about = found["subgroups_about"]
    assert (
        subgroups.lines(table | found)[-1] == "No subgroups by name: nearly as many values as patients: an identifier."
    )
    assert about["left_out"] == {"name": "nearly as many values as patients: an identifier"}
    assert about["not_shown"] == {"site": 1}


def test_no_value_of_a_small_group_or_identifier_is_written():
    groups = [*[GOOD] * 6, *[BAD] * 5, *[(f"rare{n}", 5, 5, 5) for n in range(6)]]
    text = json.dumps(tabulated(*groups, name=[f"person{n}" for n in range(17)]))
    assert "rare" not in text
    assert "person" not in text
    assert "fewer than 5 each" in text


def test_the_interval_of_a_difference_is_welchs():
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, 200), random.normal(0, 2, 100)
    half = 1.96 * np.sqrt(first.var(ddof=1) / 200 + second.var(ddof=1) / 100)
    middle = first.mean() - second.mean()
    np.testing.assert_allclose(subgroups.difference_interval(first, second), (middle - half, middle + half), atol=0.04)
    low, high = subgroups.difference_interval(second, first)
    assert subgroups.difference_interval(first, second) == (-high, -low)
    assert subgroups.difference_interval([1.0], [0.0, 1.0]) is None


def test_the_interval_of_a_mean_is_that_of_the_table():
    random = np.random.default_rng(1)
    groups = [("AB"[n % 2], int(tp), 3, 3) for n, tp in enumerate(random.integers(5, 20, 30))]
    table, manifest = evaluated(*groups)
    values = [p["network"]["dice"]["lung"] for p in table["patients"]][::2]
    found = subgroups.tabulated(table, manifest)["subgroups"]["site"]["A"]["dice"]["lung"]
    np.testing.assert_allclose(found["interval_95"], bootstrap_interval(values), atol=0.003)


def test_bars_are_drawn_where_there_are_groups():
    table, manifest = evaluated(*[GOOD] * 6, *[BAD] * 5)
    table |= subgroups.tabulated(table, manifest)
    assert subgroups.picture(table).shape[2] == 3
    assert any("site B: 5 patients, 5 cases; Dice lung 0.500" in line for line in subgroups.lines(table))
    alone, manifest = evaluated(*[GOOD] * 6)
    assert subgroups.picture(alone | subgroups.tabulated(alone, manifest)) is None


def test_a_manifest_without_columns_has_no_subgroups():
    table, manifest = evaluated(*[GOOD] * 6)
    bare = manifest.model_dump()
    for case in bare["test"]:
        del case["site"]
    found = subgroups.tabulated(table, Manifest.model_validate(bare))
    assert found["subgroups"] == {}
    assert subgroups.lines(table | found) == []
