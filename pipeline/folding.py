"""Batch norm folded into the convolutions before it: the same network with fewer passes over memory."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SAME = 1e-9
"""Relative difference, in float64, below which a folded network is the network: rounding is 1e-15."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Fold(NamedTuple):
    """Names of modules of one network: what may be folded there, as one forward pass showed.

    Attributes:
        pairs: a convolution, and the batch norm that takes its output.
        activations: those that take what such a batch norm gives, and may write over it.
    """

    pairs: tuple[tuple[str, str], ...]
    activations: tuple[str, ...]


def foldable(network: nn.Module, x: torch.Tensor) -> Fold:
    """Find the convolutions of a network that a batch norm follows, by watching a float64 copy of it at work.

    What was found is tried on the copy: if the folded copy's answer to `x` is another, nothing may be folded.

    Args:
        network: in eval mode; it is not run and not changed.
        x: (N, C, ...), an input that it takes.
    """
    twin = copy.deepcopy(network).double()
    x = x.double()
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        seen = _Watched(twin)
        expected = twin(x.clone())
        fold = seen.fold()
        found = folded(twin, fold)(x.clone()) if fold.pairs else expected
    same = found.shape == expected.shape and bool((found - expected).abs().max() <= SAME * expected.abs().max())
    return fold if same else Fold((), ())


def folded(network: nn.Module, fold: Fold) -> nn.Module:
    """Give a copy of a network with batch norms folded into convolutions; the network itself stays as it is.

    Args:
        network: in eval mode.
        fold: what `foldable` found in it.
    """
    twin = copy.deepcopy(network)
    for conv_name, norm_name in fold.pairs:
        conv, norm = (cast(Any, twin.get_submodule(name)) for name in (conv_name, norm_name))
        twin.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm, transpose=_transposed(conv)))
        twin.set_submodule(norm_name, nn.Identity())
    for name in fold.activations:
        twin.get_submodule(name).inplace = True  # type: ignore[assignment]
    return twin.requires_grad_(False)


class _Watched:
    """Notes which module of a network takes which one's output, while the network runs."""

    def __init__(self, network: nn.Module) -> None:
        self.kept: list[Any] = []  # so that no two tensors have one id
        self.givers: dict[int, str] = {}
        self.calls: dict[str, list[str | None]] = {}
        self.modules = {name: module for name, module in network.named_modules() if not list(module.children())}
        self.handles = [m.register_forward_hook(self._noter(name)) for name, m in self.modules.items()]

    def _noter(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            giver = self.givers.get(id(inputs[0])) if inputs else None
            self.calls.setdefault(name, []).append(giver)
            self.kept += [*inputs, output]
            self.givers[id(output)] = name

        return note

    def fold(self) -> Fold:
        """What may be folded; takes the hooks away."""
        for handle in self.handles:
            handle.remove()
        takers = {name: givers[0] for name, givers in self.calls.items() if len(givers) == 1}  # not those used twice
        pairs = {
            name: conv
            for name, conv in takers.items()
            if conv in takers and _is_norm(self.modules[name]) and type(self.modules[conv]) in CONVOLUTIONS
        }
        pairs = {name: conv for name, conv in pairs.items() if list(takers.values()).count(conv) == 1}
        activations = [
            name for name, norm in takers.items() if norm in pairs and hasattr(self.modules[name], "inplace")
        ]
        return Fold(tuple((conv, norm) for norm, conv in pairs.items()), tuple(activations))


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return isinstance(module, kinds) and module.running_mean is not None and not module.training


def _transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
