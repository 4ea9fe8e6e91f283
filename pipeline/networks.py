"""The U-Net of 2015 (arXiv 1505.04597), its descendants and its relatives by keyword, in 2D and 3D."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Act, Conv, Dropout, Norm, Pool, split_args
from torch import nn

from pipeline.encoders import ENCODERS, ResNetUNet

PADDINGS = ("valid", "zeros", "reflect")
HEADS = ("softmax", "sigmoid")
NORMS = (None, "batch", "instance")
DOWNS = ("max", "conv")
UPS = ("transposed", "linear", "nearest")
ACTS = ("celu", "elu", "gelu", "leakyrelu", "mish", "prelu", "relu", "relu6", "selu", "swish")

VALID_LOSS = 4
"""Pixels per axis that the two unpadded 3x3 convolutions of a level take away."""


def out_channels(head: str, class_names: Sequence[str]) -> int:
    """Channels of the logits: one per class for `softmax`, one for the second of two classes for `sigmoid`.

    Raises:
        ValueError: there is no such head, or a sigmoid is to separate more than two classes.

    Example:
        >>> out_channels("softmax", ["cell", "membrane"]), out_channels("sigmoid", ["cell", "membrane"])
        (2, 1)
    """
    _one_of("head", head, HEADS)
    if head == "sigmoid" and len(class_names) != 2:
        raise ValueError(f"`head='sigmoid'` separates 2 classes, there are {len(class_names)}: use 'softmax'")
    return 1 if head == "sigmoid" else len(class_names)


def network(
    encoder: str | None = None, *, spatial_dims: int, in_channels: int, out_channels: int, **keywords: Any
) -> nn.Module:
    """Give the network that a bundle's keywords describe: our U-Net, or a U-Net whose encoder is a ResNet.

    Args:
        encoder: None for `UNet`, or ``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"resnet101"``, ``"resnet152"``
            for `pipeline.encoders.ResNetUNet`, with initial weights drawn at random.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        keywords: `width`, `depth`, `padding`, `norm`, `act`, `down`, `up`, `dropout` and `channel_dropout` of
            `UNet`. They describe that network alone: a ResNet encoder has its published layers, MONAI's decoder
            batch norm, ReLU and nearest upsampling, and neither has dropout, whatever stands here.

    Raises:
        ValueError: there is no such encoder, or `UNet` refuses a keyword.

    Example:
        >>> type(network(spatial_dims=2, in_channels=1, out_channels=2, width=4)).__name__
        'UNet'
        >>> type(network("resnet18", spatial_dims=2, in_channels=1, out_channels=2, width=4)).__name__
        'ResNetUNet'
    """
    _one_of("encoder", encoder, (None, *ENCODERS))
    if encoder is None:
        return UNet(spatial_dims, in_channels, out_channels, **keywords)
    return ResNetUNet(encoder, spatial_dims, in_channels, out_channels)


class UNet(nn.Module):
    """The network of Ronneberger, Fischer and Brox (arXiv 1505.04597), or a padded, normed or 3D relative.

    With its defaults, ``UNet(2, 1, 2)`` is the network of the paper's figure 1: 572 -> 388 pixels, 23
    convolutional layers, 31,030,658 parameters, weights drawn with standard deviation sqrt(2 / N), where N
    is the number of inputs that reach one output pixel, and biases 0.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits, one per class.
        width: channels of the first level; every deeper level has twice as many.
        depth: number of levels, so ``depth - 1`` poolings; 5 in the paper.
        padding: ``"valid"`` (no padding, the output is smaller than the input), ``"zeros"`` or ``"reflect"``
            (output as large as the input). ``"valid"`` goes with ``down="max"`` and with ``up="transposed"``
            or ``"nearest"``.
        norm: None, ``"batch"`` or ``"instance"`` (with learnt scale and shift) between each 3x3 convolution
            and its activation; convolutions followed by a norm have no bias.
        act: name of the activation, or a pair of name and keyword arguments.
        down: ``"max"`` (max-pooling) or ``"conv"`` (3x3 convolution, stride 2, channels kept).
        up: ``"transposed"`` (2x2 transposed convolution), or a 1x1 convolution that halves the channels
            followed by ``"linear"`` (corners not aligned) or ``"nearest"`` interpolation.
        dropout: probability of dropping an element at the end of the contracting path.
        channel_dropout: probability of dropping a whole channel between each 3x3 convolution (and its norm) and
            its activation; strided convolutions are left alone. Weights load with or without it.

    Raises:
        ValueError: a keyword has a value, or a combination of values, that is not named above.

    Example:
        >>> net = UNet(2, in_channels=1, out_channels=2, width=4)
        >>> net(torch.zeros(1, 1, 572, 572)).shape
        torch.Size([1, 2, 388, 388])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        depth: int = 5,
        padding: str = "valid",
        norm: str | None = None,
        act: str | Sequence[Any] = "relu",
        down: str = "max",
        up: str = "transposed",
        dropout: float = 0.0,
        channel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _one_of("spatial_dims", spatial_dims, (2, 3))
        counts = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "depth": depth}
        for name, value in counts.items():
            _at_least_one(name, value)
        _one_of("padding", padding, PADDINGS)
        _one_of("norm", norm, NORMS)
        _one_of("act", act if isinstance(act, str) else _name_of(act), ACTS)
        _one_of("down", down, DOWNS)
        _one_of("up", up, UPS)
        _probability("dropout", dropout)
        _probability("channel_dropout", channel_dropout)
        if padding == "valid" and (down != "max" or up == "linear"):
            raise ValueError(
                "`padding='valid'` goes with `down='max'` and `up='transposed'` or `'nearest'`,"
                f" got down={down!r} and up={up!r}: change those, or use `padding='zeros'` or `'reflect'`"
            )
        self.spatial_dims, self.depth, self.padding = spatial_dims, depth, padding

        block = _Blocks(spatial_dims, padding, norm, act, channel_dropout)
        channels = [width * 2**level for level in range(depth)]
        pairs = list(itertools.pairwise(channels))
        self.contracting = nn.ModuleList([block.pair(a, b) for a, b in [(in_channels, width), *pairs]])
        self.downs = nn.ModuleList([block.down(down, c) for c in channels[:-1]])
        self.dropout = nn.Dropout(dropout)
        self.ups = nn.ModuleList([block.up(up, deep, shallow) for shallow, deep in reversed(pairs)])
        self.expanding = nn.ModuleList([block.pair(deep, shallow) for shallow, deep in reversed(pairs)])
        self.head = Conv["conv", spatial_dims](width, out_channels, kernel_size=1)
        self.apply(_draw_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the logits of every class for every pixel.

        Args:
            x: images, (N, C, H, W) or (N, C, H, W, D).

        Returns:
            Logits (N, out_channels, ...), as large as `x`, or smaller by the margin for ``padding="valid"``.

        Raises:
            ValueError: `x` has another number of axes, or a size that some level would split oddly.
        """
        self._refuse_sizes(x.shape)
        skips = []
        for level, pair in enumerate(self.contracting):
            x = pair(x)
            if level < self.depth - 1:
                skips.append(x)
                x = self.downs[level](x)
        x = self.dropout(x)
        for up, pair in zip(self.ups, self.expanding, strict=True):
            x = up(x)
            x = torch.cat([_crop(skips.pop(), x), x], dim=1)  # of its own, so that what came up is gone at the peak
            x = pair(x)
        return self.head(x)

    def _refuse_sizes(self, shape: torch.Size) -> None:
        axes = "(N, C, H, W)" if self.spatial_dims == 2 else "(N, C, H, W, D)"
        if len(shape) != self.spatial_dims + 2:
            raise ValueError(f"`x` must be {axes}, got the shape {tuple(shape)}: add or remove an axis")
        period, least = 2 ** (self.depth - 1), self._least_size()
        for name, size in zip("HWD", shape[2:], strict=False):
            if size < least:
                raise ValueError(f"{name} of `x` is {size}, too small for {self.depth} levels: use {least} or more")
            below = size - (size - least) % period
            if size != below:
                raise ValueError(
                    f"{name} of `x` is {size}, which a level would split oddly: the nearest valid sizes are"
                    f" {below} and {below + period}"
                )

    def _least_size(self) -> int:
        """Give the smallest input; each valid size is this plus a multiple of ``2 ** (depth - 1)``."""
        poolings = self.depth - 1
        if self.padding == "valid":
            bottom = 1  # pixels that the deepest level gives; the way up doubles them and takes VALID_LOSS
            while _way_up(bottom, poolings) < 1:
                bottom += 1
            size = bottom + VALID_LOSS
            for _ in range(poolings):
                size = 2 * size + VALID_LOSS
            return size
        return 2**self.depth if self.padding == "reflect" else 2**poolings  # one pixel has no reflection


class _Blocks:
    """Builds the parts of a level from the keywords that all levels share."""

    def __init__(
        self, dims: int, padding: str, norm: str | None, act: str | Sequence[Any], channel_dropout: float
    ) -> None:
        self.dims, self.norm, self.act, self.channel_dropout = dims, norm, act, channel_dropout
        self.padded: dict[str, Any] = {"padding": 0}
        if padding != "valid":
            self.padded = {"padding": 1, "padding_mode": padding}

    def pair(self, channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(*self._conv(channels_in, channels_out), *self._conv(channels_out, channels_out))

    def down(self, kind: str, channels: int) -> nn.Module:
        if kind == "max":
            return Pool["max", self.dims](2)
        return Conv["conv", self.dims](channels, channels, kernel_size=3, stride=2, **self.padded)

    def up(self, kind: str, channels_in: int, channels_out: int) -> nn.Module:
        if kind == "transposed":
            return Conv["convtrans", self.dims](channels_in, channels_out, kernel_size=2, stride=2)
        mode = {2: "bilinear", 3: "trilinear"}[self.dims]
        smooth = {"mode": mode, "align_corners": False} if kind == "linear" else {"mode": "nearest"}
        # Both steps are linear and act on different axes, so their order is free and this one costs less.
        halve = Conv["conv", self.dims](channels_in, channels_out, kernel_size=1)
        return nn.Sequential(halve, nn.Upsample(scale_factor=2, **smooth))

    def _conv(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        bias = self.norm is None
        layers = [Conv["conv", self.dims](channels_in, channels_out, kernel_size=3, bias=bias, **self.padded)]
        if self.norm is not None:
            options = {"affine": True} if self.norm == "instance" else {}
            layers.append(Norm[self.norm, self.dims](channels_out, **options))
        return [*layers, self._act()]

    def _act(self) -> nn.Module:
        name, options = split_args(self.act)
        act = Act[name](**options)
        if not self.channel_dropout:
            return act
        # One layer of the sequence, not two: the layers behind it keep their numbers, so weights fit either way.
        return nn.Sequential(Dropout["dropout", self.dims](self.channel_dropout), act)


def _draw_weights(module: nn.Module) -> None:
    """Draw He's initial weights: std sqrt(2 / N), N = inputs that reach one output pixel; biases 0.

    A 2x2 transposed convolution of stride 2 writes each output pixel from one input pixel, so its N is the
    number of its input channels (`torch.nn.init.kaiming_normal_` takes another number).
    """
    if not isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return
    reaching = module.in_channels
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        reaching = module.weight[0].numel()
    nn.init.normal_(module.weight, std=(2 / reaching) ** 0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _crop(skip: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut the centre of `skip` to the spatial size of `like`; both are even, so the centre is exact."""
    for axis in range(2, skip.dim()):
        lost = skip.shape[axis] - like.shape[axis]
        if lost > 0:
            skip = skip.narrow(axis, lost // 2, like.shape[axis])
    return skip


def _way_up(size: int, levels: int) -> int:
    for _ in range(levels):
        size = 2 * size - VALID_LOSS
    return size


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}")


def _probability(name: str, value: Any) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1, got {value!r}: 0.5 is common")


def _at_least_one(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}")


def _name_of(act: Any) -> Any:
    """Give the name in a pair of name and keyword arguments; anything else is returned to be refused."""
    if isinstance(act, Sequence) and len(act) == 2 and isinstance(act[0], str) and isinstance(act[1], dict):
        return act[0]
    return act
