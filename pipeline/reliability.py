"""Whether probabilities can be taken at their word: pixels counted per bin, and expected calibration error (ECE)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

BINS = 15
"""Of equal width, as in Guo et al. 2017, arXiv:1706.04599; a value on an edge belongs to the bin below it, as there."""

LEVELS = 65_535
"""Steps to which a probability is rounded before it is counted: no list of pixels is kept, and since `LEVELS` is a
multiple of `BINS`, the bins' edges are steps too. A mean is off by less than 0.000008."""

MARGIN = 10
"""Pixels around the foreground of reference or prediction that count as near it; in a volume, times its finest spacing
along every axis."""

PART = 2**22
"""Pixels that are counted at once."""

PIXELS, PREDICTED, OBSERVED = 0, 1, 2
"""Columns of a bin: how many pixels, the sum of their probabilities, and how many of them are what was predicted."""

FAR, NEAR = 0, 1
"""Where pixels are counted: away from the foreground and near it."""


def tally(
    probabilities: np.ndarray, prediction: np.ndarray, reference: np.ndarray, near: np.ndarray, classes: int
) -> np.ndarray:
    """Count the pixels of one case in bins of probability.

    Args:
        probabilities: (classes, H, W) float32, or (1, H, W) of class 1 of two; volumes have three axes.
        prediction: (H, W) class indices.
        reference: likewise.
        near: (H, W) bool, from `near_foreground`.
        classes: how many there are, background included.

    Returns:
        (classes, 2, BINS, 3) float64. Row 0: by the probability of the predicted class, its confidence, and whether
        that class is right. Row c: by the probability of class c, and whether it is class c. Then `FAR` or `NEAR`, the
        bin, and the columns `PIXELS`, `PREDICTED` and `OBSERVED`.

    Raises:
        ValueError: a probability is not within 0 and 1.
    """
    low, high = float(probabilities.min(initial=1)), float(probabilities.max(initial=0))
    if not (low >= -1e-5 and high <= 1 + 1e-5):  # not: NaN fails too
        raise ValueError(f"probabilities must be within 0 and 1, got {low:.4g} to {high:.4g}")
    counts = np.zeros((classes, 4 * (LEVELS + 1)), np.int64)
    for levels, ours, truth, inside in _parts(probabilities, prediction, reference, near):
        for row in range(classes):
            level, hit = (_confidence(levels, ours), ours == truth) if row == 0 else (_of(levels, row), truth == row)
            counts[row] += np.bincount(level * 4 + (inside * 2 + hit), minlength=counts.shape[1])
    return _binned(counts.reshape(classes, LEVELS + 1, 2, 2))


def ece(bins: np.ndarray) -> np.ndarray:
    """Expected calibration error: the gap between predicted and observed share of a bin, mean over the pixels.

    sum over bins of n_b / n * |observed_b - predicted_b|, equation 3 of Guo et al. 2017, arXiv:1706.04599. NaN where
    there is no pixel.

    Args:
        bins: (..., BINS, 3) from `tally`.

    Returns:
        (...) float64, from 0, where every bin is right, to 1.
    """
    return _share(np.abs(bins[..., PREDICTED] - bins[..., OBSERVED]).sum(-1), bins)


def excess(bins: np.ndarray) -> np.ndarray:
    """Mean predicted less observed share, (..., BINS, 3) -> (...): above 0, the network is surer than it is right."""
    return _share((bins[..., PREDICTED] - bins[..., OBSERVED]).sum(-1), bins)


def near_foreground(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> np.ndarray:
    """Where the foreground of prediction or reference is within `MARGIN` along every axis.

    Background far from everything is easy, and there is so much of it that it decides any mean over pixels. Along an
    axis with thick slices the margin is as long in mm, hence fewer slices.

    Args:
        prediction: (H, W) or (X, Y, Z) class indices.
        reference: likewise.
        spacing_mm: along each axis; None: the same along all.

    Returns:
        As the prediction, bool; False everywhere if both are empty.
    """
    foreground = (prediction > 0) | (reference > 0)
    found = np.zeros(foreground.shape, bool)
    if not foreground.any():
        return found
    sides = spacing_mm or (1.0,) * foreground.ndim
    margins = [max(1, round(MARGIN * min(sides) / side)) for side in sides]
    box = tuple(
        slice(max(0, its.start - margin), its.stop + margin)
        for its, margin in zip(ndimage.find_objects(foreground.view(np.uint8))[0], margins, strict=True)
    )
    found[box] = ndimage.maximum_filter(foreground[box], size=[2 * margin + 1 for margin in margins], mode="constant")
    return found


def _parts(
    probabilities: np.ndarray, *labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Levels (classes, n) int64 of the probabilities, and three label maps (n), `PART` pixels at a time."""
    flat = probabilities.reshape(len(probabilities), -1)
    lines = [label.reshape(-1) for label in labels]
    for start in range(0, flat.shape[1], PART):
        part = slice(start, start + PART)
        levels = np.rint(np.clip(flat[:, part], 0, 1) * np.float32(LEVELS)).astype(np.int64)
        ours, truth, near = (line[part] for line in lines)
        yield levels, ours, truth, near


def _of(levels: np.ndarray, index: int) -> np.ndarray:
    return levels[0] if len(levels) == 1 else levels[index]


def _confidence(levels: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    if len(levels) == 1:
        return np.where(prediction == 1, levels[0], LEVELS - levels[0])
    return np.take_along_axis(levels, prediction[None].astype(np.int64), axis=0)[0]


def _binned(counts: np.ndarray) -> np.ndarray:
    """(classes, LEVELS + 1, 2 near, 2 hit) pixels per level -> (classes, 2, BINS, 3)."""
    pixels = counts.sum(-1)
    predicted = pixels * (np.arange(LEVELS + 1) / LEVELS)[:, None]
    firsts = [0, *(LEVELS // BINS * number + 1 for number in range(1, BINS))]  # an edge belongs to the bin below it
    columns = (np.add.reduceat(values, firsts, axis=1) for values in (pixels, predicted, counts[..., 1]))
    return np.stack(list(columns), axis=-1).swapaxes(1, 2).astype(np.float64)


def _share(pixels: np.ndarray, bins: np.ndarray) -> np.ndarray:
    total = bins[..., PIXELS].sum(-1)
    return np.where(total > 0, pixels / np.maximum(total, 1), np.nan)
