"""A folded network is the network; the one that is trained stays as it is."""

import copy
import warnings

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from pipeline.deployed import _same, _weights
from pipeline.folding import Fold, foldable, folded
from pipeline.inferers import OverlapTileInferer
from pipeline.networks import network

SAME = 1e-5
"""Relative to the largest logit, in float32."""


def trained(net, seed=0):
    """A network whose batch norms have seen something."""
    generator = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((m.running_mean, -1, 1), (m.running_var, 0.5, 2), (m.weight, 0.5, 2)):
                tensor.data.uniform_(low, high, generator=generator)
            m.bias.data.normal_(0, 0.5, generator=generator)
    return net.eval()


def ours(dims=2, encoder=None, **keywords):
    keywords = {"width": 4, "depth": 3, "padding": "zeros", "norm": "batch"} | keywords
    return network(encoder, spatial_dims=dims, in_channels=1, out_channels=2, **keywords)


def norms(net):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


@pytest.mark.parametrize(
    ("net", "left"),
    [
        (ours(2), 0),
        (ours(3), 0),
        (ours(2, channel_dropout=0.2, dropout=0.5, act=["leakyrelu", {"negative_slope": 0.1}]), 0),
        (ours(2, padding="valid", up="nearest"), 0),
        (ours(3, padding="reflect", down="conv", up="linear"), 0),
        (ours(2, "resnet18"), 0),
        (ours(2, "resnet50"), 0),
        (BasicUNet(2, 1, 2, features=(4, 4, 4, 8, 8, 4), norm="batch"), 0),
        (ours(2, norm=None), 0),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)), 1),
    ],
    ids=["2D", "3D", "dropout", "valid", "reflect", "ResNet-18", "ResNet-50", "MONAI", "no norm", "norm first"],
)
def test_a_folded_network_is_the_network(net, left):
    net = trained(net)
    x = torch.rand(2, 1, *([16] * 3 if any(isinstance(m, nn.Conv3d) for m in net.modules()) else [64] * 2))
    light = folded(net, foldable(net, x[:1]))
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        expected = net(x)
        assert (light(x) - expected).abs().max() <= SAME * expected.abs().max()
    assert norms(light) == left
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


class Shared(nn.Module):
    """Looks at a convolution's output both before and after its norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()

    def forward(self, x):
        x = self.conv(x)
        return x + self.act(self.norm(x))


def test_what_does_not_stay_the_same_is_not_folded():
    assert foldable(trained(Shared()), torch.rand(1, 1, 8, 8)) == Fold((), ())


def test_the_inferer_runs_a_folded_copy_with_the_weights_of_now(monkeypatch):
    net, image = trained(ours()), torch.rand(1, 1, 32, 32)
    inferer = OverlapTileInferer()

    def same():
        with torch.no_grad():
            expected = net(image)
            return (inferer(image, net) - expected).abs().max() <= SAME * expected.abs().max()

    assert same()
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(nn.BatchNorm2d, "forward", None)
        inferer(image, net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net.train()
    net(torch.rand(4, 1, 32, 32)).square().mean().backward()
    net.eval()
    assert same()  # the running averages moved
    optimizer.step()
    assert same()
    net.load_state_dict(trained(ours(), seed=1).state_dict())
    assert same()
    with torch.no_grad():
        net.head.bias += 1
    assert same()


def test_a_network_that_is_differentiated_or_watched_runs_itself():
    net, image = trained(ours()), torch.rand(1, 1, 32, 32)
    seen = []
    handle = net.expanding[-1][1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        OverlapTileInferer()(image, net)
    handle.remove()
    assert seen == [1]
    OverlapTileInferer()(image, net).sum().backward()
    assert net.head.weight.grad.abs().sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.train()
        OverlapTileInferer()(image, net)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_that_changes_no_version_counter_is_noticed(optimizer):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    image, inferer, step = torch.rand(1, 1, 32, 32), OverlapTileInferer(), optimizer(net.parameters(), 0.1, fused=True)
    for _ in range(3):
        net(image).sum().backward()
        step.step()
        with torch.no_grad():
            torch.testing.assert_close(inferer(image, net.eval()), net(image), rtol=SAME, atol=SAME)


def test_a_change_of_one_bit_is_noticed():
    net = nn.Conv2d(1, 1, 3, padding=1).eval()
    before = _weights(net)
    net.weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    assert not _same(before, _weights(net))
