import numpy as np
import pytest

from pipeline.metrics import bootstrap_interval, overlap_counts
from pipeline.patient_table import EMPTY, tabulate


def row(case, patient, prediction, reference, classes=2):
    counts = overlap_counts(np.asarray(prediction), np.asarray(reference), classes)
    return {"id": case, "patient": patient, "counts": {"network": counts}}


ONES, ZEROS = np.ones(100, int), np.zeros(100, int)
HALF = np.repeat([0, 1], 50)


def test_a_patients_cases_are_pooled_before_the_mean_over_patients():
    table = tabulate(
        [row("a1", "a", ONES, ONES), row("a2", "a", ZEROS, HALF), row("b1", "b", HALF, ONES)], ["bg", "fg"]
    )
    a, b = (entry["network"]["dice"]["fg"] for entry in table["patients"])
    assert a == pytest.approx(2 * 100 / (2 * 100 + 50))
    assert b == pytest.approx(2 * 50 / (2 * 50 + 50))
    assert table["summary"]["network"]["dice"]["fg"] == pytest.approx((a + b) / 2)
    assert table["summary"]["network"]["pixel_error"] == pytest.approx((50 / 200 + 50 / 100) / 2)


def test_an_empty_reference_is_reported_in_both_conventions():
    table = tabulate([row("a1", "a", HALF, ZEROS), row("b1", "b", ONES, ONES)], ["bg", "fg"])
    assert table["summary"]["network"]["dice"]["fg"] == 1.0
    assert table["summary"]["network"]["dice_empty_scored"]["fg"] == 0.5
    assert table["cases"][0]["network"]["dice"]["fg"] is None


def test_the_interval_is_over_patients_not_over_cases():
    rows = [row(f"{p}{n}", p, prediction, ONES) for p, prediction in (("a", ONES), ("b", HALF)) for n in range(5)]
    summary = tabulate(rows, ["bg", "fg"])["summary"]["network"]
    assert summary["interval_95"]["dice"]["fg"] == bootstrap_interval([1.0, 2 / 3])
    assert summary["interval_95"]["pixel_error"] == (0.0, 0.5)
    assert tabulate(rows[:5], ["bg", "fg"])["summary"]["network"]["interval_95"]["dice"] == {"fg": None}


SLICES = [
    row("a1", "a", [1, 1, 0, 0], [1, 1, 0, 0]),
    row("a2", "a", [1, 1, 1, 0], [0, 0, 0, 0]),
    row("b1", "b", [1, 0, 0, 0], [1, 0, 0, 0]),
    row("b2", "b", [0, 0, 0, 0], [0, 0, 0, 0]),
]
"""Two patients, each with a perfect slice and one without the class, where the first has three false positives."""


def test_false_positives_where_the_reference_is_empty():
    table = tabulate(SLICES, ["tissue", "tumour"])
    a, b = (patient["network"][EMPTY]["tumour"] for patient in table["patients"])
    assert a == {"cases": 1, "cases_with_any": 1, "pixels": 3}
    assert b == {"cases": 1, "cases_with_any": 0, "pixels": 0}
    summary = table["summary"]["network"][EMPTY]["tumour"]
    assert summary == {"cases": 2, "cases_with_any": 1, "pixels": 3, "patients_with_any": 1}
    for spacing, size in (((0.5, 2.0), {"mm2": 3.0}), ((0.5, 2.0, 10.0), {"ml": 0.03})):
        found = tabulate(SLICES, ["tissue", "tumour"], spacing_mm=spacing)["summary"]["network"][EMPTY]["tumour"]
        assert found == summary | size


def test_a_mean_over_single_cases_is_no_mean_over_patients():
    summary = tabulate(SLICES, ["tissue", "tumour"])["summary"]["network"]
    assert summary["dice"]["tumour"] == pytest.approx((2 * 2 / (2 * 2 + 3) + 1) / 2)
    assert summary["mean_over_single_cases"] == {
        "dice_empty_references_left_out": {"tumour": 1.0},
        "dice_empty_references_1_or_0": {"tumour": (1 + 0 + 1 + 1) / 4},
    }


def test_three_classes():
    table = tabulate([row("a1", "a", [0, 1, 1, 2], [0, 0, 1, 2], classes=3)], ["bg", "cat", "edge"], unit="image")
    found = table["summary"]["network"]
    assert table["unit"] == "image"
    assert found["iou"] == {"cat": 0.5, "edge": 1.0}
    assert found["miou"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found["dice"] == {"cat": pytest.approx(2 / 3), "edge": 1.0}
