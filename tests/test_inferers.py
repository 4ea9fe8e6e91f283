"""The law of the overlap-tile: tiled is whole. Everything else here says what happens where it cannot be."""

import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import BasicUNet, DynUNet, FlexibleUNet
from torch import nn

from pipeline.inferers import LiveBytes, OverlapTileInferer, analyse, available_bytes, mirror, peak_bytes
from pipeline.networks import UNet

ALIVE = ["leakyrelu", {"negative_slope": 0.3}]
LAW = settings(deadline=None, max_examples=25, derandomize=True, phases=[Phase.explicit, Phase.generate])
EXACT = 1e-10
"""Relative to the largest logit, in float64."""


def ready(net, dtype=torch.float64):
    """Put a network in eval mode, with biases and batch norms as if it had been trained, and no dead end."""
    for m in net.modules():
        if getattr(m, "bias", None) is not None:
            nn.init.normal_(m.bias, 0.1, 0.1)
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 2)
    return net.to(dtype).eval()


def padded(image, before, after):
    """Mirror an image with numpy, (N, C, ...)."""
    pads = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    return torch.from_numpy(np.pad(image.numpy(), pads, mode="reflect"))


@torch.no_grad()
def whole(net, image, stride, lost=0, least=0):
    """Give the network's output for the whole image, lengthened to the grid, by numpy and torch alone."""
    sizes = image.shape[2:]
    stride = np.broadcast_to(stride, len(sizes))
    least = np.broadcast_to(least or stride, len(sizes))  # a valid size is `least` plus a multiple of the stride
    needed = [n + 2 * lost for n in sizes]
    ends = [a + -(-max(0, n - a) // s) * s - n for n, a, s in zip(needed, least, stride, strict=True)]
    out = net(padded(image, [lost] * len(sizes), [lost + e for e in ends]))
    return out[(..., *(slice(n) for n in sizes))]


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def tiled(net, image, **keywords):
    inferer = OverlapTileInferer(**keywords)
    with torch.no_grad():
        return inferer(image, net), inferer.plan(image.shape, net, dtype=image.dtype)


@st.composite
def padded_networks(draw):
    dims = draw(st.sampled_from([2, 2, 2, 3]))
    depth = draw(st.integers(2, 4 if dims == 2 else 2))
    keywords = {
        "act": ALIVE,
        "padding": draw(st.sampled_from(["zeros", "reflect"])),
        "norm": draw(st.sampled_from([None, "batch"])),
        "down": draw(st.sampled_from(["max", "conv"])),
        "up": draw(st.sampled_from(["transposed", "linear", "nearest"])),
    }
    torch.manual_seed(draw(st.integers(0, 9)))
    return ready(UNet(dims, 1, 2, width=draw(st.sampled_from([2, 3])), depth=depth, **keywords)), dims, depth


@LAW
@given(padded_networks(), st.data())
def test_tiled_is_whole_for_padded_networks(case, data):
    net, dims, depth = case
    stride = 2 ** (depth - 1)
    axes = analyse(net, 1, dims).axes
    least = 2 * axes[0].halo + stride
    sizes = [data.draw(st.integers(1, least) | st.integers(least, least + 5 * stride)) for _ in range(dims)]
    tile = [least + stride * data.draw(st.integers(0, 3)) for _ in range(dims)]
    image = torch.randn(data.draw(st.integers(1, 2)), 1, *sizes, dtype=torch.float64)
    out, plan = tiled(net, image, tile=tile, batch_size=data.draw(st.integers(1, 3)))
    smallest = 2 * stride if net.padding == "reflect" else stride
    assert plan.exact
    assert error(out, whole(net, image, stride, least=smallest)) < EXACT


@LAW
@given(st.sampled_from([(2, 2), (2, 3), (2, 4), (3, 2)]), st.sampled_from(["transposed", "nearest"]), st.data())
def test_tiled_is_whole_for_valid_networks(shape, up, data):
    dims, depth = shape
    torch.manual_seed(0)
    norm = data.draw(st.sampled_from([None, "batch"]))
    net = ready(UNet(dims, 1, 2, width=2, depth=depth, up=up, norm=norm, act=ALIVE))
    stride = 2 ** (depth - 1)
    lost, least = {2: (8, 18), 3: (20, 44), 4: (44, 92)}[depth]
    sizes = [data.draw(st.integers(1, 40 if dims == 2 else 12)) for _ in range(dims)]
    tile = [least + stride * data.draw(st.integers(1, 4)) for _ in range(dims)]
    image = torch.randn(1, 1, *sizes, dtype=torch.float64)
    out, plan = tiled(net, image, tile=tile, batch_size=data.draw(st.integers(1, 3)))
    assert plan.exact and plan.border == "mirror"
    assert error(out, whole(net, image, stride, lost, least)) < EXACT


@LAW
@given(st.integers(1, 90), st.integers(1, 40), st.sampled_from([(56, 64), (64, 56), (72, 72)]))
def test_tiled_is_whole_for_a_padded_network_with_a_mirrored_border(height, width, tile):
    torch.manual_seed(0)
    net = ready(UNet(2, 1, 2, width=2, depth=3, padding="zeros", act=ALIVE))
    halo = analyse(net, 1, 2).axes[0].halo
    image = torch.randn(1, 1, height, width, dtype=torch.float64)
    out, _ = tiled(net, image, tile=tile, border="mirror")
    ends = [halo + -n % 4 for n in (height, width)]
    with torch.no_grad():
        expected = net(padded(image, [halo, halo], ends))[:, :, halo : halo + height, halo : halo + width]
    assert error(out, expected) < EXACT


@pytest.mark.parametrize(
    ("net", "stride", "tile"),
    [
        (BasicUNet(2, 1, 2, features=(4, 4, 4, 8, 8, 4), norm="batch", upsample="deconv"), 16, (208, 224)),
        (
            DynUNet(
                2, 1, 2, [[3, 3]] * 3, [[1, 1], [2, 1], [2, 2]], [[2, 1], [2, 2]], filters=(4, 4, 8), norm_name="batch"
            ),
            (4, 2),
            (60, 40),
        ),
        (FlexibleUNet(3, 2, "resnet18", spatial_dims=2, decoder_channels=(8, 8, 4, 4, 4)), 32, (608, 32)),
    ],
    ids=["BasicUNet", "DynUNet", "FlexibleUNet"],
)
def test_tiled_is_whole_for_networks_of_monai(net, stride, tile):
    torch.manual_seed(0)
    net = ready(net)
    channels = 3 if isinstance(net, FlexibleUNet) else 1
    size = (650, 20) if isinstance(net, FlexibleUNet) else (241, 100)
    image = torch.randn(1, channels, *size, dtype=torch.float64)
    out, plan = tiled(net, image, tile=tile)
    assert plan.exact and plan.tiles > 1
    assert error(out, whole(net, image, stride)) < EXACT


def test_tiled_is_whole_in_float32():
    torch.manual_seed(0)
    net = ready(UNet(2, 1, 2, width=4, depth=4, padding="zeros", norm="batch"), torch.float32)
    image = torch.randn(1, 1, 200, 150)
    out, plan = tiled(net, image, tile=128)
    assert plan.tiles > 1 and out.dtype == torch.float32
    assert error(out, whole(net, image, 8)) < 1e-5


def test_the_prediction_is_the_network_of_the_image_whenever_it_fits():
    net = ready(UNet(2, 1, 2, width=4, depth=3, padding="zeros", norm="instance"), torch.float32)
    image = torch.randn(1, 1, 64, 48)
    out, plan = tiled(net, image)
    with torch.no_grad():
        assert torch.equal(out, net(image))
    assert plan.exact and plan.tiles == 1 and plan.cost == 1
