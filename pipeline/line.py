"""A network run along one axis: how its wiring mixes pixels, in the time of a line, whatever its width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MOST_ELEMENTS = 2**26
"""Elements of a tensor that the analysis still handles one by one."""


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


class Line(TorchDispatchMode):
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
            mean = torch.stack([self.line(t) for t in tensors]).mean(0)
            return self.spread(mean, self._shape(func, args, kwargs)[0])
        if name.removesuffix("_") in POINTWISE and (lines[0] if func._schema.is_mutable else any(lines)):
            return self._pointwise(func, args, kwargs)
        if max((t.numel() for t in tensors), default=0) > MOST_ELEMENTS and not func.is_view:
            raise ValueError(f"the network uses {func}, which cannot be followed along one axis")
        return func(*args, **kwargs)

    def _along(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        shape, with_indices = self._shape(func, args, kwargs)
        if name in ("upsample_bilinear2d", "upsample_trilinear3d") and args[2]:
            self.notes.add("it interpolates with aligned corners, whose grid depends on the size of the tile")
        line = ALONG[name](self.line(args[0]), self.axis - self.dims, shape[2 + self.axis], *args[1:])
        out = self.spread(line, shape)
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

    def line(self, t: torch.Tensor) -> torch.Tensor:
        """Give the variation of (N, C, ...) along the axis, (1, 1, length)."""
        return self._thin(t).reshape(1, 1, -1)

    def spread(self, line: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Give a view of a line as a tensor of `shape` that varies along the axis only."""
        view = [1] * (self.dims + 2)
        view[self.axis + 2] = -1
        return line.reshape(view).expand(shape)

    def _copied(self, t: torch.Tensor) -> torch.Tensor:
        return self.spread(self.line(t).clone(), t.shape) if self._is_line(t) else t.clone()

    def _shape(self, func: Any, args: Any, kwargs: Any) -> tuple[torch.Size, bool]:
        """Give the shape of an operation's output, and whether indices of the same shape come with it."""
        key = str((func, tree_map(lambda v: v.shape if isinstance(v, torch.Tensor) else v, (args, kwargs))))
        if key not in self.shapes:
            out = func(*tree_map(shape_only, args), **tree_map(shape_only, kwargs))
            with_indices = isinstance(out, tuple)
            self.shapes[key] = (out[0] if with_indices else out).shape, with_indices
        return self.shapes[key]

    def _note_norm(self, name: str, args: Any) -> None:
        flag = NORMS[name]
        if name == "native_layer_norm" and len(args[1]) == 1:
            return  # over the channels of one pixel
        if flag is not None and (flag < 0 or args[flag] is not False):
            self.notes.add("instance or group norm takes its statistics from the whole tile")


def shape_only(value: Any) -> Any:
    """Give a tensor of the same shape and type without data; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")
