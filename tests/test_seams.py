import numpy as np
import pytest
from scipy import ndimage

from pipeline.seams import concordance, seams


def picture(seed):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(256, 256)), 3) * 1000


def tiles(whole):
    return [lambda part=part: part for half in np.split(whole, 2) for part in np.split(half, 2, axis=1)]


def test_four_tiles_of_a_picture_and_four_of_another():
    found = {(seam.first, seam.second, seam.side) for seam in seams([*tiles(picture(1)), *tiles(picture(2))])}
    one = {(0, 1, "right"), (2, 3, "right"), (0, 2, "below"), (1, 3, "below")}
    assert found == one | {(first + 4, second + 4, side) for first, second, side in one}


def test_a_line_agrees_with_itself_and_less_with_a_brighter_one():
    line = np.random.default_rng(1).normal(size=(1, 500))
    line = (line - line.mean()) / line.std()
    assert concordance(line, line).item() == pytest.approx(1)
    # Lin's coefficient of x and x + 1, where x has a variance of 1: 2 / (1 + 1 + 1 squared).
    assert concordance(line, line + 1).item() == pytest.approx(2 / 3)


def test_empty_borders_are_no_seam():
    assert seams([lambda: np.zeros((8, 8)), lambda: np.zeros((8, 8)), lambda: np.full((8, 8), np.nan)]) == []


def test_smooth_light_along_a_border_is_no_seam():
    ramp = np.linspace(0, 100, 64)[:, None] + np.zeros(64)
    grain = [np.random.default_rng(seed).normal(size=(64, 64)) for seed in (1, 2)]
    assert seams([lambda: ramp + grain[0], lambda: ramp + grain[1]]) == []
