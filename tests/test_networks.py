"""The network of 2015 by numbers a human can check, and every keyword in 2D and 3D."""

import itertools

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from pipeline.networks import UNet, network, out_channels

CONVS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS, UPS = (None, "batch", "instance"), ("transposed", "linear", "nearest")
PADDED = itertools.product((2, 3), ("zeros", "reflect"), NORMS, ("max", "conv"), UPS)
VALID = itertools.product((2, 3), ("valid",), NORMS, ("max",), ("transposed", "nearest"))


def convs(net):
    return [m for m in net.modules() if isinstance(m, CONVS)]


@pytest.fixture(scope="module")
def paper():
    torch.manual_seed(0)
    return UNet(2, 1, 2).to("meta")


def test_the_network_of_the_paper_has_its_parameters(paper):
    assert sum(p.numel() for p in paper.parameters()) == 31_030_658


def test_the_network_of_the_paper_has_23_convolutional_layers(paper):
    assert len(convs(paper)) == 23


def test_the_network_of_the_paper_turns_572_into_388(paper):
    assert paper(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)


def test_initial_weights_are_hes_and_biases_are_zero():
    torch.manual_seed(0)
    net = UNet(2, 1, 2)
    inputs = [1 * 9, 64 * 9, 64 * 9, 128 * 9, 128 * 9, 256 * 9, 256 * 9, 512 * 9, 512 * 9, 1024 * 9]
    inputs += [1024, 512, 256, 128]  # up-convolutions
    inputs += [1024 * 9, 512 * 9, 512 * 9, 256 * 9, 256 * 9, 128 * 9, 128 * 9, 64 * 9]
    inputs += [64]
    for conv, n in zip(convs(net), inputs, strict=True):
        values = conv.weight.numel()
        assert conv.weight.std().item() == pytest.approx((2 / n) ** 0.5, rel=4 / values**0.5)
        assert conv.bias.abs().max() == 0


def test_the_first_up_convolution_has_the_papers_std_and_not_kaimings():
    torch.manual_seed(0)
    net = UNet(2, 1, 2, depth=4)  # its first up-convolution goes from 512 to 256 channels
    assert net.ups[0].weight.std().item() == pytest.approx(0.0625, rel=0.01)


def test_dropout_stands_at_the_end_of_the_contracting_path():
    net = UNet(2, 1, 2, width=2, depth=2, dropout=0.999).train()
    seen = []
    net.ups[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.ones(1, 1, 64, 64))
    assert (seen[0] == 0).float().mean() > 0.95


def test_channel_dropout_drops_whole_channels_between_norm_and_activation():
    net = UNet(2, 1, 2, width=8, depth=2, padding="zeros", norm="batch", act="relu", channel_dropout=0.5).train()
    seen = {}
    net.contracting[0][2].register_forward_hook(lambda _m, args, out: seen.update(normed=args[0], active=out))
    torch.manual_seed(0)
    net(torch.rand(4, 1, 16, 16))
    dropped = (seen["active"] == 0).flatten(2).all(-1)  # (4, 8)
    assert 8 < dropped.sum() < 24
    kept = torch.where(dropped[..., None, None], 0, 2 * seen["normed"].relu())
    assert torch.equal(seen["active"], kept)


@pytest.mark.parametrize("dims", [2, 3])
def test_channel_dropout_follows_every_3x3_convolution_of_a_level_and_weights_load_without_it(dims):
    keywords = {"width": 2, "depth": 3, "padding": "reflect", "norm": "batch", "down": "conv"}
    net, plain = UNet(dims, 1, 2, channel_dropout=0.3, **keywords), UNet(dims, 1, 2, **keywords)
    kind = {2: nn.Dropout2d, 3: nn.Dropout3d}[dims]
    assert [m.p for m in net.modules() if isinstance(m, kind)] == [0.3] * 10
    assert not any(isinstance(m, kind) for m in plain.modules())
    plain.load_state_dict(net.state_dict())


def test_names_of_the_weights_stay_as_in_older_checkpoints():
    names = list(UNet(2, 1, 2, width=2, depth=2, padding="zeros", norm="batch").state_dict())
    batch = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    pair = ["0.weight", *(f"1.{n}" for n in batch), "3.weight", *(f"4.{n}" for n in batch)]
    paths = [f"{part}.{n}" for part in ("contracting.0", "contracting.1") for n in pair]
    paths += ["ups.0.weight", "ups.0.bias", *(f"expanding.0.{n}" for n in pair), "head.weight", "head.bias"]
    assert names == paths


def test_skips_are_cut_from_the_centre():
    net = UNet(2, 1, 1, width=1, depth=2)
    seen = {}
    net.contracting[0].register_forward_hook(lambda _m, _a, out: seen.update(skip=out))
    net.expanding[0].register_forward_pre_hook(lambda _, args: seen.update(joined=args[0]))
    net(torch.rand(1, 1, 20, 28))
    assert seen["joined"].shape == (1, 2, 8, 16)
    assert torch.equal(seen["joined"][:, :1], seen["skip"][:, :, 4:12, 4:20])


