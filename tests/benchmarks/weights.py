"""Seconds of one processor that a border weight map of 512 x 512 pixels with 500 cells takes; exit code 1 from 1 s on."""

import sys
from time import process_time

import numpy as np
from scipy.ndimage import distance_transform_edt

from pipeline.weights import border_weights

SIZE, CELLS, LIMIT_S = 512, 500, 1.0


def cells() -> np.ndarray:
    """Around 500 random points, what is nearest to each and not on the seam between two: (512, 512)."""
    rng = np.random.default_rng(0)
    seeds = np.zeros(SIZE * SIZE, int)
    seeds[rng.choice(SIZE * SIZE, CELLS, replace=False)] = range(1, CELLS + 1)
    seeds = seeds.reshape(SIZE, SIZE)
    rows, columns = distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    owner = seeds[rows, columns]
    seam = np.zeros(owner.shape, bool)
    seam[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    seam[:-1] |= owner[:-1] != owner[1:]
    return np.where(seam, 0, owner)


def main() -> int:
    """Measure three times, keep the best: other work on the machine slows this one down."""
    instances = cells()
    taken = []
    for _ in range(3):
        start = process_time()
        border_weights(instances)
        taken.append(process_time() - start)
    count = len(np.unique(instances)) - 1
    sys.stdout.write(
        f"weights: {SIZE} x {SIZE}, {count} cells: {min(taken):.2f} s of one processor (limit {LIMIT_S} s)\n"
    )
    return int(min(taken) >= LIMIT_S or count < CELLS)


if __name__ == "__main__":
    sys.exit(main())
