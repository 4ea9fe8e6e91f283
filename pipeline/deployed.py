"""The copy of a network that is run where nobody trains it: folded, laid out for the device, made once per weights."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import nn

from pipeline.device_defaults import LAYOUTS, channels_last_in_inference, facts
from pipeline.engines import started
from pipeline.folding import Fold, foldable, folded
from pipeline.reach import Analysis
from pipeline.tiling import device_of

logger = logging.getLogger(__name__)

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
"""Whole numbers of as many bytes."""


@dataclass
class _Known:
    """What is known of one network: what may be folded in it, and the copy with the weights that it was made of."""

    layers: str
    fold: Fold
    weights: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    """The tensors, kept so that no other comes to lie where one was, and the sum of each one's bits."""
    copies: dict[tuple[bool, str | None], nn.Module] = field(default_factory=dict)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def replaced(network: object, analysis: Analysis) -> TypeGuard[nn.Module]:
    """Whether a copy runs in a network's place: nobody trains it, differentiates it or watches its layers.

    A network that somebody has compiled, or that could not be analysed, is left alone.
    """
    if not isinstance(network, nn.Module) or analysis.twin is None or torch.is_grad_enabled():
        return False
    if hasattr(network, "_orig_mod") or isinstance(network, torch.jit.ScriptModule):
        return False
    tensors = list(chain(network.parameters(), network.buffers()))
    if not tensors or any(t.is_meta or t.is_inference() for t in tensors):
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return not any(m.training or any(getattr(m, name) for name in hooks) for m in network.modules())


def small_input(analysis: Analysis, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a small input, (1, C, ...), that a network takes; `shape` is that of an image."""
    return (1, shape[1], *(reach.cover(2 * reach.stride) for reach in analysis.axes))


def channels_together(network: nn.Module, analysis: Analysis) -> bool:
    """Whether a network's copy keeps a pixel's channels together: by device, and never where a layer needs them apart.

    An instance norm copies them apart and back, and float64 has no kernels for them.
    """
    apart = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    if analysis.dtype == torch.float64 or any(isinstance(module, apart) for module in network.modules()):
        return False
    return channels_last_in_inference(facts(device_of(network)), len(analysis.axes))


def fold_of(network: nn.Module, size: Sequence[int]) -> Fold:
    """What may be folded in a network, found at the first call and remembered.

    Args:
        network: which may be `replaced`.
        size: (1, C, ...) of an input that it takes; the smaller, the faster.
    """
    return _known(network, size).fold


def deployed(
    network: nn.Module, analysis: Analysis, size: Sequence[int], *, channels_last: bool, engine: str | None = None
) -> nn.Module:
    """Give the copy of a network that is to be run; made again when the weights have changed.

    A change is noticed by the bits of the weights: PyTorch's fused optimizers change no version counter.

    Args:
        network: which may be `replaced`; it stays as it is.
        analysis: of the network.
        size: (1, C, ...) of an input that it takes.
        channels_last: keep a pixel's channels together.
        engine: what runs it, see `pipeline.engines`.

    Returns:
        The copy, its answers those of the network but for rounding; to be fed with that layout.

    Raises:
        InputError: the engine cannot run it.
    """
    known = _known(network, size)
    now = _weights(network)
    if not _same(known.weights, now):
        known.weights = now
        known.copies.clear()
    key = channels_last, engine
    if key not in known.copies:
        copy = folded(network, known.fold)
        copy = _laid_out(copy, len(size) - 2) if channels_last else copy
        known.copies[key] = started(engine, copy, size, [r.stride for r in analysis.axes]) if engine else copy
    return known.copies[key]


def _laid_out(network: Any, dims: int) -> nn.Module:
    laid_out: nn.Module = network.to(memory_format=LAYOUTS[dims])
    return laid_out


def _known(network: nn.Module, size: Sequence[int]) -> _Known:
    layers = repr(network)
    if network not in _KNOWN or _KNOWN[network].layers != layers:
        _KNOWN[network] = _Known(layers, _found(network, size))
    return _KNOWN[network]


def _found(network: nn.Module, size: Sequence[int]) -> Fold:
    device = next(chain(network.parameters(), network.buffers())).device
    x = torch.rand(*size, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        return foldable(network, x)
    except Exception as error:  # networks fail in any way they like where a layer is not what it was
        logger.info("no batch norm is folded, because the network cannot be watched (%s)", error)
        return Fold((), ())


def _weights(network: nn.Module) -> list[tuple[torch.Tensor, int]]:
    return [(t.detach(), _sum(t)) for t in chain(network.parameters(), network.buffers())]


def _sum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's numbers, each taken for the whole number of the same bits; of 31 million it takes 8 ms."""
    kind = BITS[tensor.element_size()]
    return int(tensor.detach().view(kind).sum(dtype=kind))  # what overflows is left out


def _same(old: list[tuple[torch.Tensor, int]], new: list[tuple[torch.Tensor, int]]) -> bool:
    return len(old) == len(new) and all(
        a.data_ptr() == b.data_ptr() and a.device == b.device and a.dtype == b.dtype and n == m
        for (a, n), (b, m) in zip(old, new, strict=True)
    )
