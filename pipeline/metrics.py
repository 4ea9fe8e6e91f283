"""Overlap of label maps: counts per case, pooled per patient, with both conventions for an empty reference."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

TP, FP, FN = 0, 1, 2
"""Columns of a table of counts."""


def overlap_counts(prediction: np.ndarray, reference: np.ndarray, classes: int) -> np.ndarray:
    """True positives, false positives and false negatives of every class, in pixels or voxels.

    Args:
        prediction: class indices, any shape.
        reference: class indices, the same shape.
        classes: how many classes there are, background included.

    Returns:
        (classes, 3) int64, the columns `TP`, `FP` and `FN`.

    Raises:
        ValueError: the shapes differ or a class index is out of range.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction is {prediction.shape}, reference is {reference.shape}")
    if max(prediction.max(initial=0), reference.max(initial=0)) >= classes:
        raise ValueError(f"a class index is {classes} or more, there are {classes} classes")
    pairs = np.bincount(
        reference.astype(np.int64).ravel() * classes + prediction.astype(np.int64).ravel(), minlength=classes**2
    ).reshape(classes, classes)
    tp = pairs.diagonal()
    return np.stack([tp, pairs.sum(0) - tp, pairs.sum(1) - tp], axis=1)


def dice(counts: np.ndarray) -> np.ndarray:
    """Dice coefficient 2 TP / (2 TP + FP + FN) of every class; NaN where the reference is empty.

    An empty reference has no Dice: predicting nothing is right, predicting one pixel is wrong, and the
    coefficient cannot tell how wrong. `dice_empty_scored` gives the other convention.

    Args:
        counts: (..., 3) from `overlap_counts`.

    Returns:
        (...) float64.
    """
    return np.where(counts[..., TP] + counts[..., FN] > 0, dice_empty_scored(counts), np.nan)


def dice_empty_scored(counts: np.ndarray) -> np.ndarray:
    """Dice of every class; with an empty reference 1 where nothing was predicted and 0 where something was."""
    size = 2 * counts[..., TP] + counts[..., FP] + counts[..., FN]
    return np.where(size > 0, 2 * counts[..., TP] / np.maximum(size, 1), 1.0)


def pixel_error(counts: np.ndarray) -> float:
    """Share of pixels with the wrong class: every one is a false negative of one class.

    Args:
        counts: (classes, 3) from `overlap_counts`.
    """
    total = counts[:, TP].sum() + counts[:, FN].sum()
    return float(counts[:, FN].sum() / total)


def pooled(counts: Iterable[np.ndarray]) -> np.ndarray:
    """Counts of several cases of one patient taken together: their Dice is that of all pixels at once."""
    return np.sum(list(counts), axis=0)
