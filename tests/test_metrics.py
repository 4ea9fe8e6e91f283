import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from pipeline.metrics import (
    bootstrap_interval,
    dice,
    dice_empty_scored,
    iou,
    mean_iou,
    overlap_counts,
    pixel_error,
    pooled,
)

REFERENCE = np.array([0, 0, 1, 1, 1, 2])
PREDICTION = np.array([0, 1, 1, 1, 0, 0])


def test_counts_by_hand():
    assert overlap_counts(PREDICTION, REFERENCE, 3).tolist() == [[1, 2, 1], [2, 1, 1], [0, 0, 1]]


def test_dice_is_the_f1_of_scikit_learn():
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 4, (2, 20, 30))
    counts = overlap_counts(prediction, reference, 4)
    np.testing.assert_allclose(dice(counts), f1_score(reference.ravel(), prediction.ravel(), average=None))
    table = confusion_matrix(reference.ravel(), prediction.ravel())
    assert pixel_error(counts) == pytest.approx(1 - table.trace() / table.sum())


def test_iou_is_the_jaccard_score_of_scikit_learn():
    rng = np.random.default_rng(1)
    prediction, reference = rng.integers(0, 4, (2, 20, 30))
    counts = overlap_counts(prediction, reference, 4)
    np.testing.assert_allclose(iou(counts), jaccard_score(reference.ravel(), prediction.ravel(), average=None))
    assert mean_iou(counts) == pytest.approx(jaccard_score(reference.ravel(), prediction.ravel(), average="macro"))


def test_mean_iou_counts_the_background_and_leaves_out_what_the_reference_lacks():
    counts = overlap_counts(np.array([0, 0, 0, 2]), np.array([0, 0, 1, 0]), 3)
    np.testing.assert_array_equal(iou(counts), [2 / 4, 0, np.nan])
    assert mean_iou(counts) == (0.5 + 0) / 2


def test_an_empty_reference_in_both_conventions():
    nothing, something = np.zeros(4, int), np.array([0, 0, 0, 1])
    right, wrong = overlap_counts(nothing, nothing, 2), overlap_counts(something, nothing, 2)
    assert np.isnan(dice(right)[1])
    assert np.isnan(dice(wrong)[1])
    assert (dice_empty_scored(right)[1], dice_empty_scored(wrong)[1]) == (1.0, 0.0)


def test_an_empty_prediction_scores_zero():
    counts = overlap_counts(np.zeros(4, int), np.array([0, 0, 0, 1]), 2)
    assert dice(counts)[1] == dice_empty_scored(counts)[1] == 0.0


def test_pooling_is_not_averaging():
    large = overlap_counts(np.ones(98, int), np.ones(98, int), 2)
    small = overlap_counts(np.array([0, 0]), np.array([1, 1]), 2)
    assert dice(pooled([large, small]))[1] == pytest.approx(2 * 98 / (2 * 98 + 2))
    assert np.mean([dice(large)[1], dice(small)[1]]) == 0.5


def test_other_shapes_and_strange_classes_are_refused():
    with pytest.raises(ValueError, match=r"prediction is \(2,\), reference is \(3,\)"):
        overlap_counts(np.zeros(2), np.zeros(3), 2)
    with pytest.raises(ValueError, match="a class index is 2 or more"):
        overlap_counts(np.array([2]), np.array([0]), 2)


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(size=12)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, level=0.5)[0] > bootstrap_interval(values)[0]


def test_an_interval_of_few_values():
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.5]) is None
    assert bootstrap_interval([0.5, 0.7]) == (0.5, 0.7)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_volumes_are_counted_in_parts(monkeypatch):
    prediction, reference = np.random.default_rng(0).integers(0, 3, (2, 5, 4, 3)).astype(np.uint8)
    whole = overlap_counts(prediction, reference, 3)
    monkeypatch.setattr("pipeline.metrics.PART", 59)  # 60 voxels: the last part has one
    np.testing.assert_array_equal(overlap_counts(prediction, reference, 3), whole)
    np.testing.assert_array_equal(overlap_counts(prediction.T, reference.T, 3), whole)
    assert whole[:, [0, 2]].sum() == 60
