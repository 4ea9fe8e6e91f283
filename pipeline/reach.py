"""How far a network sees, and the shifts that it follows: the numbers that make tiling exact."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from pipeline.line import Line, shape_only

LINE = 5760
"""Least length of the line on which reach is measured: a multiple of 2**7, 9 and 5, and sees 2,000 px far."""

SHIFT = 960
"""The shift tried first, 64 * 3 * 5: a multiple of every product of strides in use; its divisors come next."""

SAME = 1e-9
"""Relative difference below which two float64 results are one: rounding is 1e-15, a wrong phase 1e-4."""

FIRST_SIZES = (*range(256, 321), *range(16, 256), *range(321, 800))
"""Where a size that the network takes is looked for; it ends with the first one found."""

SMALL_SIZES = (16, 32, 48, 64, 96, 128)
"""Sizes tried for the axes that are not being looked at; the smaller, the faster."""


@dataclass(frozen=True)
class Reach:
    """How a network sees one spatial axis, in pixels.

    Attributes:
        stride: smallest shift of the input that only shifts the output: the product of the strides.
        lost: pixels that the output lacks on each side; 0 for a padded network.
        halo: pixels on each side of an aligned tile whose outputs depend on what lies beyond it (`lost` plus
            whole strides), or None where no finite number is known.
        least: smallest input that the network takes; the others are larger by multiples of `stride`.
    """

    stride: int
    lost: int
    halo: int | None
    least: int

    def below(self, size: int) -> int:
        """Give the largest valid input that is not larger than `size`, or the least."""
        return max(self.least, size - (size - self.least) % self.stride)

    def cover(self, size: int) -> int:
        """Give the smallest valid input that is not smaller than `size`."""
        below = self.below(size)
        return below if below >= size else below + self.stride


@dataclass
class Analysis:
    """The reach of a network along each axis, and why tiling it is not exact ("" where it is).

    Its memory is estimated with `twin`, a copy without data, or with `light`, one of its deployed copy, which may
    keep a pixel's channels together.
    """

    axes: tuple[Reach, ...]
    reason: str
    twin: nn.Module | None = None
    dtype: torch.dtype = torch.float32
    light: nn.Module | None = None
    channels_last: bool = False
    plans: dict[Any, Any] = field(default_factory=dict)
    peaks: dict[Any, float] = field(default_factory=dict)
    warned: set[Any] = field(default_factory=set)


def analyse(network: nn.Module, channels: int, dims: int, *args: Any, **kwargs: Any) -> Analysis:
    """Find stride, loss, halo and least size of a network along each axis.

    Args:
        network: takes (1, channels, H, W[, D]) and gives one tensor; it is copied, never run itself.
        channels: input channels.
        dims: spatial axes, 2 or 3.
        args: further arguments of the network.
        kwargs: further keyword arguments of the network.

    Returns:
        The analysis; its `reason` is "" where aligned tiles with the halo give what the whole image gives.

    Raises:
        ValueError: no size is taken, or the output is not one tensor of the input's scale.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        probe = _Probe(network, channels, dims, args=args, kwargs=kwargs)
        start = probe.first_size()
        axes = [probe.reach(axis, start) for axis in range(dims)]
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        return Analysis(tuple(axes), "; ".join(sorted(probe.notes)), probe.meta.to(dtype), dtype)


