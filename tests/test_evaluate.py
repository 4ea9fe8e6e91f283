import numpy as np
import pytest
from skimage.filters import threshold_otsu

from pipeline.errors import InputError
from pipeline.evaluate import CaseTable, otsu, tabulate
from pipeline.metrics import overlap_counts


def row(case, patient, prediction, reference):
    return {"id": case, "patient": patient, "counts": {"network": overlap_counts(prediction, reference, 2)}}


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


def test_otsu_is_scikit_images_on_the_declared_side():
    image = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(otsu(image, "dark"), image <= threshold_otsu(image))
    np.testing.assert_array_equal(otsu(image, "dark"), [[1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(otsu(image, "bright"), 1 - otsu(image, "dark"))
    assert otsu(np.full((2, 2), 3.0), "dark").sum() == 0


def test_otsu_is_for_two_classes():
    arguments = {"manifest": "m", "partition": "test", "checkpoint": "c"}
    with pytest.raises(InputError, match="Otsu's threshold separates 2 classes, this bundle has 3"):
        CaseTable("out", ["a", "b", "c"], otsu_foreground="dark", **arguments)
    with pytest.raises(InputError, match="must be dark, bright or null, got 'black'"):
        CaseTable("out", ["a", "b"], otsu_foreground="black", **arguments)
