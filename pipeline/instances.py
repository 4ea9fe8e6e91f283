"""Objects of a label map one by one: found in a mask, matched with a reference, scored by AJI and average precision.

An instance map is (H, W) or (X, Y, Z) of whole numbers, 0 for the background and one number for each object; which
numbers does not matter. Objects of one map never overlap, so above an IoU of 0.5 an object has at most one counterpart
and needs no assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.measure import label
from skimage.segmentation import expand_labels

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Of the IoU, 0.5 to 0.95: those of the Data Science Bowl 2018."""

FINE, MISSED, ADDED, MERGED = 0, 1, 2, 3
"""What `mistakes` finds of a pixel."""


class Overlaps(NamedTuple):
    """Shared pixels of every pair of a reference object and a predicted one, and the sizes of both."""

    shared: np.ndarray
    """(T, P) int64."""
    true: np.ndarray
    """(T,) int64, pixels of the reference objects."""
    predicted: np.ndarray
    """(P,) int64, pixels of the predicted objects."""


def instances_from(mask: np.ndarray, *, smallest: int = 0, seam: int = 0) -> np.ndarray:
    """Number the objects of a predicted mask: its connected components.

    Pixels are connected through edges, not corners, so that a diagonal seam of one pixel separates two objects.

    Args:
        mask: (H, W) or (X, Y, Z) bool.
        smallest: objects of fewer pixels are dropped.
        seam: pixels by which objects then grow, but only towards an object that grows towards them: what a seam of
            background between touching objects took from each in training (1 for `TouchingInstancesd`). Where no other
            object is near, the outline stays, since no seam was cut there.

    Returns:
        Integers, 0 for the background, the shape of `mask`.
    """
    found = np.asarray(label(mask, connectivity=1))
    found = np.where(np.bincount(found.ravel())[found] >= smallest, found, 0)
    grown = np.asarray(expand_labels(found, distance=seam))
    return np.where((found > 0) | touching(grown), grown, 0)


def touching(instances: np.ndarray) -> np.ndarray:
    """Where instances touch: pixels of one that have a pixel of another beside them, corners included.

    Both sides of a contact are found, so what is left after cutting them out is two pixels apart or more; an instance
    that touches others with every one of its pixels is found as a whole.

    Args:
        instances: (H, W) or (X, Y, Z) integers, 0 for the background.

    Returns:
        bool, the shape of `instances`.

    Example:
        >>> touching(np.array([[1, 1, 2, 2, 0, 3]]))
        array([[False,  True,  True, False, False, False]])
    """
    numbers, count = _numbered(instances)
    most = maximum_filter(numbers, size=3, mode="nearest")
    least = minimum_filter(np.where(numbers > 0, numbers, count + 1), size=3, mode="nearest")
    return np.asarray((numbers > 0) & ((most != numbers) | (least != numbers)))


def overlaps(predicted: np.ndarray, true: np.ndarray) -> Overlaps:
    """Count what two instance maps share.

    Args:
        predicted: instance map.
        true: instance map of the same shape.

    Raises:
        ValueError: the shapes differ, or a number is negative.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"the predicted instances are {predicted.shape}, the reference is {true.shape}")
    (p, found), (t, there) = _numbered(predicted), _numbered(true)
    table = np.bincount((t * (found + 1) + p).ravel(), minlength=(there + 1) * (found + 1))
    table = table.reshape(there + 1, found + 1)
    return Overlaps(table[1:, 1:], table.sum(1)[1:], table.sum(0)[1:])


def iou_matrix(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union of every reference object with every predicted one: (T, P) float64, in order of number.

    Example:
        >>> iou_matrix(np.array([[5, 5, 5, 0, 8]]), np.array([[0, 3, 3, 3, 0]]))
        array([[0.5, 0. ]])
    """
    return _iou(overlaps(predicted, true))


def aggregated_jaccard(predicted: np.ndarray, true: np.ndarray) -> float:
    """Aggregated Jaccard index: the shared pixels of all pairs over the united pixels of all pairs and loners.

    Each reference object is paired with the predicted object of highest IoU, whatever that IoU is, and a predicted
    object may serve several: C = sum |G_i and S_i|, U = sum |G_i or S_i| + the sizes of the predicted objects that no
    reference object was paired with; AJI = C / U. A reference object that nothing overlaps adds its size to U.
    Algorithm 1 of Kumar et al., IEEE Trans. Med. Imaging 36(7), 2017, doi 10.1109/TMI.2017.2677499.

    Args:
        predicted: instance map.
        true: instance map of the same shape.

    Returns:
        In [0, 1]; 1 where both are empty (nothing to find, nothing found; the formula is 0 / 0), 0 where one is.

    Example:
        >>> aggregated_jaccard(np.array([[1, 1, 1, 0, 2]]), np.array([[0, 1, 1, 1, 0]]))
        0.4
    """
    found = overlaps(predicted, true)
    if not len(found.true) or not len(found.predicted):
        return float(len(found.true) == len(found.predicted))
    best = _iou(found).argmax(axis=1)
    shared = found.shared[np.arange(len(best)), best]
    paired = shared > 0
    united = found.true + np.where(paired, found.predicted[best] - shared, 0)
    alone = np.delete(found.predicted, best[paired]).sum()
    return float(shared.sum() / (united.sum() + alone))


