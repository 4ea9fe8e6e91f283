"""Overlap-tile inference (arXiv 1505.04597, figure 2) whose result does not depend on the tiles."""

import copy
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F  # noqa: N812
from monai.data import MetaTensor
from monai.inferers.inferer import Inferer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE = 5760
"""Least length of the line on which reach is measured: a multiple of 2**7, 9 and 5, and sees 2,000 px far."""

SHIFT = 960
"""The shift tried first, 64 * 3 * 5: a multiple of every product of strides in use; its divisors come next."""

SAME = 1e-9
"""Relative difference below which two float64 results are one: rounding is 1e-15, a wrong phase 1e-4."""

WORKSPACE = 1.6
"""Resident memory per byte of live tensors: 1.39 to 1.55 measured on the CPU for U-Nets in 2D and 3D (buffers of the
convolutions, slack of the allocator)."""

FIRST_SIZES = (*range(256, 321), *range(16, 256), *range(321, 800))
"""Where a size that the network takes is looked for; it ends with the first one found."""

SMALL_SIZES = (16, 32, 48, 64, 96, 128)
"""Sizes tried for the axes that are not being looked at; the smaller, the faster."""

MOST_ELEMENTS = 2**26
"""Elements of a tensor that the analysis still handles one by one."""

BLIND_STRIDE = 64
"""Where a network cannot be analysed, tiles start at multiples of what divides this and the tile."""

MOST_TILES = 24
"""Numbers of tiles per axis that the search for the cheapest tile looks at."""


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
    """The reach of a network along each axis, and why tiling it is not exact ("" where it is)."""

    axes: tuple[Reach, ...]
    reason: str
    twin: nn.Module | None = None
    dtype: torch.dtype = torch.float32
    plans: dict[Any, "Plan"] = field(default_factory=dict)
    peaks: dict[Any, float] = field(default_factory=dict)
    warned: set[Any] = field(default_factory=set)


def _kernel(taps: int) -> torch.Tensor:
    """Give `taps` positive weights, all different, of sum 1."""
    weights = 1 + torch.sin(torch.arange(1.0, taps + 1, dtype=torch.float64)) / 2
    return (weights / weights.sum()).view(1, 1, -1)


def _at(values: Any, axis: int) -> int:
    values = [values] if isinstance(values, int) else values
    return values[axis] if len(values) > 1 else values[0]


def _or(args: tuple[Any, ...], *defaults: Any) -> tuple[Any, ...]:
    """Fill up the positional arguments of an operation with its defaults."""
    return (*args, *defaults[len(args) :])


def _convolve(line: torch.Tensor, axis: int, _out: int, weight: torch.Tensor, *args: Any) -> torch.Tensor:
    _bias, stride, padding, dilation, transposed, output_padding, _groups = args
    kernel, step, pad, gap = _kernel(weight.shape[axis]), *(_at(v, axis) for v in (stride, padding, dilation))
    if transposed:
        extra = _at(output_padding, axis)
        return F.conv_transpose1d(line, kernel, None, step, pad, extra, dilation=gap)
    return F.conv1d(line, kernel, None, step, pad, gap)


def _max_pool(line: torch.Tensor, axis: int, _out: int, *args: Any) -> torch.Tensor:
    size, (stride, padding, dilation, ceil_mode) = args[0], _or(args[1:], (), 0, 1, False)
    size, stride, padding, dilation = (_at(v, axis) for v in (size, stride or size, padding, dilation))
    return F.max_pool1d(line, size, stride, padding, dilation, ceil_mode)


def _avg_pool(line: torch.Tensor, axis: int, _out: int, *args: Any) -> torch.Tensor:
    size, (stride, padding, ceil_mode, count_pads) = args[0], _or(args[1:5], (), 0, False, True)
    size, stride, padding = (_at(v, axis) for v in (size, stride or size, padding))
    return F.avg_pool1d(line, size, stride, padding, ceil_mode, count_pads)


def _pad(mode: str) -> Callable[..., torch.Tensor]:
    def pad(line: torch.Tensor, axis: int, _out: int, pads: Any, value: float = 0.0) -> torch.Tensor:
        first = -2 * (axis + 1)  # pads are listed from the last axis on
        pair = list(pads[first : first + 2]) or [0, 0]
        return F.pad(line, pair, mode=mode, value=value if mode == "constant" else None)

    return pad


