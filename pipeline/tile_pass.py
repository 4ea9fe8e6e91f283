"""One pass of a network over the tiles of a batch of images, as a plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pipeline.reach import one_tensor
from pipeline.tiling import Plan, by, device_of


def mirror(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Reflect indices into [0, size) as often as it takes, without repeating the first or last pixel.

    Args:
        indices: whole numbers, any shape; may be negative or beyond `size`.
        size: number of pixels, at least 1.

    Returns:
        Indices of the same shape, e.g. -1 -> 1 and size -> size - 2; all 0 for one pixel.
    """
    period = max(1, 2 * (size - 1))
    folded = indices.remainder(period)
    return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(indices)


class TilePass:
    """Runs a network over the tiles of a batch of images.

    Args:
        image: (N, C, H, W[, D]).
        network: takes tiles.
        plan: for images of this shape.
        args: further arguments of the network.
        kwargs: further keyword arguments of the network.
        layout: memory format of what the network takes; None leaves it as it is.
    """

    def __init__(
        self,
        image: torch.Tensor,
        network: Callable[..., Any],
        plan: Plan,
        *,
        args: Any,
        kwargs: Any,
        layout: torch.memory_format | None = None,
    ) -> None:
        self.image, self.network, self.plan, self.args, self.kwargs = image, network, plan, args, kwargs
        self.layout = layout or torch.preserve_format
        self.device = device_of(network) if isinstance(network, nn.Module) else image.device

    def each(self, batch_size: int, progress: bool) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Give the trusted part of every tile of every image, and where it goes."""
        tiles = product(*(range(a.count) for a in self.plan.axes))
        places = list(product(range(len(self.image)), tiles))
        batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
        for batch in tqdm(batches, desc="tiles") if progress else batches:
            out = self.apply(torch.cat([self.cut(n, self.windows(i)) for n, i in batch]))
            for one, (n, i) in zip(out, batch, strict=True):
                to, take = self.kept(i, self.windows(i))
                yield (slice(n, n + 1), *to), one[None, :, *take]

    def windows(self, index: Sequence[int]) -> list[tuple[int, int]]:
        """Give start and length of a tile along each axis."""
        return [(a.window(i), a.tile) for a, i in zip(self.plan.axes, index, strict=True)]

    def cut(self, n: int, windows: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Cut (1, C, ...) from image `n`, mirrored where the window leaves it."""
        tile = self.image[n : n + 1]
        for dim, (start, length) in enumerate(windows, 2):
            size = tile.shape[dim]
            if start >= 0 and start + length <= size:
                tile = tile.narrow(dim, start, length)
            else:
                indices = torch.arange(start, start + length, device=tile.device)
                tile = tile.index_select(dim, mirror(indices, size))
        return tile

    def apply(self, tiles: torch.Tensor) -> torch.Tensor:
        """Give the network's output for tiles, of the size that the plan expects."""
        tiles = tiles.to(self.device, memory_format=self.layout)
        out = one_tensor(self.network(tiles, *self.args, **self.kwargs))
        expected = [n - 2 * a.lost for n, a in zip(tiles.shape[2:], self.plan.axes, strict=True)]
        if list(out.shape[2:]) != expected:
            raise ValueError(
                f"the network must turn {by(tiles.shape[2:])} into {by(expected)}, got {by(out.shape[2:])}"
            )
        return out

    def kept(self, index: Sequence[int], windows: Sequence[tuple[int, int]]) -> tuple[list[slice], list[slice]]:
        """Give where a tile's trusted part goes in the image, and where it is in the output for a window."""
        to, take = [], []
        for axis, i, (start, _) in zip(self.plan.axes, index, windows, strict=True):
            first, last = axis.keep(i)
            to.append(slice(first, last))
            take.append(slice(first - start - axis.lost, last - start - axis.lost))
        return to, take

    @torch.no_grad()
    def difference(self, wider: Sequence[int]) -> tuple[float, float]:
        """Compare a tile in the middle with one that is larger on each side; gives difference and largest."""
        index = [a.count // 2 for a in self.plan.axes]
        parts = []
        for extra in ([0] * len(wider), wider):
            windows = []
            for axis, (start, length), more in zip(self.plan.axes, self.windows(index), extra, strict=True):
                first, last = start - more, start + length + more
                if not axis.mirrored:
                    first, last = max(first, 0), min(last, axis.whole)
                windows.append((first, last - first))
            out = self.apply(self.cut(0, windows))
            _, take = self.kept(index, windows)
            parts.append(out[:, :, *take].double())
        return float((parts[0] - parts[1]).abs().max()), float(parts[1].abs().max())
