"""Segments that a membrane map cuts a section into, and how well they match the true cells: Rand and information.

Both scores are those of the ISBI 2012 challenge as evaluated again in 2015 (Arganda-Carreras et al., Front. Neuroanat.
9:142, doi 10.3389/fnana.2015.00142; its code is Fiji's Trainable Segmentation):

- One section at a time; the scores of several are averaged.
- The true cells are the 4-connected components of what is not membrane, as drawn. Pixels of the true membrane are
  ignored, so a proposed membrane may be thin or thick and lie anywhere within the true one.
- The proposal's membrane is thinned to a line (`thinned_segments`), so thickness alone costs nothing.
- A pixel of the proposal's line inside a true cell is a segment of its own. A line across a cell therefore costs the
  split and, a little, its own pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from skimage.measure import label
from skimage.segmentation import watershed

FINE, JOINED, CUT = 0, 1, 2
"""What `mistakes` finds of a pixel."""


class Agreement(NamedTuple):
    """A score in [0, 1] and its two parts, of which it is the harmonic mean; 1 is perfect."""

    score: float
    split: float
    """Falls where one true cell became several segments."""
    merge: float
    """Falls where several true cells became one segment."""


def true_cells(membrane: np.ndarray) -> np.ndarray:
    """Cells of a reference: the 4-connected components of what is not membrane.

    Args:
        membrane: (H, W) bool.

    Returns:
        (H, W) int, 0 on the membrane, cells from 1.
    """
    return np.asarray(label(~membrane, connectivity=1))


def thinned_segments(membrane: np.ndarray) -> np.ndarray:
    """Segments of a proposal: its 4-connected cells, grown into its membrane until only a line is left between them.

    The growth is the classic watershed of the membrane mask, as in the challenge's code: all cells grow at the same
    speed, no two ever join, and none is lost, however small. Where nothing lies behind a membrane (a spur, an island in
    a cell) the cell closes over it. The line is one pixel wide but for single places where several cells meet.

    A mask without membrane is one segment. A mask that is all membrane has nothing that could grow: every pixel stays
    line. (The challenge's code makes one segment of it, as of an empty mask.)

    Args:
        membrane: (H, W) bool.

    Returns:
        (H, W) int, 0 on the line, segments from 1; 4-neighbours of two segments are never side by side.
    """
    return np.asarray(watershed(membrane.astype(np.uint8), true_cells(membrane), connectivity=1, watershed_line=True))


def rand_score(segments: np.ndarray, truth: np.ndarray) -> Agreement:
    """Foreground-restricted Rand score V_Rand = 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2).

    NaN where there is no true cell.

    Of the true cells' pixels, the share p_ij lies in segment i and cell j; its sums s_i and t_j are the shares of the
    segment and of the cell. Two random pixels lie in one segment with probability sum s_i^2, in one cell with
    sum t_j^2, in both with sum p_ij^2; `split` is sum p_ij^2 / sum t_j^2, `merge` is sum p_ij^2 / sum s_i^2. A cell
    therefore counts with the square of its size.

    Args:
        segments: (H, W) int, 0 where a pixel stands for itself, as from `thinned_segments`.
        truth: (H, W) int, 0 where a pixel is ignored, as from `true_cells`.

    Returns:
        V_Rand, its split and its merge part.

    Raises:
        ValueError: the shapes differ.
    """
    joint, segment, cell = _shares(segments, truth)
    if not joint.size:
        return Agreement(np.nan, np.nan, np.nan)
    both, same_segment, same_cell = (float((share**2).sum()) for share in (joint, segment, cell))
    return Agreement(2 * both / (same_segment + same_cell), both / same_cell, both / same_segment)


def information_score(segments: np.ndarray, truth: np.ndarray) -> Agreement:
    """Foreground-restricted information score V_Info = 2 I(S; T) / (H(S) + H(T)).

    NaN where there is no true cell; 1 for one segment in the only cell, which carries no information and agrees; 0 for
    one segment over several cells and for several segments in the only cell.

    I is the mutual information of segment and cell, H the entropy of either, over the pixels of the true cells; `split`
    is I / H(S), `merge` is I / H(T).

    Args:
        segments: (H, W) int, 0 where a pixel stands for itself, as from `thinned_segments`.
        truth: (H, W) int, 0 where a pixel is ignored, as from `true_cells`.

    Returns:
        V_Info, its split and its merge part; a part whose entropy is 0 is 1.

    Raises:
        ValueError: the shapes differ.
    """
    joint, segment, cell = _shares(segments, truth)
    if not joint.size:
        return Agreement(np.nan, np.nan, np.nan)
    of_segments, of_cells = _entropy(segment), _entropy(cell)
    mutual = max(of_segments + of_cells - _entropy(joint), 0.0)
    parts = ((of_segments + of_cells) / 2, of_segments, of_cells)
    return Agreement(*(mutual / entropy if entropy else 1.0 for entropy in parts))


def counterparts(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of every label the other label that it shares most pixels with: a segment's cell, or a cell's largest segment.

    Args:
        labels: (H, W) int, 0 for none.
        others: (H, W) int, 0 for none.

    Returns:
        (highest label + 1,) int; 0 for label 0 and for labels that share no pixel with another.
    """
    both = (labels > 0) & (others > 0)
    pairs, counts = np.unique(np.stack([labels[both], others[both]], axis=1), axis=0, return_counts=True)
    found = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    order = np.argsort(counts, kind="stable")
    found[pairs[order, 0]] = pairs[order, 1]  # the last one written is the largest
    return found


def mistakes(segments: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where cells were joined or cut: to show, not to score.

    Args:
        segments: (H, W) int, 0 on the line.
        truth: (H, W) int, 0 where a pixel is ignored.

    Returns:
        (H, W) uint8: `JOINED` where the segment lies mostly in another cell, `CUT` on the line and where the segment
        is not the largest of its cell; `FINE` elsewhere and where the truth is ignored.
    """
    joined = counterparts(segments, truth)[segments] != truth
    cut = counterparts(truth, segments)[truth] != segments
    found = np.where(joined & (segments > 0), JOINED, np.where(cut | (segments == 0), CUT, FINE))
    return np.where(truth > 0, found, FINE).astype(np.uint8)


def _shares(segments: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares p_ij, s_i and t_j of the pixels of the true cells, those above 0; three 1D arrays."""
    if segments.shape != truth.shape:
        raise ValueError(f"segments are {segments.shape}, truth is {truth.shape}")
    inside = truth > 0
    segment, cell = segments[inside].astype(np.int64), truth[inside].astype(np.int64)
    alone = segment == 0
    segment[alone] = segment.max(initial=0) + 1 + np.arange(alone.sum())
    pair = segment * (cell.max(initial=0) + 1) + cell
    joint, by_segment, by_cell = (
        np.unique(of, return_counts=True)[1] / max(of.size, 1) for of in (pair, segment, cell)
    )
    return joint, by_segment, by_cell


def _entropy(shares: np.ndarray) -> float:
    """Entropy of shares above 0, in nats."""
    return max(float(-(shares * np.log(shares)).sum()), 0.0)
