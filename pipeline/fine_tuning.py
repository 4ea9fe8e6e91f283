"""Where a training starts: from the weights of another one, and with some parts of the network held as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from pipeline.checkpoint import load_weights
from pipeline.encoders import ResNetUNet
from pipeline.errors import InputError
from pipeline.networks import UNet

READABLE: dict[type[nn.Module], dict[str, tuple[str, ...]]] = {
    UNet: {"encoder": ("contracting", "downs"), "decoder": ("ups", "expanding"), "head": ("head",)},
    ResNetUNet: {"encoder": ("encoder",), "decoder": ("decoder",), "head": ("segmentation_head",)},
}
"""What a reader calls the parts of a network -> the network's own names for them."""


def with_start(network: nn.Module, path: str | None, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Load the weights that a training starts from.

    Args:
        network: as it is configured.
        path: of a `model.pt` of ours, a bare `state_dict`, or a `.safetensors`. None: the network keeps its own.
        config: the merged configuration; None looks up the one that the bundle is being run with.

    Returns:
        The network itself.

    Raises:
        InputError: the file is missing or unreadable, or its weights are of another network or other settings.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; `start_from` is the weights to start from, or null for random ones")
    return load_weights(network, path, config)


def with_frozen(network: nn.Module, names: str | Sequence[str]) -> nn.Module:
    """Hold parts of a network as they are: a training neither moves their weights nor their batch-norm's statistics.

    They stay in eval mode whatever the training does, so they answer as they do when deployed. An optimizer may hold
    their parameters, which never have a gradient: weight decay leaves them alone too.

    Args:
        network: whose `parts` they are.
        names: of the parts; none leaves the network as it is.

    Returns:
        The network itself.

    Raises:
        InputError: there is no such part, or nothing is left to learn.
    """
    known = parts(network)
    for name in (wanted := [names] if isinstance(names, str) else list(names)):
        if name not in known:
            raise InputError(f"`frozen`: the network has no part {name!r}; it has {', '.join(known)}")
        for module in known[name]:
            _hold(module)
    if wanted and not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"`frozen`: {', '.join(wanted)} is the whole network, nothing is left to learn; name fewer")
    return network


def parts(network: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts with weights that a network has: by readable names, by its own, and level by level from 0.

    Example:
        >>> list(parts(UNet(2, 1, 2, width=4, depth=2)))
        ['encoder', 'decoder', 'head', 'contracting.0', 'contracting.1', 'ups.0', 'expanding.0']
    """
    readable = next((names for kind, names in READABLE.items() if isinstance(network, kind)), {})
    found = {name: [network.get_submodule(own) for own in owns] for name, owns in readable.items()}
    return found | {name: [module] for name, module in _own(network) if name not in found}


def _own(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        levels = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for level, module in levels:
            if any(True for _ in module.parameters()):
                yield f"{name}.{level}".rstrip("."), module


def _hold(module: nn.Module) -> None:
    module.requires_grad_(False).eval()
    # A trainer calls network.train() before every step, which asks each child in turn; this one stays as it is.
    module.__dict__["train"] = MethodType(_stay, module)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
