"""The law of the overlap-tile: tiled is whole. Everything else here says what happens where it cannot be."""

import logging
import re
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import BasicUNet, DynUNet, FlexibleUNet
from torch import nn

from pipeline.flips import FlipInferer
from pipeline.inferers import OverlapTileInferer, tile_inferer
from pipeline.memory import LiveBytes, available_bytes, peak_bytes
from pipeline.networks import UNet
from pipeline.reach import analyse
from pipeline.resizing import LongestSideInferer
from pipeline.spacing import SpacingInferer
from pipeline.tile_pass import mirror

ALIVE = ["leakyrelu", {"negative_slope": 0.3}]
LAW = settings(deadline=None, max_examples=15, derandomize=True, phases=[Phase.explicit, Phase.generate])
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
        return inferer(image, net), inferer.plan(image.shape, net)


@cache
def unet(dims, depth, seed=0, **keywords):
    """Make a small network; the same arguments give the same one, so that it is analysed once."""
    torch.manual_seed(seed)
    return ready(UNet(dims, 1, 2, width=2, depth=depth, act=ALIVE, **keywords))


padded_networks = st.builds(
    unet,
    st.just(2),
    st.integers(2, 4),
    padding=st.sampled_from(["zeros", "reflect"]),
    norm=st.sampled_from([None, "batch"]),
    down=st.sampled_from(["max", "conv"]),
    up=st.sampled_from(["transposed", "linear", "nearest"]),
) | st.builds(
    unet,
    st.just(3),
    st.just(2),
    padding=st.sampled_from(["zeros", "reflect"]),
    up=st.sampled_from(["transposed", "linear"]),
)


@LAW
@given(padded_networks, st.data())
def test_tiled_is_whole_for_padded_networks(net, data):
    dims, stride = net.spatial_dims, 2 ** (net.depth - 1)
    least = 2 * OverlapTileInferer(tile=256).plan([1, 1] + [999] * dims, net).margin[0] + stride
    more = 5 * stride if dims == 2 else stride
    sizes = [data.draw(st.integers(1, least) | st.integers(least, least + more)) for _ in range(dims)]
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
    net = unet(dims, depth, up=up, norm=data.draw(st.sampled_from([None, "batch"])))
    stride = 2 ** (depth - 1)
    lost, least = {2: (8, 18), 3: (20, 44), 4: (44, 92)}[depth]
    sizes = [data.draw(st.integers(1, 40 if dims == 2 else 6)) for _ in range(dims)]
    tile = [least + stride * data.draw(st.integers(1, 4)) for _ in range(dims)]
    image = torch.randn(1, 1, *sizes, dtype=torch.float64)
    out, plan = tiled(net, image, tile=tile, batch_size=data.draw(st.integers(1, 3)))
    assert plan.exact and plan.border == "mirror"
    assert error(out, whole(net, image, stride, lost, least)) < EXACT


@LAW
@given(st.integers(1, 60), st.integers(1, 30), st.sampled_from([(56, 64), (64, 56), (72, 72)]))
def test_tiled_is_whole_for_a_padded_network_with_a_mirrored_border(height, width, tile):
    net = unet(2, 3, padding="zeros")
    halo = 24
    image = torch.randn(1, 1, height, width, dtype=torch.float64)
    out, plan = tiled(net, image, tile=tile, border="mirror")
    ends = [halo + -n % 4 for n in (height, width)]
    with torch.no_grad():
        expected = net(padded(image, [halo, halo], ends))[:, :, halo : halo + height, halo : halo + width]
    assert plan.margin == (halo, halo)
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
        assert error(out, net(image)) < 1e-5  # float32 summed in another order
    assert plan.exact and plan.tiles == 1 and plan.cost == 1


def test_the_network_of_2015_is_exact_in_steps_of_384_and_not_of_388_as_drawn():
    net = unet(2, 5)
    image = torch.randn(1, 1, 500, 20, dtype=torch.float64)
    expected = whole(net, image, 16, lost=92, least=188)
    out, plan = tiled(net, image, tile=(572, 204))
    assert (plan.tile, plan.step, plan.margin) == ((572, 204), (384, 16), (92, 92))
    assert error(out, expected) < EXACT

    frame = padded(image, (92, 92), (92 + 388, 92 + 12))  # 388 more than the image needs, so the second tile fits
    with torch.no_grad():
        drawn = torch.cat([net(frame[:, :, first : first + 572, :204]) for first in (0, 388)], dim=2)
    assert error(drawn[:, :, :388, :20], expected[:, :, :388]) < EXACT
    assert error(drawn[:, :, 388:500, :20], expected[:, :, 388:]) > 0.01