class _Probe:
    """A copy of a network and the experiments that are made on it."""

    def __init__(self, network: nn.Module, channels: int, dims: int, *, args: Any, kwargs: Any) -> None:
        self.channels, self.dims, self.others, self.notes = channels, dims, 0, set[str]()
        self.shapes = dict[str, tuple[torch.Size, bool]]()
        self.copy = _copy(network).double()
        self.meta = copy.deepcopy(self.copy).to("meta")
        as_double = _mover(lambda t: t.cpu().double() if t.is_floating_point() else t.cpu())
        self.args, self.kwargs = tree_map(as_double, args), tree_map(as_double, kwargs)
        self.meta_args = tree_map(_mover(shape_only), (self.args, self.kwargs))

    def sizes(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Give the output's spatial size; raises what the network raises."""
        x = torch.empty(1, self.channels, *spatial, dtype=torch.float64, device="meta")
        return tuple(one_tensor(self.meta(x, *self.meta_args[0], **self.meta_args[1])).shape[2:])

    def size(self, axis: int, n: int, others: int) -> int | None:
        """Give the output's length along `axis` for an input of length `n`, or None where that is refused."""
        spatial = [others] * self.dims
        spatial[axis] = n
        try:
            return self.sizes(spatial)[axis]
        except (ValueError, RuntimeError, AssertionError, IndexError):
            return None

    def first_size(self) -> int:
        """Find a size that the network takes along all axes at once."""
        last: Exception | None = None
        for n in FIRST_SIZES:
            try:
                out = self.sizes([n] * self.dims)
            except (RuntimeError, AssertionError, IndexError) as error:
                last = error
                continue
            except ValueError as error:
                if isinstance(error, NotOneTensorError):
                    raise
                last = error
                continue
            if len(out) == self.dims:
                return n
        raise ValueError(
            f"the network takes no image of {self.channels} channels and {FIRST_SIZES[0]} or nearby pixels along"
            f" each of {self.dims} axes, its last word was: {last}"
        )

    def reach(self, axis: int, start: int) -> Reach:
        """Measure one axis; a size is valid if it loses least and lies on the grid of the strides."""
        first, period, lost = self.period(axis, start)
        length = first + -(-(LINE - first) // period) * period
        self.others = next((n for n in SMALL_SIZES if self.size(axis, length, n) == length - 2 * lost), start)
        stride = self.stride(axis, length, period, lost)
        if stride is None:
            self.notes.add("its output does not shift with its input")
            stride = period
        halo = self.halo(axis, stride, length, lost)
        if halo is None:
            self.notes.add("every output depends on the whole tile")
        if lost == 0:
            first = -(-first // stride) * stride
        steps = range((first - 1) // stride, -1, -1)
        low, high = 0, len(steps) - 1  # from `first` down, sizes are taken until one is too small
        while low < high:
            middle = (low + high + 1) // 2
            size = first - middle * stride
            taken = self.size(axis, size, start) == size - 2 * lost
            low, high = (middle, high) if taken else (low, middle - 1)
        return Reach(stride, lost, halo, first - low * stride)

    def period(self, axis: int, start: int) -> tuple[int, int, int]:
        """Find the first size from `start` on that loses least, the period of such sizes, the loss per side."""
        best: tuple[int, int] | None = None
        for n in range(start, start + 4 * SHIFT):
            out = self.size(axis, n, start)
            if out is None or not 0 < out <= n:
                continue
            if best is not None and n - out == best[0]:
                if best[0] % 2:
                    raise ValueError(f"the network must lose as much on each side, it lost {best[0]} pixels in all")
                return best[1], n - best[1], best[0] // 2
            if best is None or n - out < best[0]:
                best = n - out, n
        raise ValueError(
            "the network must give as many pixels as it takes, or fewer by a fixed margin, at more than one size"
        )

    def stride(self, axis: int, length: int, period: int, lost: int) -> int | None:
        """Find the smallest shift that the output follows, or None; a multiple of `period`."""
        seen = self.seen_from(axis, length, (length - SHIFT) // 2, SHIFT)
        if seen is None:
            return None
        ends = max(seen) + SHIFT  # pixels that may see an end of the line, whatever their phase
        values = torch.rand(length + math.lcm(SHIFT, period), generator=torch.Generator().manual_seed(0)) + 0.5
        values = values.double()
        still = self.run(axis, values[:length])

        def follows(shift: int) -> bool:
            a = still[shift + ends - lost : length - ends - lost]
            b = self.run(axis, values[shift : shift + length])[ends - lost : length - ends - lost - shift]
            return a.numel() > 0 and bool((a - b).abs().max() <= SAME * a.abs().max())

        stride = math.lcm(SHIFT, period)
        if not follows(stride):
            return None
        for prime in (2, 3, 5, 7):
            while stride % (prime * period) == 0 and follows(stride // prime):
                stride //= prime
        return stride

    def halo(self, axis: int, stride: int, length: int, lost: int) -> int | None:
        """Find how far outputs depend on the block before a tile's first pixel and on that behind its last."""
        first = length // 2 // stride * stride  # in phase with the start of the line, as tiles are
        before = self.seen_from(axis, length, first - stride, stride)
        behind = self.seen_from(axis, length, first + length % stride, stride)
        if before is None or behind is None:
            return None
        far = max(before[1], behind[0])
        return lost + -(-max(0, far - lost) // stride) * stride

    def seen_from(self, axis: int, length: int, start: int, width: int) -> tuple[int, int] | None:
        """Tell how many pixels before and behind a block of NaN the output is NaN; None if up to an end."""
        values = torch.ones(length, dtype=torch.float64)
        values[start : start + width] = torch.nan
        out = self.run(axis, values)
        hit = out.isnan().nonzero().flatten()
        if hit.numel() == 0 or hit[0] == 0 or hit[-1] == out.numel() - 1:
            return None
        lost = (length - out.numel()) // 2
        return start - (int(hit[0]) + lost), int(hit[-1]) + lost - (start + width - 1)

    def run(self, axis: int, values: torch.Tensor) -> torch.Tensor:
        """Run the copy on an image that is `values` along `axis`; gives the output along `axis`."""
        mode = Line(axis, self.dims, self.shapes)
        spatial = [self.others] * self.dims
        spatial[axis] = values.numel()
        x = mode.spread(values, torch.Size([1, self.channels, *spatial]))
        with mode:
            out = one_tensor(self.copy(x, *self.args, **self.kwargs))
        self.notes |= mode.notes
        return mode.line(out).flatten()


class NotOneTensorError(ValueError):
    """The network gave a tuple, a list or a dictionary."""


def one_tensor(out: Any) -> torch.Tensor:
    """Give a network's output, which must be one tensor."""
    if isinstance(out, torch.Tensor):
        return out
    raise NotOneTensorError(
        f"the network must return one tensor, got {type(out).__name__}: wrap it in a module that picks one"
    )


def _copy(network: nn.Module) -> nn.Module:
    """Copy a network to the CPU, in eval mode, without what DDP or compilation has wrapped around it."""
    twin = copy.deepcopy(unwrap(network)).cpu().eval()
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


def unwrap(network: nn.Module) -> nn.Module:
    """Give the module inside DDP, DataParallel or `torch.compile`."""
    while True:
        if hasattr(network, "_orig_mod"):
            network = network._orig_mod  # type: ignore[assignment]
        elif isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        else:
            return network


def _mover(move: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda value: move(value) if isinstance(value, torch.Tensor) else value
