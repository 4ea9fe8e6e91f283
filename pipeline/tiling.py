"""How an image is cut into tiles: the plan of an inference, told before it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.memory import available_bytes, inference_bytes
from pipeline.reach import Analysis

MOST_TILES = 24
"""Numbers of tiles per axis that the search for the cheapest tile looks at."""


class Settings(NamedTuple):
    """What the user of an inferer asked for; None is the inferer's own choice."""

    tile: int | tuple[int, ...] | None
    border: str | None
    margin: int | tuple[int, ...] | None
    memory_gb: float | None
    batch_size: int


@dataclass(frozen=True)
class Axis:
    """How one axis of an image is cut into tiles, in pixels.

    A tile starts at a multiple of `stride` and is trusted but for `margin` pixels on each side; of these the
    network itself takes away `lost`. `mirrored`: every tile's margin may lie outside the image, which is
    mirrored there; otherwise the tiles cover `whole`, the image lengthened at its far end to a size that the
    network takes, and keep their outermost pixels there.
    """

    size: int
    whole: int
    tile: int
    margin: int
    lost: int
    stride: int
    mirrored: bool

    @property
    def step(self) -> int:
        """Pixels from one tile to the next."""
        return (self.tile - 2 * self.margin) // self.stride * self.stride

    @property
    def count(self) -> int:
        """Number of tiles."""
        far = self.size - (self.tile - 2 * self.margin) if self.mirrored else self.whole - self.tile
        return 1 + max(0, -(-far // self.step)) if far > 0 else 1

    def window(self, i: int) -> int:
        """Give the first pixel that tile `i` reads, negative where it lies before the image."""
        if self.mirrored:
            return i * self.step - self.margin
        return min(i * self.step, self.whole - self.tile)

    def keep(self, i: int) -> tuple[int, int]:
        """Give the first and one past the last pixel of the image that tile `i` writes."""
        start = self.window(i)
        first, last = start + self.margin, start + self.tile - self.margin
        if not self.mirrored:
            first = 0 if i == 0 else first
            last = self.size if i == self.count - 1 else last
        return first, min(last, self.size)


@dataclass(frozen=True)
class Plan:
    """What an inferer is going to do with images of one shape.

    Attributes:
        shape: spatial size of the image.
        tile: input size of the network.
        step: pixels between neighbouring tiles.
        margin: pixels on each side of a tile whose outputs are dropped, where the image goes on.
        stride: tiles start at multiples of this.
        border: `"network"` or `"mirror"`.
        tiles: number of tiles per image.
        exact: whether the result is what the network gives for the whole image.
        reason: why it is not, or "".
        memory_gb: estimate of what one batch of tiles takes at its peak, weights not counted; nan if unknown.
        cost: voxels that the network processes per voxel of the image.
    """

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    step: tuple[int, ...]
    margin: tuple[int, ...]
    stride: tuple[int, ...]
    border: str
    tiles: int
    exact: bool
    reason: str
    memory_gb: float
    cost: float
    axes: tuple[Axis, ...] = field(repr=False)

    def __str__(self) -> str:
        one = self.tiles == 1
        how = "one tile" if one else f"{self.tiles} tiles"
        what = f"{by(self.shape)} in {how} of {by(self.tile)}"
        what += "" if one else f", margin {by(self.margin)}, step {by(self.step)}"
        memory = "unknown" if math.isnan(self.memory_gb) else f"{self.memory_gb:.2g} GB"
        truth = "exact" if self.exact else f"approximate ({self.reason})"
        return f"{what}, border {self.border}, memory {memory}, {self.cost:.2f} x the image: {truth}"


def by(sizes: Sequence[int | None]) -> str:
    """Give sizes as text, 512 x 512."""
    return " x ".join(map(str, sizes))


class Planner:
    """Chooses the tile for images of one shape."""

    def __init__(self, settings: Settings, shape: Sequence[int], network: Any, analysis: Analysis) -> None:
        self.settings, self.network, self.analysis = settings, network, analysis
        self.images, self.channels, self.sizes = shape[0], shape[1], tuple(shape[2:])
        lost = [r.lost for r in analysis.axes]
        self.border = settings.border or ("mirror" if any(lost) else "network")
        if self.border == "network" and any(lost):
            raise ValueError(
                f"`border='network'` needs a network that keeps its input's size, this one loses {by(lost)}"
                " pixels on each side: use `border='mirror'`"
            )
        self.margins = self._margins()
        self.full = [
            r.cover(n if self.border == "network" else n + 2 * m)
            for r, n, m in zip(analysis.axes, self.sizes, self.margins, strict=True)
        ]

    def plan(self) -> Plan:
        """Give the plan: the tile that was asked for, the whole image, or the cheapest tile that fits."""
        tile = tuple(self.full)
        if self.settings.tile is not None:
            tile = self._given()
        elif not self._fits(tile):
            tile = self._cheapest()
        axes = self._axes(tile)
        tiles = math.prod(a.count for a in axes)
        reason = self._reason() if tiles > 1 else ""
        return Plan(
            shape=self.sizes,
            tile=tile,
            step=tuple(a.step for a in axes),
            margin=tuple(self.margins),
            stride=tuple(a.stride for a in axes),
            border=self.border,
            tiles=tiles,
            exact=not reason,
            reason=reason,
            memory_gb=self._bytes(tile) / 1e9,
            cost=tiles * math.prod(tile) / math.prod(self.sizes),
            axes=axes,
        )

    def _margins(self) -> list[int]:
        given = self.settings.margin
        if given is None:
            return [r.lost if r.halo is None else r.halo for r in self.analysis.axes]
        margins = per_axis(given, len(self.sizes))
        for m, r in zip(margins, self.analysis.axes, strict=True):
            if m < r.lost:
                raise ValueError(f"`margin` must be at least the {r.lost} pixels that the network loses, got {m}")
        if self.border == "network":
            return margins
        # The mirrored image starts in one phase, whatever the margin.
        return [r.lost - (r.lost - m) // r.stride * r.stride for m, r in zip(margins, self.analysis.axes, strict=True)]

    def _axes(self, tile: Sequence[int]) -> tuple[Axis, ...]:
        parts = zip(self.sizes, tile, self.margins, self.analysis.axes, strict=True)
        mirrored = self.border == "mirror"
        return tuple(Axis(n, r.cover(n), t, m, r.lost, r.stride, mirrored) for n, t, m, r in parts)

    def _reason(self) -> str:
        reasons = [self.analysis.reason] if self.analysis.reason else []
        halos = [r.halo for r in self.analysis.axes]
        if any(h is not None and m < h for m, h in zip(self.margins, halos, strict=True)):
            reasons.append(f"the margin {by(self.margins)} is below the halo {by(halos)}")
        if getattr(self.network, "training", False) and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.network.modules()
        ):
            reasons.append("batch norm is in training mode")
        return "; ".join(reasons)

    def _least(self, i: int) -> int:
        """Give the smallest tile along axis `i` that leaves a step."""
        reach = self.analysis.axes[i]
        if reach.halo is None and self.settings.margin is None:
            return self.full[i]
        return min(self.full[i], reach.cover(2 * self.margins[i] + reach.stride))

    def _given(self) -> tuple[int, ...]:
        tiles = per_axis(self.settings.tile, len(self.sizes))
        for i, (t, r) in enumerate(zip(tiles, self.analysis.axes, strict=True)):
            if t != r.cover(t):
                rest = r.least % r.stride
                grid = f"{rest} more than a multiple of {r.stride}" if rest else f"a multiple of {r.stride}"
                use = f"{r.below(t)} or {r.cover(t)}" if t > r.least else f"{r.least} or more"
                raise ValueError(f"`tile` must be {grid}, got {t}: use {use}")
            if t < self._least(i):
                if r.halo is None and self.settings.margin is None:
                    raise ValueError(f"{self.analysis.reason}, so no tile is exact: give a `margin`")
                less = ", or a smaller `margin` for an approximate result" if self.margins[i] > r.lost else ""
                raise ValueError(
                    f"`tile` must be at least {self._least(i)} for a margin of {self.margins[i]} pixels, got {t}:"
                    f" use that or more{less}"
                )
        return tuple(min(t, full) for t, full in zip(tiles, self.full, strict=True))

    def _cheapest(self) -> tuple[int, ...]:
        """Find the tile within the budget for which the network processes the fewest pixels."""
        choices = [self._choices(i) for i in range(len(self.sizes))]
        whole, volume = self._bytes(self.full), math.prod(self.full)
        if math.isnan(whole):
            raise ValueError("how much memory the network takes cannot be estimated: give `tile`")

        def cost(tile: Sequence[int]) -> tuple[int, int]:
            tiles = math.prod(a.count for a in self._axes(tile))
            return tiles * math.prod(tile), tiles

        for tile in sorted(product(*choices), key=cost):
            if whole * math.prod(tile) / volume < 1.2 * self.budget and self._fits(tile):
                return tile
        least = tuple(self._least(i) for i in range(len(self.sizes)))
        if self._fits(least):
            return least
        raise ValueError(
            f"the smallest tile for a margin of {by(self.margins)}, {by(least)}, takes"
            f" {self._bytes(least) / 1e9:.2g} GB and {self.budget / 1e9:.2g} GB may be used: raise `memory_gb`, or"
            " give a smaller `margin` for an approximate result"
        )

    def _choices(self, i: int) -> list[int]:
        """List, for growing numbers of tiles along axis `i`, the smallest tile that needs no more."""
        r, smallest = self.analysis.axes[i], dict[int, int]()
        for t in range(self.full[i], self._least(i) - 1, -r.stride):
            axis = Axis(
                self.sizes[i], r.cover(self.sizes[i]), t, self.margins[i], r.lost, r.stride, self.border == "mirror"
            )
            smallest[axis.count] = t
        tiles = [smallest[count] for count in sorted(smallest)]
        spread = (len(tiles) ** (k / (MOST_TILES - 1)) for k in range(MOST_TILES))
        return [tiles[k] for k in sorted({min(round(x), len(tiles)) - 1 for x in spread})]

    @property
    def budget(self) -> float:
        """Bytes that one batch of tiles may take."""
        if self.settings.memory_gb is not None:
            return self.settings.memory_gb * 1e9
        if not hasattr(self, "_free"):
            self._free = available_bytes(device_of(self.network)) / 2
        return self._free

    def _fits(self, tile: Sequence[int]) -> bool:
        return self._bytes(tile) <= self.budget

    def _bytes(self, tile: Sequence[int]) -> float:
        """Estimate the peak of one batch of tiles, in bytes; nan where the network does not run without data."""
        tiles = math.prod(a.count for a in self._axes(tile)) * self.images
        size = (min(self.settings.batch_size, tiles), self.channels, *tile)
        trained = torch.is_grad_enabled() or getattr(self.network, "training", False)
        twin = self.analysis.twin if trained else self.analysis.light or self.analysis.twin
        key = (size, id(twin), torch.is_grad_enabled())
        if key not in self.analysis.peaks:
            self.analysis.peaks[key] = self._estimate(twin, size)
        return self.analysis.peaks[key]

    def _estimate(self, twin: nn.Module | None, shape: Any) -> float:
        if twin is None:
            return math.nan
        try:
            x = torch.empty(shape, dtype=self.analysis.dtype, device="meta")
            last = twin is self.analysis.light and self.analysis.channels_last
            return inference_bytes(twin, x, device_of(self.network), channels_last=last)
        except (RuntimeError, ValueError, TypeError):
            return math.nan


def device_of(network: Any) -> torch.device:
    """Give the device of a network's first parameter or buffer; the CPU where it has none."""
    tensors = (*network.parameters(), *network.buffers()) if isinstance(network, nn.Module) else ()
    return tensors[0].device if tensors else torch.device("cpu")


def per_axis(value: Any, dims: int) -> list[int]:
    """Give one number per axis from one number for all or a number for each."""
    return [value] * dims if isinstance(value, int) else list(value)
