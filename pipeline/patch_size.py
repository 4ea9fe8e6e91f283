"""The largest patch, depth and batch with which a training step fits into a given memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.memory import training_bytes
from pipeline.networks import network

LEAST_EDGE = 4
"""Voxels that the coarsest features have at least along each axis."""

MOST_LEVELS = 5
"""As in the paper of 2015: channels double at every level."""

LEAST_BATCH = 2
"""Patches per step, at least; memory that is left beyond goes into more of them."""

Rung = tuple[tuple[int, ...], int]
"""A patch, and the depth that goes with it."""


def levels(size: Sequence[int]) -> int:
    """How many levels leave `LEAST_EDGE` voxels along every axis, from 1 to `MOST_LEVELS`.

    Example:
        >>> levels([35, 50, 36]), levels([512, 512]), levels([3, 64, 64])
        (4, 5, 1)
    """
    fitting = [level for level in range(1, MOST_LEVELS + 1) if min(size) >= LEAST_EDGE * 2 ** (level - 1)]
    return max(fitting, default=1)


def ladder(size: Sequence[int], spacing_mm: Sequence[float] | None) -> Iterator[Rung]:
    """Patches and depths, ever smaller, from the whole volume on.

    The first is `size`, rounded up to a multiple of ``2 ** (depth - 1)``. Then the axis that is the longest in mm loses
    so much at every step, and a level is given up once no axis can.

    Args:
        size: voxels, of the whole.
        spacing_mm: of these voxels; None takes them for cubes.

    Example:
        >>> list(ladder([8, 17], None))
        [((8, 18), 2), ((8, 16), 2), ((8, 14), 2), ((8, 12), 2), ((8, 10), 2), ((8, 8), 2)]
    """
    depth, sides = levels(size), spacing_mm or [1.0] * len(size)
    period = 2 ** (depth - 1)
    patch = [-(-n // period) * period for n in size]
    while True:
        yield tuple(patch), depth
        period = 2 ** (depth - 1)
        can = [axis for axis, n in enumerate(patch) if n - period >= LEAST_EDGE * period]
        if can:
            patch[max(can, key=lambda axis: patch[axis] * sides[axis])] -= period
        elif depth > 2:
            depth -= 1
        else:
            return


@dataclass(frozen=True)
class Step:
    """A training step whose memory is to be estimated: the network but for its depth.

    `keywords` are those of `pipeline.networks.UNet` beside width and depth.
    """

    channels: int
    classes: int
    width: int
    keywords: Mapping[str, Any]

    def bytes(self, patch: Sequence[int], depth: int, batch: int = LEAST_BATCH) -> int:
        """The memory that a step of `batch` patches takes."""
        with torch.device("meta"):
            twin = network(
                spatial_dims=len(patch),
                in_channels=self.channels,
                out_channels=self.classes,
                width=self.width,
                depth=depth,
                **self.keywords,
            )
            images = torch.empty(batch, self.channels, *patch)
        return training_bytes(twin, images, self.classes)


def largest(rungs: Sequence[Rung], step: Step, budget: float) -> Rung:
    """The first rung of a ladder that fits.

    Args:
        rungs: from `ladder`.
        step: whose memory counts.
        budget: bytes that it may take with `LEAST_BATCH` patches.

    Raises:
        InputError: not even the last one fits.
    """
    if step.bytes(*rungs[0]) <= budget:
        return rungs[0]
    number = bisect_left(rungs, True, lo=1, key=lambda rung: step.bytes(*rung) <= budget)
    if number == len(rungs):
        patch, depth = rungs[-1]
        raise InputError(
            f"{budget / 1e9:g} GB do not hold one step of {LEAST_BATCH} patches of {by(patch)} with "
            f"width {step.width}: that takes about {step.bytes(patch, depth) / 1e9:.2g} GB; give more "
            "--memory-gb or a smaller --width"
        )
    return rungs[number]


def most_patches(step: Step, patch: Sequence[int], depth: int, budget: float, voxels: float) -> int:
    """As many patches as fit into `budget` bytes, at most `voxels` together, at least `LEAST_BATCH`."""
    most = max(LEAST_BATCH, round(voxels / float(np.prod(patch))))
    counts = range(LEAST_BATCH + 1, most + 1)
    return LEAST_BATCH + bisect_left(counts, True, key=lambda count: step.bytes(patch, depth, count) > budget)


def by(sizes: Sequence[float]) -> str:
    """Sizes as text, 40 x 56 x 40."""
    return " x ".join(f"{size:g}" for size in sizes)
