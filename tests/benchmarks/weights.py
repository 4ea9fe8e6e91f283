"""Seconds of one processor that a border weight map of 512 x 512 pixels with 500 cells takes."""

from collections.abc import Iterator
from time import process_time

import numpy as np
from scipy.ndimage import distance_transform_edt

from pipeline.weights import border_weights
from tests.benchmarks.harness import Row, Scale

SIZES = {Scale.FULL: (512, 500), Scale.QUICK: (64, 8)}
"""Pixels along a side, and how many cells."""

TURNS, LIMIT_S = 3, 1.0


def cells(size: int, count: int) -> np.ndarray:
    """Around `count` random points, what is nearest to each and not on the seam between two: (size, size)."""
    rng = np.random.default_rng(0)
    seeds = np.zeros(size * size, int)
    seeds[rng.choice(size * size, count, replace=False)] = range(1, count + 1)
    seeds = seeds.reshape(size, size)
    rows, columns = distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    owner = seeds[rows, columns]
    seam = np.zeros(owner.shape, bool)
    seam[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    seam[:-1] |= owner[:-1] != owner[1:]
    return np.where(seam, 0, owner)


def rows(scale: Scale) -> Iterator[Row]:
    """Processor time, which other work on the machine does not lengthen much."""
    size, count = SIZES[scale]
    instances = cells(size, count)
    taken = []
    for _ in range(TURNS):
        start = process_time()
        border_weights(instances)
        taken.append(process_time() - start)
    work = f"border weight map, {size} x {size}, {count} cells"
    yield Row(work, "s", taken, aim={"absolute": LIMIT_S}, note="seconds of one processor")
