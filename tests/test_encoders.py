"""ResNet encoders: as large as published, never downloaded, weights from a file; in the overlap-tile inferer."""

import socket

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import ResNet

from pipeline.encoders import ENCODERS, ResNetUNet, with_encoder_weights
from pipeline.errors import InputError
from pipeline.inferers import OverlapTileInferer
from pipeline.networks import network

KEYWORDS = {"width": 16, "depth": 5, "padding": "zeros", "norm": "batch", "act": "relu"}
KEYWORDS |= {"down": "max", "up": "linear", "dropout": 0.0, "channel_dropout": 0.0}

PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
}
"""Of torchvision's networks for 1000 classes, less their last layer."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network is built without asking the internet")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


@pytest.fixture(scope="module")
def published():
    """ResNet-18 as torchvision lays it out, with its classifier, by MONAI's general class; it takes 3 channels."""
    torch.manual_seed(1)
    net = ResNet("basic", [2, 2, 2, 2], [64, 128, 256, 512], 2, 3, 7, 2, num_classes=1000, bias_downsample=False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def resnet18(in_channels=3):
    return ResNetUNet("resnet18", 2, in_channels, 2).eval()


def shapes(encoder, dims=2, in_channels=3):
    with torch.device("meta"):
        return ResNetUNet(encoder, dims, in_channels, 2)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_has_its_published_parameters_and_answers_for_every_pixel(encoder):
    config = {"_target_": "pipeline.networks.network", "encoder": encoder, "spatial_dims": 2, "in_channels": 3}
    net = ConfigParser({"net": config | {"out_channels": 4} | KEYWORDS}).get_parsed_content("net").eval()
    assert sum(p.numel() for p in net.encoder.parameters()) == PARAMETERS[encoder]
    with torch.no_grad():
        out = net(torch.rand(1, 3, 64, 96))
    assert out.shape == (1, 4, 64, 96)
    assert out.std() > 0


def test_gradients_reach_every_parameter_also_through_the_shortcuts():
    torch.manual_seed(0)
    net = network("resnet34", spatial_dims=2, in_channels=1, out_channels=3)
    net(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_a_volume_is_taken_too():
    net = network("resnet18", spatial_dims=3, in_channels=2, out_channels=3).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 2, 32, 32, 64)).shape == (1, 3, 32, 32, 64)


def test_an_unknown_encoder_and_an_odd_size_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="`encoder` must be one of None, 'resnet18', .*, got 'resnet19'"):
        network("resnet19", spatial_dims=2, in_channels=1, out_channels=2)
    with pytest.raises(ValueError, match="W of `inputs` is 100, .*: use 96 or 128 pixels"):
        resnet18()(torch.zeros(1, 3, 64, 100))
    with pytest.raises(ValueError, match="H of `inputs` is 20, .*: use 32 pixels"):
        resnet18()(torch.zeros(1, 3, 20, 64))


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_come_from_a_file(tmp_path, published, wrap, prefix):
    torch.save(wrap({prefix + name: value for name, value in published.state_dict().items()}), tmp_path / "w.pth")
    net = resnet18()
    assert with_encoder_weights(net, str(tmp_path / "w.pth")) is net
    loaded = net.encoder.state_dict()
    assert loaded.keys() == published.state_dict().keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[name], published.state_dict()[name]) for name in loaded)
    image = torch.rand(1, 3, 64, 64)
    deepest = net.encoder(image)[-1]
    assert torch.equal(published.fc(deepest.mean((2, 3))), published(image))


def test_files_of_old_pytorch_do_not_count_batches(tmp_path, published):
    weights = {k: v for k, v in published.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "w.pth")
    loaded = with_encoder_weights(resnet18(), str(tmp_path / "w.pth")).encoder.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights if not name.startswith("fc."))


def test_a_grey_image_gives_what_its_copy_in_three_channels_gives(tmp_path, published):
    torch.save(published.state_dict(), tmp_path / "w.pth")
    grey, colour = (with_encoder_weights(resnet18(n), str(tmp_path / "w.pth")).encoder for n in (1, 3))
    image = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(grey(image), colour(image.expand(1, 3, 64, 64)))


def test_no_file_changes_nothing():
    net = resnet18()
    before = net.encoder.conv1.weight.clone()
    assert with_encoder_weights(net, None) is net
    assert torch.equal(net.encoder.conv1.weight, before)


def test_files_that_do_not_fit_are_refused_in_a_sentence(tmp_path, published):
    file, text, number = (str(tmp_path / name) for name in ("w.pth", "text.pth", "number.pth"))
    torch.save(published.state_dict(), file)
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"epoch": 3}, number)
    refused = [
        (network(spatial_dims=2, in_channels=3, out_channels=2, **KEYWORDS), file, "give `encoder` too"),
        (shapes("resnet18"), str(tmp_path / "none.pth"), "no such file"),
        (shapes("resnet18"), text, "not a file of weights"),
        (shapes("resnet18"), number, "holds no weights by name"),
        (shapes("resnet18", in_channels=2), file, r"its conv1.weight is \(64, 3, 7, 7\), \(64, 2, 7, 7\) is needed"),
        (shapes("resnet34"), file, r"not the weights of a resnet34 .* layer1.2.bn1.bias is missing"),
        (shapes("resnet50"), file, "not the weights of a resnet50"),
        (shapes("resnet18", dims=3), file, r"\(64, 3, 7, 7, 7\) is needed"),
    ]
    for net, path, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            with_encoder_weights(net, path)


def test_the_inferer_gives_what_the_network_gives():
    torch.manual_seed(0)
    net, inferer = resnet18(in_channels=1), OverlapTileInferer()
    image, odd = torch.rand(1, 1, 256, 256), torch.rand(1, 1, 75, 130)
    with torch.no_grad():
        torch.testing.assert_close(inferer(image, net), net(image), rtol=0, atol=1e-5)
        assert inferer(odd, net).shape == (1, 2, 75, 130)
    assert inferer.plan(odd.shape, net).tile == (96, 160)