def test_a_start_off_the_grid_is_seen():
    net, image = unet(2, 3, padding="zeros"), torch.randn(1, 1, 120, 16, dtype=torch.float64)
    with torch.no_grad():
        full = net(image)[:, :, 60:70]
        assert error(net(image[:, :, 24:104])[:, :, 36:46], full) < EXACT
        assert error(net(image[:, :, 26 : 104 + 2])[:, :, 34:44], full) > 1e-3


def test_monais_sliding_window_is_not_the_network_of_the_image_and_this_is():
    net, image = unet(2, 3, padding="zeros"), torch.randn(1, 1, 102, 16, dtype=torch.float64)
    expected = whole(net, image, 4)
    with torch.no_grad():
        theirs = SlidingWindowInferer((64, 16), overlap=0.625, mode="constant")(image, net)
    ours, _ = tiled(net, image, tile=(64, 16))
    assert error(ours, expected) < EXACT
    assert error(theirs, expected) > 1e-3


def reach(net, channels=1, dims=2):
    return [(a.stride, a.lost, a.halo, a.least) for a in analyse(net, channels, dims).axes]


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, (16, 92, 92, 188)),
        ({"up": "nearest"}, (16, 92, 92, 188)),
        ({"padding": "zeros"}, (16, 0, 96, 16)),
        ({"padding": "reflect"}, (16, 0, 96, 32)),
        ({"padding": "zeros", "up": "linear"}, (16, 0, 112, 16)),
        ({"padding": "zeros", "down": "conv"}, (16, 0, 112, 16)),
        ({"padding": "zeros", "down": "conv", "up": "linear"}, (16, 0, 128, 16)),
    ],
)
def test_reach_of_the_network_of_2015_and_its_relatives(keywords, expected):
    net = UNet(2, 1, 2, width=1, **keywords)
    assert reach(net) == [expected] * 2


def test_reach_of_small_networks_a_human_can_check():
    assert reach(nn.Conv2d(1, 1, 3, padding=1)) == [(1, 0, 1, 1)] * 2
    assert reach(nn.Conv2d(1, 1, 5)) == [(1, 2, 2, 5)] * 2
    assert reach(nn.Conv2d(1, 1, (1, 3), padding=(0, 2), dilation=2)) == [(1, 0, 0, 1), (1, 0, 2, 1)]
    pool = nn.Sequential(nn.MaxPool2d((3, 2)), nn.Upsample(scale_factor=(3, 2)))
    assert reach(pool) == [(3, 0, 0, 3), (2, 0, 0, 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_mirroring_is_numpys(size):
    indices = torch.arange(-20, size + 20)
    assert mirror(indices, size).tolist() == np.pad(np.arange(size), 20, mode="reflect").tolist()


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (
            lambda: UNet(2, 1, 2, width=2, depth=3, padding="zeros", norm="instance", act=ALIVE),
            "instance or group norm",
        ),
        (
            lambda: BasicUNet(2, 1, 2, features=(4, 4, 4, 8, 8, 4), norm="batch", upsample="nontrainable"),
            "aligned corners",
        ),
    ],
    ids=["instance", "aligned"],
)
def test_a_network_that_cannot_be_tiled_exactly_is_named_approximate_once(net, reason, caplog):
    torch.manual_seed(0)
    net, image = ready(net()), torch.randn(1, 1, 300, 16, dtype=torch.float64)
    inferer = OverlapTileInferer(tile=(256, 16))
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        out = [inferer(image, net) for _ in range(2)]
    assert reason in inferer.plan(image.shape, net).reason
    assert len(caplog.messages) == 1 and reason in caplog.text
    assert re.search(r"differs by up to \S+, \S+% of the largest logit \S+, from that with a margin of", caplog.text)
    assert 0 < error(out[0], whole(net, image, 16)) < 1


def test_a_margin_below_the_halo_says_what_it_costs(caplog):
    net, image = unet(2, 4, padding="zeros"), torch.randn(1, 1, 300, 8, dtype=torch.float64)
    out, plan = tiled(net, image, tile=(96, 8), margin=8)
    assert not plan.exact and plan.reason == "the margin 8 x 8 is below the halo 48 x 48"
    said = float(re.search(r"differs by up to (\S+),", caplog.text)[1])
    true = float((out - whole(net, image, 8)).abs().max())
    assert 0 < said <= 1.1 * true
    assert tiled(net, image, tile=(128, 8), margin=56)[1].exact


