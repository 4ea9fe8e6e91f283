from math import log

import numpy as np
import pytest
import tifffile
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.morphology import dilation

from pipeline.segments import (
    CUT,
    FINE,
    JOINED,
    counterparts,
    information_score,
    mistakes,
    rand_score,
    thinned_segments,
    true_cells,
)
from tests.conftest import real


def section(*rows):
    """Rows of text -> a membrane mask: '#' is membrane."""
    return np.array([[letter == "#" for letter in row] for row in rows])


TWO = section("..#....", "..#....", "..#....")
"""A cell of 6 pixels, a membrane, a cell of 12."""
OPEN = section(".......", ".......", ".......")
SPLIT = section("..#.#..", "..#.#..", "..#.#..")
"""The right cell cut: 3, a line of 3 and 6 pixels."""


def scores(proposal, reference):
    segments, truth = thinned_segments(proposal), true_cells(reference)
    return rand_score(segments, truth), information_score(segments, truth)


def test_a_perfect_proposal():
    for agreement in scores(TWO, TWO):
        assert agreement == pytest.approx((1, 1, 1))


def test_two_cells_merged():
    rand, information = scores(OPEN, TWO)
    both = (6**2 + 12**2) / 18**2
    assert rand == pytest.approx((2 * both / (1 + both), 1, both))
    assert rand.score == pytest.approx(5 / 7)
    assert information == pytest.approx((0, 1, 0))


def test_a_cell_split_by_a_line_whose_pixels_stand_alone():
    rand, information = scores(SPLIT, TWO)
    cells = 6**2 + 12**2
    segments = 6**2 + 3**2 + 6**2 + 3 * 1**2
    assert rand == pytest.approx((2 * segments / (segments + cells), segments / cells, 1))
    of_cells = -(6 / 18 * log(6 / 18) + 12 / 18 * log(12 / 18))
    of_segments = -(2 * 6 / 18 * log(6 / 18) + 3 / 18 * log(3 / 18) + 3 * 1 / 18 * log(1 / 18))
    assert information == pytest.approx((2 * of_cells / (of_cells + of_segments), of_cells / of_segments, 1))


def test_a_membrane_anywhere_within_the_true_one_is_perfect():
    thick = section("..###..", "..###..", "..###..")
    for thin in (section(*3 * ["..#...."]), section(*3 * ["....#.."]), section("..#....", "...#...", "....#..")):
        for agreement in scores(thin, thick):
            assert agreement == pytest.approx((1, 1, 1))


def test_thickness_costs_the_line_only():
    """Three true cells of 3, 3 and 3 columns; the proposal's membranes are 3 wide, the true ones 1."""
    reference = section(*2 * ["...#...#..."])
    thick = section(*2 * ["..###.###.."])
    assert true_cells(thick).max() == 3
    for agreement in scores(thick, reference):
        assert agreement == pytest.approx((1, 1, 1))


def test_nothing_to_score_and_one_cell():
    nothing = ~OPEN
    for agreement in scores(OPEN, nothing):
        assert np.isnan(agreement).all()
    for agreement in scores(OPEN, OPEN):
        assert agreement == (1, 1, 1)
    rand, information = scores(TWO, OPEN)
    assert rand.split == pytest.approx((6**2 + 12**2 + 3) / 21**2)
    assert information == pytest.approx((0, 0, 1))
    assert scores(nothing, TWO)[0].split == pytest.approx(18 / (6**2 + 12**2))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"segments are \(3, 7\), truth is \(2, 7\)"):
        rand_score(thinned_segments(TWO), true_cells(TWO[:2]))


@pytest.mark.parametrize("seed", range(3))
def test_scikit_image_agrees_on_proposals_without_membrane(seed):
    """It leaves the pairs of a pixel with itself out, hence the tolerance; its entropies are in bits; what it returns as
    precision is divided by the pairs of the truth, and recall by those of the proposal (0.26, against its docstring)."""
    rng = np.random.default_rng(seed)
    segments, truth = rng.integers(1, 5, (60, 60)), rng.integers(0, 4, (60, 60))
    segments[:, 20:] = np.where(truth[:, 20:] > 0, truth[:, 20:], segments[:, 20:])
    error, by_truth, by_proposal = adapted_rand_error(truth, segments)
    rand, information = rand_score(segments, truth), information_score(segments, truth)
    assert rand == pytest.approx((1 - error, by_truth, by_proposal), abs=2 / (truth > 0).sum())
    over, under = variation_of_information(truth, segments, ignore_labels=(0,)) * log(2)
    of_segments, of_cells = (_entropy(of[truth > 0]) for of in (segments, truth))
    assert information.split == pytest.approx(1 - over / of_segments)
    assert information.merge == pytest.approx(1 - under / of_cells)
    assert information.score == pytest.approx(1 - (over + under) / (of_segments + of_cells))