def _upsample(mode: str) -> Callable[..., torch.Tensor]:
    def upsample(line: torch.Tensor, _axis: int, out: int, *_args: Any) -> torch.Tensor:
        return F.interpolate(line, size=out, mode=mode)

    return upsample


ALONG: dict[str, Callable[..., torch.Tensor]] = {
    "convolution": _convolve,
    **{f"max_pool{d}d_with_indices": _max_pool for d in (2, 3)},
    **{f"avg_pool{d}d": _avg_pool for d in (2, 3)},
    **{f"upsample_nearest{d}d": _upsample("nearest") for d in (2, 3)},
    **{f"_upsample_nearest_exact{d}d": _upsample("nearest-exact") for d in (2, 3)},
    **{name: _upsample("linear") for name in ("upsample_bilinear2d", "upsample_trilinear3d")},
    "constant_pad_nd": _pad("constant"),
    **{f"reflection_pad{d}d": _pad("reflect") for d in (2, 3)},
    **{f"replication_pad{d}d": _pad("replicate") for d in (2, 3)},
}
"""Operations that mix pixels, computed along one axis, which is counted from the end (-1 is the last)."""

POINTWISE = {
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "mish",
    "celu",
    "hardtanh",
    "hardswish",
    "sigmoid",
    "tanh",
    "_prelu_kernel",
    "clone",
    "_to_copy",
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "minimum",
}
"""Operations on one pixel at a time, in place or not."""

NORMS = {
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "_native_batch_norm_legit_no_training": None,
    "native_group_norm": -1,
    "native_layer_norm": -1,
}
"""Norms, and where they say that the statistics come from the tile itself."""


