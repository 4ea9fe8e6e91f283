import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from skimage.segmentation import expand_labels

from pipeline.instances import (
    ADDED,
    FINE,
    MERGED,
    MISSED,
    THRESHOLDS,
    aggregated_jaccard,
    average_precision,
    counterparts,
    instances_from,
    iou_matrix,
    mistakes,
    object_counts,
    touching,
)

NOTHING = np.zeros((10, 20), int)


def squares(*corners, side=4):
    """Squares with their upper left corners at (row, column), numbered 1, 2, ..."""
    found = NOTHING.copy()
    for number, (row, column) in enumerate(corners, start=1):
        found[row : row + side, column : column + side] = number
    return found


TWO = squares((2, 2), (2, 10))


def test_nothing_to_find():
    assert aggregated_jaccard(NOTHING, NOTHING) == 1
    assert aggregated_jaccard(TWO, NOTHING) == aggregated_jaccard(NOTHING, TWO) == 0
    assert set(average_precision(NOTHING, NOTHING).values()) == {1.0}
    assert set(average_precision(TWO, NOTHING).values()) == set(average_precision(NOTHING, TWO).values()) == {0.0}
    assert object_counts(TWO, NOTHING) == {"reference": 0, "predicted": 2, "matched": 0, "merged": 0, "split": 0}
    assert counterparts(TWO, NOTHING).max() == 2
    assert (mistakes(NOTHING, TWO) == np.where(TWO > 0, MISSED, FINE)).all()


def test_numbers_do_not_matter():
    other = np.array([0, 900, 7])[TWO]
    assert aggregated_jaccard(other, TWO) == 1
    assert set(average_precision(other, TWO).values()) == {1.0}


def test_one_of_two_squares_moved_by_half():
    moved = squares((2, 2), (2, 12))  # the second shares 8 of its 16 pixels: IoU 8 / 24
    np.testing.assert_allclose(iou_matrix(moved, TWO), [[1, 0], [0, 8 / 24]])
    assert aggregated_jaccard(moved, TWO) == pytest.approx((16 + 8) / (16 + 24))
    assert average_precision(moved, TWO) == dict.fromkeys(THRESHOLDS, 1 / 3)  # 1 found, 1 added, 1 missed


def test_one_of_two_squares_moved_by_a_quarter():
    moved = squares((2, 2), (2, 11))  # shares 12 of 16: IoU 12 / 20 = 0.6, a match at 0.5 and 0.55, not at 0.6
    found = average_precision(moved, TWO)
    assert [found[threshold] for threshold in (0.5, 0.55, 0.6, 0.95)] == [1, 1, 1 / 3, 1 / 3]
    assert np.mean(list(found.values())) == pytest.approx((2 * 1 + 8 / 3) / 10)


def test_an_iou_at_the_threshold_is_no_match():
    half = TWO.copy()
    half[2:4, 2:6] = 0
    assert iou_matrix(half, TWO)[0, 0] == 0.5
    assert average_precision(half, TWO, [0.5]) == {0.5: 1 / 3}
    with pytest.raises(ValueError, match=r"at least 0.5, got 0.4"):
        average_precision(half, TWO, [0.4, 0.5])


def test_two_squares_merged_into_one():
    one = NOTHING.copy()
    one[2:6, 2:14] = 1  # 48 pixels over two squares of 16
    assert aggregated_jaccard(one, TWO) == pytest.approx((16 + 16) / (48 + 48))
    assert average_precision(one, TWO, [0.5]) == {0.5: 0}
    assert object_counts(one, TWO) == {"reference": 2, "predicted": 1, "matched": 0, "merged": 1, "split": 0}
    assert (mistakes(one, TWO)[2:6, 2:14] == MERGED).all()


def test_a_square_split_and_a_square_added():
    split = squares((2, 2), (2, 10), (6, 16))
    split[2:6, 4:6] = 4
    assert object_counts(split, TWO) == {"reference": 2, "predicted": 4, "matched": 1, "merged": 0, "split": 1}
    assert aggregated_jaccard(split, TWO) == pytest.approx((8 + 16) / (16 + 16 + 8 + 16))
    wrong = mistakes(split, TWO)
    assert (wrong[2:6, 2:6] == MISSED).all()
    assert (wrong[6:10, 16:20] == ADDED).all()
    assert wrong[3, 11] == FINE
    same = counterparts(split, TWO)
    assert (same[3, 2], same[3, 5], same[3, 11], same[7, 17]) == (1, 1, 2, 5)


def test_instances_are_edge_connected_components_that_are_large_enough():
    mask = np.array([[1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0]], bool)
    assert instances_from(mask).max() == 4
    assert np.unique(instances_from(mask, smallest=2)).tolist() == [0, 1, 3]
    grown = instances_from(mask, smallest=2, seam=1)
    assert grown.tolist() == [[1, 1, 1, 3, 0, 0, 0], [1, 1, 1, 3, 3, 0, 0], [0, 0, 0, 3, 0, 0, 0]]
    assert not instances_from(np.zeros((3, 3), bool), smallest=5, seam=2).any()


def test_touching_by_hand():
    instances = np.array([[1, 1, 0, 3], [1, 1, 2, 2], [0, 0, 2, 2]])
    expected = np.array([[0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 0]], bool)
    np.testing.assert_array_equal(touching(instances), expected)
    np.testing.assert_array_equal(touching(np.where(instances == 2, 2**40, instances)), expected)
    for nothing in (np.zeros((3, 4), int), np.ones((3, 4), int), np.array([[1, 0, 2]])):
        assert not touching(nothing).any()


def test_what_is_left_of_touching_objects_is_apart_and_grows_together_again():
    rows, columns = np.mgrid[:40, :60]
    discs = np.zeros((40, 60), int)
    for number, column in enumerate((10, 26, 42), start=1):
        discs[(rows - 20) ** 2 + (columns - column) ** 2 <= 9**2] = number
    cut = np.where(touching(discs), 0, discs)
    assert not touching(cut).any()
    assert (instances_from(discs > 0).max(), instances_from(cut > 0).max()) == (1, 3)
    closed = instances_from(cut > 0, seam=1)
    assert aggregated_jaccard(instances_from(cut > 0), discs) < 0.94
    assert aggregated_jaccard(closed, discs) > 0.97
    outside = expand_labels(cut, 1)
    assert aggregated_jaccard(outside, discs) < 0.9  # growing everywhere is worse than not growing


def test_above_one_half_matches_are_an_optimal_assignment():
    rng = np.random.default_rng(0)
    for _ in range(20):
        true, predicted = (np.kron(rng.integers(0, 5, (5, 10)), np.ones((2, 2), int)) for _ in range(2))
        predicted = np.where(rng.random(true.shape) < 0.7, true, predicted)
        iou = iou_matrix(predicted, true)
        rows, columns = linear_sum_assignment(iou > 0.5, maximize=True)
        tp = int((iou > 0.5)[rows, columns].sum())
        assert average_precision(predicted, true, [0.5])[0.5] == tp / (sum(iou.shape) - tp)


def test_maps_of_different_shapes_and_negative_numbers_are_refused():
    with pytest.raises(ValueError, match=r"the predicted instances are \(2, 2\), the reference is \(10, 20\)"):
        iou_matrix(np.zeros((2, 2), int), TWO)
    with pytest.raises(ValueError, match="whole numbers from 0, got -1"):
        aggregated_jaccard(TWO, TWO - 1)