@pytest.mark.parametrize("seed", range(3))
def test_the_line_counts_as_in_the_arithmetic_of_the_challenge(seed):
    """There a share `line` of the pixels adds line / n to sums of squares, and -line log(n) to sums of p log p."""
    rng = np.random.default_rng(seed)
    segments, truth = rng.integers(0, 4, (40, 40)), rng.integers(0, 6, (40, 40))
    n = (truth > 0).sum()
    table = np.histogram2d(truth[truth > 0], segments[truth > 0], bins=(range(1, 7), range(5)))[0] / n
    line, joint = table[:, 0].sum(), table[:, 1:]
    both, ours, theirs = (joint**2).sum() + line / n, (joint.sum(0) ** 2).sum() + line / n, (table.sum(1) ** 2).sum()
    assert rand_score(segments, truth) == pytest.approx((2 * both / (ours + theirs), both / theirs, both / ours))
    of_joint, of_segments = (np.sum(p * np.log(p)) - line * log(n) for p in (joint, joint.sum(0)))
    of_cells = np.sum(table.sum(1) * np.log(table.sum(1)))
    mutual = of_joint - of_segments - of_cells
    assert information_score(segments, truth).score == pytest.approx(2 * mutual / -(of_segments + of_cells))


def _entropy(labels):
    shares = np.unique(labels, return_counts=True)[1] / labels.size
    return -(shares * np.log(shares)).sum()


def blobs(seed, size=80):
    """Cells of random shape between membranes 1 to 5 pixels wide."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros((size, size), int)
    seeds[tuple(rng.integers(0, size, (2, 25)))] = np.arange(1, 26)
    distance = [np.hypot(*(np.indices(seeds.shape) - np.array(at)[:, None, None])) for at in np.argwhere(seeds)]
    nearest = np.argmin(distance, axis=0)
    edges = (dilation(nearest, np.ones((2, 2))) != nearest) | (dilation(-nearest, np.ones((2, 2))) != -nearest)
    return dilation(edges, np.ones((1 + seed, 1 + seed))) > 0


@pytest.mark.parametrize("mask", [*map(blobs, range(4)), np.random.default_rng(0).random((60, 60)) < 0.4])
def test_thinning_neither_joins_nor_loses_a_cell(mask):
    cells, segments = true_cells(mask), thinned_segments(mask)
    np.testing.assert_array_equal(segments[cells > 0], cells[cells > 0])
    assert set(np.unique(segments)) - {0} == set(np.unique(cells)) - {0}
    for first, second in ((segments[1:], segments[:-1]), (segments[:, 1:], segments[:, :-1])):
        assert not ((first != second) & (first > 0) & (second > 0)).any()
    assert (segments == 0).sum() <= mask.sum()


def test_thinning_keeps_rings_and_drops_spurs():
    ring = section(".......", ".#####.", ".#####.", ".##.##.", ".#####.", ".#####.", ".......")
    thin = thinned_segments(ring)
    assert thin[3, 3] != thin[0, 0]
    assert label(thin == thin[3, 3], connectivity=1).max() == 1
    spur = section("...#...", "...#...", ".......", ".###...")
    assert (thinned_segments(spur) == 1).all()
    assert (thinned_segments(~OPEN) == 0).all()
    assert (thinned_segments(OPEN) == 1).all()


def test_mistakes_by_hand():
    truth = np.array([[1, 1, 0, 2, 2, 2, 2, 2, 0, 3]])
    found = np.array([[4, 4, 4, 4, 0, 5, 5, 5, 5, 5]])
    assert counterparts(found, truth).tolist() == [0, 0, 0, 0, 1, 2]
    assert counterparts(truth, found).tolist() == [0, 4, 5, 5]
    expected = [[FINE, FINE, FINE, JOINED, CUT, FINE, FINE, FINE, FINE, JOINED]]
    assert mistakes(found, truth).tolist() == expected
    assert mistakes(np.array([[1, 1, 0, 2]]), np.ones((1, 4), int)).tolist() == [[FINE, FINE, CUT, CUT]]
    assert mistakes(np.zeros((2, 2), int), np.zeros((2, 2), int)).max() == FINE


def test_real_sections():
    folder = real("isbi2012_em")
    images, labels = (tifffile.imread(folder / f"train-{what}.tif", key=range(2)) for what in ("volume", "labels"))
    for image, membrane in zip(images, labels == 0, strict=True):
        rand, information = scores(membrane, membrane)
        assert rand == pytest.approx((1, 1, 1))
        assert information == pytest.approx((1, 1, 1))
        assert scores(image <= threshold_otsu(image), membrane)[0].score < 0.9