class _Line(TorchDispatchMode):
    """Runs a network on an image that varies along one axis only, all channels alike, in the time of a line.

    Reach and stride belong to the wiring and not to the weights: every convolution becomes one positive kernel
    along the axis, so no path is dead behind a ReLU and no width costs time. A tensor that varies along the
    axis only has stride 0 everywhere else. Norms are left out; those that take their statistics from the tile
    are put down in `notes`, and so are aligned corners, which are computed as if not aligned.
    """

    def __init__(self, axis: int, dims: int, shapes: dict[str, tuple[torch.Size, bool]]) -> None:
        super().__init__()
        self.axis, self.dims, self.shapes, self.notes = axis, dims, shapes, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in NORMS:
            self._note_norm(name, args)
            return self._copied(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        lines = [self._is_line(t) for t in tensors]
        if name in ALONG and (lines[0] or name == "convolution"):
            return self._along(name, func, args, kwargs)
        if name == "cat" and any(lines) and len(args) > 1 and args[1] == 1:
            mean = torch.stack([self._line(t) for t in tensors]).mean(0)
            return self._spread(mean, self._shape(func, args, kwargs)[0])
        if name.removesuffix("_") in POINTWISE and (lines[0] if func._schema.is_mutable else any(lines)):
            return self._pointwise(func, args, kwargs)
        if max((t.numel() for t in tensors), default=0) > MOST_ELEMENTS and not func.is_view:
            raise ValueError(f"the network uses {func}, which cannot be followed along one axis")
        return func(*args, **kwargs)

    def _along(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        shape, with_indices = self._shape(func, args, kwargs)
        if name in ("upsample_bilinear2d", "upsample_trilinear3d") and args[2]:
            self.notes.add("it interpolates with aligned corners, whose grid depends on the size of the tile")
        line = ALONG[name](self._line(args[0]), self.axis - self.dims, shape[2 + self.axis], *args[1:])
        out = self._spread(line, shape)
        return (out, torch.zeros((), dtype=torch.int64).expand(shape)) if with_indices else out

    def _pointwise(self, func: Any, args: Any, kwargs: Any) -> Any:
        shape, _ = self._shape(func, args, kwargs)
        out = func(*map(self._thin, args), **kwargs)
        return args[0] if func._schema.is_mutable else out.expand(shape)

    def _thin(self, value: Any) -> Any:
        """Reduce a tensor to its variation along the axis, by a view where it is a line and a mean elsewhere."""
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        if self._is_line(value):
            return value[tuple(slice(None) if d == self.axis + 2 else slice(1) for d in range(value.dim()))]
        value = value[(None,) * (self.dims + 2 - value.dim())]
        return value.mean([d for d in range(value.dim()) if d != self.axis + 2], keepdim=True)

    def _is_line(self, t: torch.Tensor) -> bool:
        others = (d for d in range(t.dim()) if d != self.axis + 2)
        return t.dim() == self.dims + 2 and all(t.stride(d) == 0 or t.shape[d] == 1 for d in others)

    def _line(self, t: torch.Tensor) -> torch.Tensor:
        return self._thin(t).reshape(1, 1, -1)

    def _spread(self, line: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        view = [1] * (self.dims + 2)
        view[self.axis + 2] = -1
        return line.reshape(view).expand(shape)

    def _copied(self, t: torch.Tensor) -> torch.Tensor:
        return self._spread(self._line(t).clone(), t.shape) if self._is_line(t) else t.clone()

    def _shape(self, func: Any, args: Any, kwargs: Any) -> tuple[torch.Size, bool]:
        """Give the shape of an operation's output, and whether indices of the same shape come with it."""
        key = str((func, tree_map(lambda v: v.shape if isinstance(v, torch.Tensor) else v, (args, kwargs))))
        if key not in self.shapes:
            out = func(*tree_map(_shape_only, args), **tree_map(_shape_only, kwargs))
            with_indices = isinstance(out, tuple)
            self.shapes[key] = (out[0] if with_indices else out).shape, with_indices
        return self.shapes[key]

    def _note_norm(self, name: str, args: Any) -> None:
        flag = NORMS[name]
        if name == "native_layer_norm" and len(args[1]) == 1:
            return  # over the channels of one pixel
        if flag is not None and (flag < 0 or args[flag] is not False):
            self.notes.add("instance or group norm takes its statistics from the whole tile")


def _shape_only(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


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
        self.meta_args = tree_map(_mover(_shape_only), (self.args, self.kwargs))

    def sizes(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Give the output's spatial size; raises what the network raises."""
        x = torch.empty(1, self.channels, *spatial, dtype=torch.float64, device="meta")
        return tuple(_one_tensor(self.meta(x, *self.meta_args[0], **self.meta_args[1])).shape[2:])

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
                if isinstance(error, _NotOneTensorError):
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
        mode = _Line(axis, self.dims, self.shapes)
        spatial = [self.others] * self.dims
        spatial[axis] = values.numel()
        x = mode._spread(values, torch.Size([1, self.channels, *spatial]))
        with mode:
            out = _one_tensor(self.copy(x, *self.args, **self.kwargs))
        self.notes |= mode.notes
        return mode._line(out).flatten()


class _NotOneTensorError(ValueError):
    """The network gave a tuple, a list or a dictionary."""


def _one_tensor(out: Any) -> torch.Tensor:
    if isinstance(out, torch.Tensor):
        return out
    raise _NotOneTensorError(
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
        what = f"{_by(self.shape)} in {how} of {_by(self.tile)}"
        what += "" if one else f", margin {_by(self.margin)}, step {_by(self.step)}"
        memory = "unknown" if math.isnan(self.memory_gb) else f"{self.memory_gb:.2g} GB"
        truth = "exact" if self.exact else f"approximate ({self.reason})"
        return f"{what}, border {self.border}, memory {memory}, {self.cost:.2f} x the image: {truth}"


def _by(sizes: Sequence[int | None]) -> str:
    return " x ".join(map(str, sizes))


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


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive while it is active; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(network: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> int:
    """Give the most bytes of live tensors during ``network(x)``, `x` included, weights not.

    Without storage, and so in milliseconds at any size, where `network` and `x` are on the meta device.
    """
    mode = LiveBytes()
    with mode:
        network(x.clone(), *args, **kwargs)
    return mode.peak


def available_bytes(device: torch.device) -> int:
    """Give the memory that is free now, on a GPU or, within the limit of a container, on the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


ANALYSES: weakref.WeakKeyDictionary[nn.Module, dict[Any, Analysis]] = weakref.WeakKeyDictionary()


class OverlapTileInferer(Inferer):
    """Applies a network to an image of any size, tile by tile, without a trace of the tiles.

    Tiles start at multiples of the network's stride and overlap by its halo, which are measured on a copy of the
    network at its first use, so the result equals the network's output for the whole image, which is

    - ``border="network"``: ``network(image)``, the image being lengthened at its far ends by mirroring where its
      size is not one that the network takes;
    - ``border="mirror"``: the network's output for the image with a mirrored margin on every side
      (arXiv 1505.04597, figure 2), cropped to the image. Mirrored without repeating the outermost pixel, and
      repeatedly where the margin is larger than the image.

    Networks without a finite halo (instance norm, aligned corners) and margins below the halo give approximate
    results: a warning says why and how large the difference is on one tile.

    Args:
        tile: input size of the network, one number or one per axis; None for the largest that the memory admits.
        border: None for `"mirror"` if the network's output is smaller than its input, and `"network"` if not.
        margin: pixels dropped on each side of a tile where the image goes on; None for the exact halo.
        memory_gb: what one batch of tiles may take (10**9 bytes); None for half of what is free.
        batch_size: number of tiles per forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> inferer = OverlapTileInferer(tile=64)
        >>> network = torch.nn.Conv2d(1, 2, 3, padding=1).eval()
        >>> image = torch.rand(1, 1, 100, 90)
        >>> torch.allclose(inferer(image, network), network(image), atol=1e-6)
        True
        >>> print(inferer.plan(image.shape, network).step)
        (62, 62)
    """

    def __init__(
        self,
        tile: int | Sequence[int] | None = None,
        border: str | None = None,
        margin: int | Sequence[int] | None = None,
        *,
        memory_gb: float | None = None,
        batch_size: int = 1,
        progress: bool = False,
    ) -> None:
        if border not in (None, "network", "mirror"):
            raise ValueError(f"`border` must be None, 'network' or 'mirror', got {border!r}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}")
        if memory_gb is not None and not memory_gb > 0:
            raise ValueError(f"`memory_gb` must be larger than 0, got {memory_gb!r}: None takes half of what is free")
        self.tile, self.border, self.margin = _sizes("tile", tile, 1), border, _sizes("margin", margin, 0)
        self.memory_gb, self.batch_size, self.progress = memory_gb, batch_size, progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Give the network's output for every pixel of `inputs`.

        Args:
            inputs: (N, C, H, W) or (N, C, H, W, D), on any device.
            network: a module; or any callable, for which `tile` and `margin` must be given. It is run as it
                stands: in its own mode, on its own device, under the caller's autocast and grad mode.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Returns:
            (N, out channels, H, W[, D]) on the device of `inputs`, in the network's output dtype; a MetaTensor
            with the metadata of `inputs` if that is one.

        Raises:
            ValueError: the network and the arguments do not go together; the sentence says how they would.
        """
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        analysis, plan = self._planned(image.shape, network, args=args, kwargs=kwargs)
        run = _Run(image, network, plan, args=args, kwargs=kwargs)
        key = (plan.shape, plan.tile, plan.margin, plan.border)
        if not plan.exact and key not in analysis.warned:
            analysis.warned.add(key)
            logger.warning("approximate, because %s%s", plan.reason, self._measured(run, analysis))
        out = run.all(self.batch_size, self.progress)
        if isinstance(inputs, MetaTensor):
            out = MetaTensor(out).copy_meta_from(inputs, copy_attr=False)
        return out

    def plan(
        self,
        shape: Sequence[int],
        network: Callable[..., torch.Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Plan:
        """Say what a call with inputs of this shape would do.

        Args:
            shape: (N, C, H, W) or (N, C, H, W, D).
            network: as for a call.
            args: as for a call.
            kwargs: as for a call.

        Returns:
            The plan; ``str(plan)`` is one line to read.

        Raises:
            ValueError: as for a call.
        """
        return self._planned(tuple(shape), network, args=args, kwargs=kwargs)[1]

    def _planned(
        self, shape: tuple[int, ...], network: Callable[..., Any], *, args: Any, kwargs: Any
    ) -> tuple[Analysis, Plan]:
        if len(shape) not in (4, 5) or min(shape) < 1:
            raise ValueError(f"`inputs` must be (N, C, H, W) or (N, C, H, W, D), none empty, got {tuple(shape)}")
        for name, sizes in (("tile", self.tile), ("margin", self.margin)):
            if isinstance(sizes, tuple) and len(sizes) != len(shape) - 2:
                raise ValueError(f"`{name}` must have {len(shape) - 2} numbers, one per axis, got {len(sizes)}")
        analysis = self._analysis(shape, network, args, kwargs)
        training = isinstance(network, nn.Module) and network.training
        settings = (self.tile, self.border, self.margin, self.memory_gb, self.batch_size)
        key = (tuple(shape), settings, torch.is_grad_enabled(), training)
        if key not in analysis.plans:
            analysis.plans[key] = _Planner(self, shape, network, analysis).plan()
            logger.info("%s", analysis.plans[key])
        return analysis, analysis.plans[key]

    def _analysis(self, shape: tuple[int, ...], network: Callable[..., Any], args: Any, kwargs: Any) -> Analysis:
        channels, dims = shape[1], len(shape) - 2
        if not isinstance(network, nn.Module):
            return self._blind(dims, "the network is not a torch.nn.Module and cannot be analysed")
        module = unwrap(network)
        known = ANALYSES.setdefault(module, {})
        key = (channels, dims, self.tile, self.margin, hash(repr(module)))
        if key not in known:
            try:
                known[key] = analyse(module, channels, dims, *args, **kwargs)
            except _NotOneTensorError:
                raise
            except Exception as error:  # networks fail in any way they like on sizes and devices not theirs
                known[key] = self._blind(dims, f"the network cannot be analysed ({error})")
        return known[key]

    def _blind(self, dims: int, reason: str) -> Analysis:
        """Make do with the `tile` and `margin` that were given, for a network that keeps its input's size."""
        if self.tile is None or self.margin is None:
            raise ValueError(f"{reason}: give `tile` and `margin`")
        axes = []
        for tile, margin in zip(_per_axis(self.tile, dims), _per_axis(self.margin, dims), strict=True):
            stride = math.gcd(tile, BLIND_STRIDE)
            while stride > 1 and stride > tile - 2 * margin:
                stride //= 2
            axes.append(Reach(stride, lost=0, halo=None, least=tile))
        return Analysis(tuple(axes), reason)

    def _measured(self, run: "_Run", analysis: Analysis) -> str:
        """Say how much one tile in the middle of the image changes when its margin grows."""
        if getattr(run.network, "training", False):
            return ""
        wider = []
        for reach, axis in zip(analysis.axes, run.plan.axes, strict=True):
            extra = max((reach.halo or 2 * axis.margin) - axis.margin, reach.stride)
            wider.append(-(-extra // reach.stride) * reach.stride)
        try:
            difference, largest = run.difference(wider)
        except (ValueError, RuntimeError) as error:
            return f"; how much cannot be measured ({error})"
        margins = _by([a.margin + w for a, w in zip(run.plan.axes, wider, strict=True)])
        return (
            f"; on one tile the result differs by up to {difference:.2g}, {difference / largest:.1%} of the largest"
            f" logit {largest:.2g}, from that with a margin of {margins}"
        )


class _Planner:
    """Chooses the tile for images of one shape."""

    def __init__(self, inferer: OverlapTileInferer, shape: Sequence[int], network: Any, analysis: Analysis) -> None:
        self.inferer, self.network, self.analysis = inferer, network, analysis
        self.images, self.channels, self.sizes = shape[0], shape[1], tuple(shape[2:])
        lost = [r.lost for r in analysis.axes]
        self.border = inferer.border or ("mirror" if any(lost) else "network")
        if self.border == "network" and any(lost):
            raise ValueError(
                f"`border='network'` needs a network that keeps its input's size, this one loses {_by(lost)}"
                " pixels on each side: use `border='mirror'`"
            )
        self.margins = self._margins()
        self.full = [
            r.cover(n if self.border == "network" else n + 2 * m)
            for r, n, m in zip(analysis.axes, self.sizes, self.margins, strict=True)
        ]

    def plan(self) -> Plan:
        tile = tuple(self.full)
        if self.inferer.tile is not None:
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
        given = self.inferer.margin
        if given is None:
            return [r.lost if r.halo is None else r.halo for r in self.analysis.axes]
        margins = _per_axis(given, len(self.sizes))
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
            reasons.append(f"the margin {_by(self.margins)} is below the halo {_by(halos)}")
        if getattr(self.network, "training", False) and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.network.modules()
        ):
            reasons.append("batch norm is in training mode")
        return "; ".join(reasons)

    def _least(self, i: int) -> int:
        """Give the smallest tile along axis `i` that leaves a step."""
        reach = self.analysis.axes[i]
        if reach.halo is None and self.inferer.margin is None:
            return self.full[i]
        return min(self.full[i], reach.cover(2 * self.margins[i] + reach.stride))

    def _given(self) -> tuple[int, ...]:
        tiles = _per_axis(self.inferer.tile, len(self.sizes))
        for i, (t, r) in enumerate(zip(tiles, self.analysis.axes, strict=True)):
            if t != r.cover(t):
                rest = r.least % r.stride
                grid = f"{rest} more than a multiple of {r.stride}" if rest else f"a multiple of {r.stride}"
                use = f"{r.below(t)} or {r.cover(t)}" if t > r.least else f"{r.least} or more"
                raise ValueError(f"`tile` must be {grid}, got {t}: use {use}")
            if t < self._least(i):
                if r.halo is None and self.inferer.margin is None:
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
            f"the smallest tile for a margin of {_by(self.margins)}, {_by(least)}, takes"
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
        if self.inferer.memory_gb is not None:
            return self.inferer.memory_gb * 1e9
        if not hasattr(self, "_free"):
            self._free = available_bytes(_device(self.network)) / 2
        return self._free

    def _fits(self, tile: Sequence[int]) -> bool:
        return self._bytes(tile) <= self.budget

    def _bytes(self, tile: Sequence[int]) -> float:
        """Estimate the peak of one batch of tiles, in bytes; nan where the network does not run without data."""
        tiles = math.prod(a.count for a in self._axes(tile)) * self.images
        key = (min(self.inferer.batch_size, tiles), self.channels, *tile, torch.is_grad_enabled())
        if key not in self.analysis.peaks:
            self.analysis.peaks[key] = self._estimate(key[: len(tile) + 2])
        return self.analysis.peaks[key]

    def _estimate(self, shape: Any) -> float:
        twin = self.analysis.twin
        if twin is None:
            return math.nan
        try:
            return WORKSPACE * peak_bytes(twin, torch.empty(shape, dtype=self.analysis.dtype, device="meta"))
        except (RuntimeError, ValueError, TypeError):
            return math.nan


class _Run:
    """One pass of a network over the tiles of a batch of images."""

    def __init__(self, image: torch.Tensor, network: Callable[..., Any], plan: Plan, *, args: Any, kwargs: Any) -> None:
        self.image, self.network, self.plan, self.args, self.kwargs = image, network, plan, args, kwargs
        self.device = _device(network) if isinstance(network, nn.Module) else image.device

    def all(self, batch_size: int, progress: bool) -> torch.Tensor:
        """Give the output of all tiles of all images, (N, C, H, W[, D])."""
        tiles = product(*(range(a.count) for a in self.plan.axes))
        places = list(product(range(len(self.image)), tiles))
        batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
        result: torch.Tensor | None = None
        for batch in tqdm(batches, desc="tiles") if progress else batches:
            out = self.apply(torch.cat([self.cut(n, self.windows(i)) for n, i in batch]))
            if result is None:
                size = (len(self.image), out.shape[1], *self.plan.shape)
                result = torch.empty(size, dtype=out.dtype, device=self.image.device)
            for one, (n, i) in zip(out, batch, strict=True):
                to, take = self.kept(i, self.windows(i))
                result[n][:, *to] = one[:, *take].to(result.device)
        assert result is not None  # there is at least one tile
        return result

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
        out = _one_tensor(self.network(tiles.to(self.device), *self.args, **self.kwargs))
        expected = [n - 2 * a.lost for n, a in zip(tiles.shape[2:], self.plan.axes, strict=True)]
        if list(out.shape[2:]) != expected:
            raise ValueError(
                f"the network must turn {_by(tiles.shape[2:])} into {_by(expected)}, got {_by(out.shape[2:])}"
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


def _device(network: Any) -> torch.device:
    tensors = (*network.parameters(), *network.buffers()) if isinstance(network, nn.Module) else ()
    return tensors[0].device if tensors else torch.device("cpu")


def _sizes(name: str, value: Any, least: int) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) else [value]
    if not values or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"`{name}` must be None or whole numbers of at least {least}, got {value!r}")
    return value if isinstance(value, int) else tuple(values)


def _per_axis(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)
