"""Images that continue each other: tiles that were cut from one larger picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

from pipeline.progress import Progress, silent

SEAM = 0.9
"""Concordance above which two borders are neighbouring lines of one picture. Among 150 tiles of nuclei 34 pairs of
borders pass and none where no seam can be (left on left, one reversed, ...); the groups of three and four fit a grid of
2 x 2, but one false seam joins two of them. None of 655 MRI slices or 100 X-rays passes."""

DETAIL = 8.0
"""Pixels: what is smoother along a border is light and background, in which strangers agree."""


class Seam(NamedTuple):
    """The second image begins to the right of the first, or below it, where the first ends."""

    first: int
    second: int
    side: Literal["right", "below"]
    concordance: float


def seams(images: Sequence[Callable[[], np.ndarray]], *, progress: Progress = silent) -> list[Seam]:
    """Find the images that continue each other, most certain first.

    Args:
        images: each reads an image, (H, W); only those of one size are compared.
        progress: told about every image.
    """
    with ThreadPoolExecutor() as pool:
        borders = list(progress(pool.map(lambda reader: _borders(reader()), images), len(images), "borders"))
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (top, _, left, _) in enumerate(borders):
        sizes[len(left), len(top)].append(number)
    found: list[Seam] = []
    for numbers in sizes.values():
        tops, bottoms, lefts, rights = (np.stack([borders[number][side] for number in numbers]) for side in range(4))
        found += _continued(numbers, "right", rights, lefts)
        found += _continued(numbers, "below", bottoms, tops)
    return sorted(found, key=lambda seam: -seam.concordance)


def concordance(ends: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How well every line of pixels agrees with every other: the lower of two concordances, of all and of the detail.

    Lin's coefficient (doi:10.2307/2532051) is 1 where two lines are equal, and, unlike a correlation, falls where one
    is brighter. The detail is what a Gaussian of `DETAIL` pixels takes away.

    Args:
        ends: (N, L), one line per row.
        starts: (M, L).

    Returns:
        (N, M); 0 for two constant lines.
    """
    fine = [lines - ndimage.gaussian_filter1d(lines, DETAIL, axis=1) for lines in (ends, starts)]
    return np.minimum(_lin(ends, starts), _lin(*fine))


def _lin(ends: np.ndarray, starts: np.ndarray) -> np.ndarray:
    means, other_means = ends.mean(1)[:, None], starts.mean(1)[None]
    covariance = (ends - means) @ (starts.T - other_means) / ends.shape[1]
    spread = ends.var(1)[:, None] + starts.var(1)[None] + (means - other_means) ** 2
    return np.divide(2 * covariance, spread, out=np.zeros_like(spread), where=spread > 0)


def _continued(numbers: list[int], side: Literal["right", "below"], ends: np.ndarray, starts: np.ndarray) -> list[Seam]:
    agreement = concordance(ends, starts)
    np.fill_diagonal(agreement, 0)  # an image does not continue itself
    places = zip(*np.nonzero(agreement > SEAM), strict=True)
    return [Seam(numbers[end], numbers[start], side, float(agreement[end, start])) for end, start in places]


def _borders(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The top, bottom, left and right line of pixels; zeros where they are not finite."""
    lines = (image[0], image[-1], image[:, 0], image[:, -1])
    top, bottom, left, right = (np.nan_to_num(line.astype(np.float64), posinf=0, neginf=0) for line in lines)
    return top, bottom, left, right
