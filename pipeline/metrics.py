"""Overlap of label maps, pooled per patient, in both conventions for an empty reference; intervals of a mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

TP, FP, FN = 0, 1, 2
"""Columns of a table of counts."""

PART = 2**22
"""Voxels that are counted at once: their pairs take 8 bytes each, which a volume as a whole need not."""


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
    pairs = np.zeros((classes, classes), np.int64)
    for truth, found in zip(_parts(reference), _parts(prediction), strict=True):
        together = truth.astype(np.int64) * classes + found.astype(np.int64)
        pairs += np.bincount(together, minlength=classes**2).reshape(classes, classes)
    tp = pairs.diagonal()
    return np.stack([tp, pairs.sum(0) - tp, pairs.sum(1) - tp], axis=1)


def _parts(labels: np.ndarray) -> list[np.ndarray]:
    flat = labels.reshape(-1)
    return [flat[start : start + PART] for start in range(0, flat.size, PART)]


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


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union TP / (TP + FP + FN) of every class; NaN where the reference is empty, as for `dice`.

    Args:
        counts: (..., 3) from `overlap_counts`.

    Returns:
        (...) float64.
    """
    tp, fp, fn = (counts[..., column] for column in (TP, FP, FN))
    return np.where(tp + fn > 0, tp / np.maximum(tp + fp + fn, 1), np.nan)


def mean_iou(counts: np.ndarray) -> float:
    """Mean IoU (mIoU) over all classes that the reference has, the background included, as Pascal VOC counts them.

    Everingham et al., Int. J. Comput. Vis. 111, 2015, doi 10.1007/s11263-014-0733-5. A false positive of a class that
    the reference lacks lowers it through the class that it was taken for.

    Args:
        counts: (classes, 3) from `overlap_counts`.
    """
    return float(np.nanmean(iou(counts)))


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


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of one value per unit.

    It knows of no more than the units: drawn from sections of one specimen, which are alike, it says how the mean would
    vary over other sections of that specimen, is narrower than even that, and says nothing of another specimen. With
    few units it is too narrow in any case: simulated with 5 independent values, 95 % covers 80 to 85 %.

    Args:
        values: one per unit: patient, specimen or section.
        level: share of the resampled means that lies in the interval.
        resamples: how many means are drawn.
        seed: of the draw; the same values give the same interval.

    Returns:
        Lower and upper end; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (resamples, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