def test_tile_and_margin_are_checked_in_sentences():
    net = unet(2, 5, padding="zeros")
    shape = (1, 1, 999, 999)
    for keywords, sentence in [
        ({"tile": 250}, "`tile` must be a multiple of 16, got 250: use 240 or 256"),
        ({"tile": 192}, "`tile` must be at least 208 for a margin of 96 pixels, got 192"),
        ({"tile": (256, 256, 256)}, "`tile` must have 2 numbers, one per axis, got 3"),
        ({"memory_gb": 1e-6}, "the smallest tile for a margin of 96 x 96, 208 x 208, takes"),
    ]:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            OverlapTileInferer(**keywords).plan(shape, net)
    valid = unet(2, 5)
    for keywords, sentence in [
        ({"tile": 570}, "`tile` must be 12 more than a multiple of 16, got 570: use 556 or 572"),
        ({"tile": 188}, "`tile` must be at least 204 for a margin of 92 pixels, got 188: use that or more"),
        ({"margin": 16}, "`margin` must be at least the 92 pixels that the network loses, got 16"),
        ({"border": "network"}, "`border='network'` needs a network that keeps its input's size"),
    ]:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            OverlapTileInferer(**keywords).plan(shape, valid)
    for keywords in (
        {"tile": 0},
        {"tile": 1.5},
        {"margin": -1},
        {"border": "zero"},
        {"batch_size": 0},
        {"memory_gb": 0},
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(keywords))}` must be"):
            OverlapTileInferer(**keywords)
    with pytest.raises(ValueError, match=r"`inputs` must be \(N, C, H, W\)"):
        OverlapTileInferer().plan((1, 64, 64), net)


class Two(nn.Module):
    def forward(self, x):
        return x, x


def test_networks_that_do_not_fit_are_refused_in_sentences():
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="the network must return one tensor, got tuple"):
        OverlapTileInferer()(x, Two())
    with pytest.raises(ValueError, match=r"must give as many pixels as it takes.*give `tile` and `margin`"):
        OverlapTileInferer()(x, nn.Upsample(scale_factor=2))
    with pytest.raises(ValueError, match="takes no image of 1 channels"):
        OverlapTileInferer()(x, nn.Conv2d(3, 1, 3))
    with pytest.raises(ValueError, match=r"is not a torch.nn.Module and cannot be analysed: give `tile` and `margin`"):
        OverlapTileInferer()(x, torch.relu)


def test_any_callable_runs_with_tile_and_margin(caplog):
    image = torch.randn(1, 1, 40, 30)
    out, plan = tiled(lambda x: x.square(), image, tile=16, margin=2)
    assert torch.equal(out, image.square())
    assert not plan.exact and "not a torch.nn.Module" in caplog.text


def test_the_tile_is_the_cheapest_that_the_memory_admits():
    net, shape = unet(2, 4, padding="zeros"), (1, 1, 1000, 700)
    plans = [OverlapTileInferer(memory_gb=gb).plan(shape, net) for gb in (9, 0.04, 0.02, 0.01)]
    assert plans[0].tiles == 1 and plans[0].tile == (1000, 704)
    assert [p.memory_gb <= gb for p, gb in zip(plans, (9, 0.04, 0.02, 0.01), strict=True)] == [True] * 4
    assert sorted(p.cost for p in plans) == [p.cost for p in plans]
    assert all(p.exact for p in plans)


def test_a_plan_reads_as_one_line():
    net = unet(2, 5)
    text = str(OverlapTileInferer(tile=572).plan((1, 1, 512, 512), net))
    assert text.startswith(
        "512 x 512 in 4 tiles of 572 x 572, margin 92 x 92, step 384 x 384, border mirror, memory 0."
    )
    assert text.endswith(" GB, 4.99 x the image: exact")


def test_peak_memory_without_data_is_that_with_data_and_grows_with_the_tile():
    net = unet(2, 4, padding="zeros", norm="batch")
    real = peak_bytes(net, torch.zeros(1, 1, 64, 64, dtype=torch.float64))
    twin = ready(UNet(2, 1, 2, width=2, depth=4, padding="zeros", norm="batch", act=ALIVE)).to("meta")
    sizes = [peak_bytes(twin, torch.empty(1, 1, n, n, dtype=torch.float64, device="meta")) for n in (64, 128, 256)]
    assert sizes[0] == pytest.approx(real, rel=0.05)
    assert sizes[0] < sizes[1] < sizes[2] == pytest.approx(16 * sizes[0], rel=0.05)


def test_live_bytes_counts_what_is_alive():
    with LiveBytes() as mode:
        a = torch.zeros(1000, dtype=torch.float64)
        b = a + 1
        view = b[:10]
        del b
        assert mode.live == 16_000
        del view, a
        c = torch.zeros(1000, dtype=torch.float64)
    assert (mode.live, mode.peak) == (8_000, 16_000)
    assert c.numel() == 1000


def test_memory_that_is_free_is_known():
    assert 1e6 < available_bytes(torch.device("cpu")) < 1e14


def test_metadata_survives_and_a_batch_can_be_taken_apart():
    net = unet(2, 3, padding="zeros")
    images = MetaTensor(torch.randn(2, 1, 20, 70, dtype=torch.float64), affine=torch.eye(4) * 2, meta={"name": "a"})
    images.is_batch = True
    out, _ = tiled(net, images, tile=(64, 64))
    assert isinstance(out, MetaTensor) and out.shape == (2, 2, 20, 70)
    assert torch.equal(out.affine, images.affine) and out.meta["name"] == "a"
    assert not isinstance(tiled(net, images.as_tensor(), tile=64)[0], MetaTensor)
    lone = MetaTensor(torch.randn(1, 20, 70, dtype=torch.float64), affine=torch.eye(4) * 2)
    batch = tiled(net, torch.utils.data.default_collate([lone, lone]), tile=(64, 64))[0]
    assert [p.shape for p in decollate_batch(batch)] == [(2, 20, 70)] * 2


def test_mode_grad_and_autocast_are_the_callers():
    net = UNet(2, 1, 2, width=2, depth=2, padding="zeros", norm="batch").train()
    image = torch.randn(1, 1, 64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = OverlapTileInferer(tile=(32, 16))(image, net)
    assert out.dtype == torch.bfloat16 and net.training
    assert "batch norm is in training mode" in OverlapTileInferer(tile=(32, 16)).plan(image.shape, net).reason
    OverlapTileInferer(tile=(32, 16))(image, net).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, gain=1.0):
        return self.conv(x) * gain


def test_further_arguments_reach_the_network():
    net, image = Gated(), torch.randn(1, 1, 40, 40)
    with torch.no_grad():
        assert torch.allclose(
            OverlapTileInferer(tile=16)(image, net, gain=torch.tensor(2.0)), net(image, 2.0), atol=1e-6
        )


def test_a_network_that_is_changed_is_analysed_again():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    inferer = OverlapTileInferer(tile=32)
    assert inferer.plan((1, 1, 64, 64), net).margin == (1, 1)
    net.append(nn.Conv2d(1, 1, 5, padding=2))
    assert inferer.plan((1, 1, 64, 64), net).margin == (3, 3)


@pytest.mark.slow
def test_the_network_of_2015_at_its_own_width_and_tile():
    torch.manual_seed(0)
    net = UNet(2, 1, 2).eval()
    image = torch.randn(1, 1, 600, 500)
    out, plan = tiled(net, image, tile=572)
    assert (plan.tiles, plan.step, plan.margin, plan.exact) == (4, (384, 384), (92, 92), True)
    assert error(out, whole(net, image, 16, lost=92, least=188)) < 1e-5


def test_tile_by_tile_every_pixel_comes_and_the_whole_is_the_answer():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1).eval()
    images = torch.rand(2, 1, 50, 40)
    inferer = OverlapTileInferer(tile=16, batch_size=3)
    whole, tiles = torch.full((2, 2, 50, 40), torch.nan), 0
    for (image, *pixels), part in inferer.each(images, network):
        whole[image, :, *pixels] = part
        tiles += 1
    assert tiles == 2 * inferer.plan(images.shape, network).tiles
    assert torch.equal(whole, inferer(images, network))


def test_a_wrapper_that_changes_nothing_leaves_the_way_tile_by_tile_open():
    inner = OverlapTileInferer(tile=16)
    assert tile_inferer(LongestSideInferer(inner, size=None)) is inner
    assert tile_inferer(SpacingInferer(LongestSideInferer(inner, size=None), spacing_mm=None)) is inner
    assert tile_inferer(FlipInferer(inner, flips=False)) is inner
    assert tile_inferer(FlipInferer(inner, flips=True)) is None
    assert tile_inferer(LongestSideInferer(inner, size=32)) is None
    assert tile_inferer(SpacingInferer(inner, spacing_mm=[1, 1, 1])) is None
    assert tile_inferer(SimpleInferer()) is None