@pytest.mark.parametrize(("dims", "padding", "norm", "down", "up"), [*PADDED, *VALID])
def test_every_combination_runs_and_gradients_reach_every_parameter(dims, padding, norm, down, up):
    torch.manual_seed(0)
    net = UNet(dims, 2, 3, width=4, depth=3, padding=padding, norm=norm, act="elu", down=down, up=up)
    size, lost = (44, 40) if padding == "valid" else (16, 0)
    out = net(torch.randn(2, 2, *[size] * dims))
    assert out.shape == (2, 3, *[size - lost] * dims)
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("padding", ["valid", "zeros", "reflect"])
def test_exactly_the_sizes_that_split_evenly_are_taken(depth, padding):
    net = UNet(2, 1, 1, width=1, depth=depth, padding=padding).to("meta")
    taken = [n for n in range(1, 240) if runs(net, n)]
    least, period = taken[0], 2 ** (depth - 1)
    assert taken == list(range(least, 240, period))
    assert (
        least
        == {
            "valid": {1: 5, 2: 18, 3: 44, 4: 92, 5: 188}[depth],
            "zeros": period,
            "reflect": 2 * period,
        }[padding]
    )


def runs(net, n):
    try:
        return net(torch.empty(1, 1, n, n, device="meta")).shape[-1] > 0
    except ValueError:
        return False


def test_an_odd_split_is_refused_with_the_two_nearest_sizes(paper):
    with pytest.raises(ValueError, match=r"W of `x` is 570.*nearest valid sizes are 556 and 572"):
        paper(torch.empty(1, 1, 572, 570, device="meta"))
    with pytest.raises(ValueError, match="H of `x` is 100, too small for 5 levels: use 188 or more"):
        paper(torch.empty(1, 1, 100, 572, device="meta"))
    net = UNet(3, 1, 2, width=2, depth=4, padding="zeros")
    with pytest.raises(ValueError, match=r"D of `x` is 20.*nearest valid sizes are 16 and 24"):
        net(torch.zeros(1, 1, 8, 8, 20))
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W, D\), got the shape \(1, 1, 8, 8\)"):
        net(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"spatial_dims": 1}, "`spatial_dims` must be one of 2, 3, got 1"),
        ({"in_channels": 0}, "`in_channels` must be a whole number of at least 1, got 0"),
        ({"width": 6.5}, "`width` must be a whole number of at least 1, got 6.5"),
        ({"depth": 0}, "`depth` must be a whole number of at least 1, got 0"),
        ({"padding": "same"}, "`padding` must be one of 'valid', 'zeros', 'reflect', got 'same'"),
        ({"norm": "layer"}, "`norm` must be one of None, 'batch', 'instance', got 'layer'"),
        ({"act": "rlu"}, "`act` must be one of .*'leakyrelu'.*, got 'rlu'"),
        ({"act": ["relu"]}, "`act` must be one of .*'leakyrelu'.*, got \\['relu'\\]"),
        ({"down": "avg"}, "`down` must be one of 'max', 'conv', got 'avg'"),
        ({"up": "cubic"}, "`up` must be one of 'transposed', 'linear', 'nearest', got 'cubic'"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1, got 1.0"),
        ({"channel_dropout": -0.1}, "`channel_dropout` must be at least 0 and below 1, got -0.1"),
        ({"down": "conv"}, "`padding='valid'` goes with `down='max'`.*got down='conv' and up='transposed'"),
        ({"up": "linear"}, "`padding='valid'` goes with `down='max'`.*got down='max' and up='linear'"),
    ],
)
def test_a_wrong_keyword_is_refused_in_a_sentence(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        UNet(**{"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "width": 2} | keywords)


PUBLISHED = {
    "narrow": {
        "width": 4,
        "norm": "batch",
        "act": ["leakyrelu", {"negative_slope": 0.1}],
        "padding": "zeros",
        "up": "linear",
    },
    "reflecting": {
        "width": 8,
        "norm": "batch",
        "act": "leakyrelu",
        "padding": "reflect",
        "down": "conv",
        "up": "nearest",
        "channel_dropout": 0.3,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_are_keywords_and_learn(name):
    shape = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    config = {"_target_": "pipeline.networks.network", "encoder": None, **shape, **PUBLISHED[name]}
    torch.manual_seed(0)
    net = ConfigParser({"net": config}).get_parsed_content("net").train()
    image = torch.randn(2, 1, 32, 32)
    label = (image[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(net(image), label))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_parts_of_the_published_recipes():
    build = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    narrow, reflecting = (network(**build, **PUBLISHED[name]) for name in ("narrow", "reflecting"))
    assert [pair[0].out_channels for pair in narrow.contracting] == [4, 8, 16, 32, 64]
    assert {m.mode for m in narrow.modules() if isinstance(m, nn.Upsample)} == {"bilinear"}
    assert {m.negative_slope for m in narrow.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}
    assert {m.mode for m in reflecting.modules() if isinstance(m, nn.Upsample)} == {"nearest"}
    assert {up[0].kernel_size for up in reflecting.ups} == {(1, 1)}
    assert {down.stride for down in reflecting.downs} == {(2, 2)}
    assert {m.padding_mode for m in convs(reflecting) if m.kernel_size == (3, 3)} == {"reflect"}


def test_the_network_is_built_from_a_config():
    config = {
        "_target_": "pipeline.networks.UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "width": 4,
        "depth": 3,
        "padding": "zeros",
        "norm": "instance",
        "act": ["leakyrelu", {"negative_slope": 0.01}],
        "up": "linear",
    }
    net = ConfigParser({"net": config}).get_parsed_content("net")
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_the_forward_pass_can_be_exported():
    net = UNet(2, 1, 2, width=2, depth=3, padding="zeros").eval()
    x = torch.rand(1, 1, 16, 24)
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(exported(x), net(x))


def test_heads():
    with pytest.raises(ValueError, match="`head` must be one of 'softmax', 'sigmoid', got 'sigmoied'"):
        out_channels("sigmoied", ["a", "b"])
    with pytest.raises(ValueError, match="`head='sigmoid'` separates 2 classes, there are 3: use 'softmax'"):
        out_channels("sigmoid", ["a", "b", "c"])
