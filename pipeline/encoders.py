"""A U-Net whose contracting path is a ResNet (arXiv 1512.03385), and weights for it from a file."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Norm
from monai.networks.nets import FlexibleUNet
from torch import nn

from pipeline.errors import InputError

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

PERIOD = 32
"""A ResNet halves the image five times; MONAI's decoder fits it only where every half is a whole number."""

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts put a network's weights beside other state."""


class ResNetUNet(FlexibleUNet):
    """MONAI's `FlexibleUNet` with one of the published ResNet encoders, weights drawn at random; never downloads.

    MONAI's ResNet-18 and -34 have shortcuts without weights (the paper's option A) through which, moreover, no
    gradient flows back. The published weights belong to networks with projections there (option B), and so does
    this class: its encoder has, name by name, the layers of torchvision's.

    Args:
        encoder: one of `ENCODERS`.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.

    Example:
        >>> net = ResNetUNet("resnet18", 2, in_channels=1, out_channels=3).eval()
        >>> net(torch.zeros(1, 1, 64, 96)).shape
        torch.Size([1, 3, 64, 96])
    """

    def __init__(self, encoder: str, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, encoder, pretrained=False, spatial_dims=spatial_dims)
        for layer in (self.encoder.layer2, self.encoder.layer3, self.encoder.layer4):
            if not isinstance(layer[0].downsample, nn.Module):
                layer[0].downsample = _projection(layer[0].conv1, spatial_dims)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Give the logits of every class for every pixel.

        Args:
            inputs: images, (N, C, H, W) or (N, C, H, W, D), sizes multiples of 32.

        Returns:
            Logits (N, out_channels, ...), as large as `inputs`.

        Raises:
            ValueError: a size is no multiple of 32.
        """
        for name, size in zip("HWD", inputs.shape[2:], strict=False):
            if size % PERIOD:
                below = size - size % PERIOD
                either = f"{below} or {below + PERIOD}" if below else f"{PERIOD}"
                raise ValueError(
                    f"{name} of `inputs` is {size}, which a ResNet encoder would split oddly: use {either} pixels"
                )
        return super().forward(inputs)


def with_encoder_weights(network: nn.Module, path: str | None) -> nn.Module:
    """Load a ResNet's weights into the encoder of a network; the decoder keeps the weights that it has.

    Args:
        network: a `ResNetUNet`.
        path: file with torchvision's names (``conv1.weight``, ``layer1.0.conv1.weight``, ...), by itself or under
            "state_dict" or "model", each name maybe behind "module."; ``fc.*`` is left out. None: nothing is loaded.

    Returns:
        The network itself. If it takes one channel and the file's takes several, the first convolution's weights
        are summed over the channels: a grey image then gives what its copy in each channel would have given.

    Raises:
        InputError: the network has no ResNet encoder, or the file is missing, unreadable or of another network.
    """
    if path is None:
        return network
    if not isinstance(network, ResNetUNet):
        raise InputError(f"{path}: weights of an encoder are for a ResNet; give `encoder` too, say resnet34")
    encoder = network.encoder
    weights = _read(path)
    if encoder.conv1.in_channels == 1 and "conv1.weight" in weights:
        weights["conv1.weight"] = weights["conv1.weight"].sum(dim=1, keepdim=True)
    _refuse_others(path, weights, encoder, network.backbone)
    encoder.load_state_dict(weights)
    return network


def _projection(conv: nn.Module, spatial_dims: int) -> nn.Sequential:
    """Give the shortcut of option B around a block that begins with `conv`, drawn as MONAI draws the others."""
    project = Conv["conv", spatial_dims](conv.in_channels, conv.out_channels, kernel_size=1, stride=2, bias=False)
    nn.init.kaiming_normal_(project.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(project, Norm["batch", spatial_dims](conv.out_channels))


def _read(path: str) -> dict[str, torch.Tensor]:
    """Give the tensors of a file by torchvision's names, without those of the classifier."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give a file with the weights of a ResNet, or null for none")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise InputError(f"{path}: not a file of weights that PyTorch can read without running code in it") from None
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no weights by name; save the `state_dict()` of a ResNet")
    named = {str(name).removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in named.items() if not name.startswith("fc.")}


def _refuse_others(path: str, weights: Mapping[str, torch.Tensor], encoder: nn.Module, name: str) -> None:
    """Refuse weights that are not those of `encoder`, naming the first difference."""
    wanted = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(wanted.keys() | given.keys()):
        if key.endswith("num_batches_tracked") or wanted.get(key) == given.get(key):
            continue  # files from before PyTorch 0.4.1 do not count batches
        raise InputError(
            f"{path}: not the weights of a {name} for this image: its {key} is {given.get(key, 'missing')},"
            f" {wanted.get(key, 'nothing')} is needed; give the file of another encoder, or another `encoder`"
        )