def average_precision(
    predicted: np.ndarray, true: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> dict[float, float]:
    """Average precision as the Data Science Bowl 2018 defines it: TP / (TP + FP + FN) of the objects of one image.

    A pair is a true positive where its IoU is above the threshold, not at it, as in the code of Caicedo et al., Nat.
    Methods 16, 2019, doi 10.1038/s41592-019-0612-7: only then are pairs unique from 0.5 on. The competition's score of
    an image is the mean over `THRESHOLDS`. (In object detection the same name means the area under a curve.)

    Args:
        predicted: instance map.
        true: instance map of the same shape.
        thresholds: of the IoU, at least 0.5.

    Returns:
        Threshold -> value in [0, 1]; 1 where both maps are empty (nothing to find, nothing found), 0 where one is.

    Raises:
        ValueError: a threshold is below 0.5, where a pair is not unique.

    Example:
        >>> average_precision(np.array([[1, 1, 1, 0, 2]]), np.array([[1, 1, 1, 1, 0]]), [0.5, 0.75])
        {0.5: 0.5, 0.75: 0.0}
    """
    iou = iou_matrix(predicted, true)
    if min(thresholds) < 0.5:
        raise ValueError(
            f"a threshold of the IoU must be at least 0.5, got {min(thresholds)}: below, pairs are not unique"
        )
    if not sum(iou.shape):
        return dict.fromkeys(thresholds, 1.0)
    hits = {threshold: int((iou > threshold).sum()) for threshold in thresholds}
    return {threshold: tp / (sum(iou.shape) - tp) for threshold, tp in hits.items()}  # T + P - TP = TP + FP + FN


def object_counts(predicted: np.ndarray, true: np.ndarray) -> dict[str, int]:
    """How many objects there are, and how many went wrong.

    Returns:
        `reference` and `predicted` objects; `matched` pairs, of IoU above 0.5; `merged`, predicted objects that hold
        more than half of two reference objects or more; `split`, reference objects that hold more than half of two
        predicted objects or more.
    """
    found = overlaps(predicted, true)
    return {
        "reference": len(found.true),
        "predicted": len(found.predicted),
        "matched": int((_iou(found) > 0.5).sum()),
        "merged": int(_merged(found).sum()),
        "split": int((_within(found.shared, found.predicted[None]).sum(axis=1) > 1).sum()),
    }


def mistakes(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """What is wrong where, for a picture.

    Returns:
        uint8, the shape of the maps: `MERGED` in predicted objects that hold several reference objects (see
        `object_counts`), elsewhere `MISSED` in reference objects without a match of IoU above 0.5 and `ADDED` in such
        predicted objects; `FINE` in all other pixels.
    """
    found = overlaps(predicted, true)
    match = _iou(found) > 0.5
    p, t = _numbered(predicted)[0], _numbered(true)[0]
    wrong = np.full(true.shape, FINE, np.uint8)
    wrong[_chosen(~match.any(axis=0))[p]] = ADDED
    wrong[_chosen(~match.any(axis=1))[t]] = MISSED
    wrong[_chosen(_merged(found))[p]] = MERGED
    return wrong


def counterparts(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The predicted objects numbered as the reference objects they overlap best: for a picture in the same colours.

    Returns:
        Instance map in which an object has the number of its reference object by order, or one beyond all of them.
    """
    found = overlaps(predicted, true)
    there = len(found.true)
    names = there + 1 + np.arange(len(found.predicted))
    if there:
        names = np.where(found.shared.any(axis=0), 1 + _iou(found).argmax(axis=0), names)
    return np.concatenate([[0], names])[_numbered(predicted)[0]].astype(np.int64)


def _numbered(instances: np.ndarray) -> tuple[np.ndarray, int]:
    """The same objects as 1, 2, ... with 0 for the background, and how many they are."""
    if instances.min(initial=0) < 0:
        raise ValueError(f"instances are whole numbers from 0, got {instances.min()}")
    names = np.unique(instances[instances > 0])
    numbers = np.where(instances > 0, np.searchsorted(names, instances) + 1, 0)
    return numbers.astype(np.int64), len(names)


def _iou(found: Overlaps) -> np.ndarray:
    return found.shared / (found.true[:, None] + found.predicted[None] - found.shared)


def _within(shared: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Where more than half of an object lies in one of the other map."""
    return 2 * shared > sizes


def _merged(found: Overlaps) -> np.ndarray:
    return np.asarray(_within(found.shared, found.true[:, None]).sum(axis=0) > 1)


def _chosen(objects: Any) -> np.ndarray:
    """Objects 1, 2, ... chosen or not, as a table in which number 0, the background, is not."""
    return np.concatenate([[False], objects])
