import numpy as np
import pytest
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from pipeline.registration import FLIPS, OVERLAP, best_shift, correlation_after_registration, overlap, prepared


def texture(seed, shape=(150, 130)):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)


def test_every_shift_and_flip_as_numpy_finds_it_by_trying():
    first, second = (np.random.default_rng(seed).normal(size=(12, 14)) for seed in (1, 2))

    def by_hand():
        for flip in FLIPS:
            for row in range(-11, 12):
                for column in range(-13, 14):
                    parts = overlap(first, second, (row, column), flip)
                    if parts[0].size >= OVERLAP * first.size:
                        yield np.corrcoef(*(part.ravel() for part in parts))[0, 1], (row, column), flip

    correlation, shift, flip = max(by_hand())
    found = best_shift(prepared(first), prepared(second))
    assert found == (pytest.approx(correlation, abs=1e-6), shift, flip)
    assert correlation_after_registration(first, second)[0] == pytest.approx(correlation)


def test_the_shift_that_scikit_image_finds():
    first, second = texture(3)[:100, 20:110], texture(3)[9:109, 13:103]
    whole = np.ones(first.shape, bool)
    theirs, *_ = phase_cross_correlation(first, second, reference_mask=whole, moving_mask=whole, overlap_ratio=OVERLAP)
    assert correlation_after_registration(first, second).shift == tuple(theirs) == (9, -7)


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-31, 17), (40, 0)])
def test_a_moved_and_flipped_copy_is_found_at_full_size(flip, shift):
    picture = texture(4, (400, 400))
    first = picture[100:300, 100:280]
    second = picture[100 + shift[0] : 300 + shift[0], 100 + shift[1] : 280 + shift[1]]
    found = correlation_after_registration(first, second[:: flip[0], :: flip[1]])
    assert found == (pytest.approx(1), pytest.approx(1), shift, flip)


def test_strangers_stay_strangers():
    assert correlation_after_registration(texture(5), texture(6)).correlation < 0.5


def test_what_shows_nothing_correlates_with_nothing():
    for nothing in (np.zeros((40, 40)), np.full((40, 40), np.nan)):
        assert np.isnan(correlation_after_registration(texture(1, (40, 40)), nothing).correlation)


def test_images_of_two_shapes():
    with pytest.raises(ValueError, match=r"one shape .* \(4, 5\) and \(5, 4\)"):
        correlation_after_registration(np.eye(4, 5), np.eye(5, 4))
