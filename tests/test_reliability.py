import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric

from pipeline.reliability import BINS, FAR, LEVELS, NEAR, ece, excess, near_foreground, tally


def two(foreground):
    """(2, ...) probabilities of background and foreground."""
    values = np.asarray(foreground, np.float32)
    return np.stack([1 - values, values])


def counted(probabilities, prediction, reference, near=None):
    reference = np.asarray(reference, np.uint8)
    near = np.zeros(reference.shape, bool) if near is None else np.asarray(near, bool)
    return tally(np.asarray(probabilities, np.float32), np.asarray(prediction, np.uint8), reference, near, 2)


def test_an_example_by_hand():
    """Four pixels say 0.9 and three are foreground, one says 0.6 and is: 4/5 |0.75 - 0.9| + 1/5 |1 - 0.6| = 0.2."""
    bins = counted(two([[0.9, 0.9, 0.9, 0.9, 0.6]]), np.ones((1, 5)), [[1, 1, 1, 0, 1]]).sum(1)
    np.testing.assert_allclose(ece(bins), [0.2, 0.2], atol=1e-5)
    np.testing.assert_allclose(excess(bins), [(4 * 0.9 + 0.6 - 4) / 5] * 2, atol=1e-5)


def test_a_class_is_monais_calibration_error():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([1, 1, 1], (40, 50)).transpose(2, 0, 1).astype(np.float32)
    reference = random.integers(0, 3, (40, 50)).astype(np.uint8)
    bins = tally(probabilities, probabilities.argmax(0).astype(np.uint8), reference, reference > 0, 3).sum(1)
    metric = CalibrationErrorMetric(num_bins=BINS, include_background=False, metric_reduction="none")
    truth = torch.nn.functional.one_hot(torch.as_tensor(reference).long()).movedim(-1, 0)[None]
    metric(y_pred=torch.as_tensor(probabilities).contiguous()[None], y=truth.float().contiguous())
    np.testing.assert_allclose(ece(bins)[1:], metric.aggregate()[0].numpy(), atol=1e-5)


def test_confidence_is_monais_error_of_being_right():
    random = np.random.default_rng(1)
    probabilities = two(random.random((30, 30)))
    prediction, reference = probabilities.argmax(0), random.integers(0, 2, (30, 30))
    metric = CalibrationErrorMetric(num_bins=BINS)
    right = torch.as_tensor(prediction == reference)[None, None].float()
    metric(y_pred=torch.as_tensor(probabilities.max(0))[None, None], y=right)
    assert ece(counted(probabilities, prediction, reference).sum(1))[0] == pytest.approx(
        float(metric.aggregate()), abs=1e-5
    )


def test_one_channel_of_a_sigmoid_is_two_of_a_softmax():
    random = np.random.default_rng(2)
    foreground, reference = random.random((20, 20), dtype=np.float32), random.integers(0, 2, (20, 20))
    one, both = (counted(p, foreground > 0.5, reference, reference) for p in (foreground[None], two(foreground)))
    np.testing.assert_allclose(ece(one), ece(both), atol=1e-5)


@pytest.mark.parametrize(
    ("value", "number"), [(0.0, 0), (1 / 15, 0), (1 / 15 + 1 / LEVELS, 1), (14 / 15, 13), (1.0, 14)]
)
def test_an_edge_belongs_to_the_bin_below(value, number):
    bins = counted(two([[value]]), [[1]], [[1]])[1, FAR]
    assert np.flatnonzero(bins[:, 0]).tolist() == [number]


def test_what_is_no_probability_is_refused():
    for wrong in (1.2, -0.1, np.nan):
        with pytest.raises(ValueError, match="must be within 0 and 1"):
            counted(two([[wrong]]), [[1]], [[1]])


def test_near_and_far_are_all_pixels():
    prediction = np.zeros((60, 60), np.uint8)
    prediction[30, 30] = 1
    near = near_foreground(prediction, np.zeros_like(prediction))
    assert near.sum() == 21 * 21
    bins = counted(two(np.full((60, 60), 0.25)), prediction, np.zeros((60, 60)), near)
    assert bins[0, NEAR].sum(0)[0] == 21 * 21
    assert bins[0].sum((0, 1))[0] == 60 * 60


def test_the_margin_is_as_long_in_mm_across_thick_slices():
    reference = np.zeros((30, 30, 12), np.uint8)
    reference[15, 15, 6] = 1
    near = near_foreground(np.zeros_like(reference), reference, (1.0, 1.0, 5.0))
    assert [int(near.any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1))] == [21, 21, 5]


def test_without_foreground_nothing_is_near_and_nothing_is_scored():
    empty = np.zeros((8, 8), np.uint8)
    near = near_foreground(empty, empty)
    assert not near.any()
    assert np.isnan(ece(counted(two(np.zeros((8, 8))), empty, empty, near)[:, NEAR])).all()
