"""Another engine gives PyTorch's answer or is refused."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline import engines
from pipeline.errors import InputError
from pipeline.inferers import OverlapTileInferer
from tests.test_folding import ours, trained

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs overtile[openvino]")


@needs_openvino
@pytest.mark.parametrize(
    "net",
    [
        ours(2),
        ours(3, depth=2),
        ours(2, padding="valid", norm=None),
        ours(2, padding="reflect", up="linear", down="conv"),
        ours(2, "resnet18"),
    ],
    ids=["2D", "3D", "2015", "reflect", "ResNet-18"],
)
def test_openvino_gives_the_answer_of_the_network(net):
    net, dims = trained(net), 3 if any(isinstance(m, nn.Conv3d) for m in net.modules()) else 2
    image = torch.rand(1, 1, *(40, 56, 24)[:dims])
    with torch.no_grad():
        expected = OverlapTileInferer()(image, net)
        tiled, found = OverlapTileInferer(engine="openvino"), OverlapTileInferer(engine="openvino")(image, net)
        assert tiled.plan(image.shape, net).exact
    assert 0 < (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_openvino
def test_openvino_tells_nobody():
    told = """
import sys, torch
from pipeline.engines import OpenVino
net = torch.nn.Conv2d(1, 1, 3).eval()
print(OpenVino(net, torch.rand(1, 1, 8, 8))(torch.ones(1, 1, 9, 9)).shape)
import openvino
print(type(openvino.tools.ovc.telemetry).__module__, [name for name in sys.modules if "telemetry.backend" in name])
"""
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["torch.Size([1, 1, 7, 7])", "openvino.tools.ovc.telemetry_stub []"]


@needs_openvino
def test_openvino_follows_the_weights_and_leaves_a_training_network_alone():
    net, image = trained(ours(2)), torch.rand(1, 1, 64, 48)
    inferer = OverlapTileInferer(engine="openvino")
    with torch.no_grad():
        before = inferer(image, net)
        net.head.bias += 1
        torch.testing.assert_close(inferer(image, net), before + 1, rtol=0, atol=1e-5)
    assert inferer(image, net.train()).requires_grad


def test_an_engine_that_answers_otherwise_is_refused(monkeypatch):
    wrong = nn.Conv2d(1, 1, 1)
    monkeypatch.setattr(engines, "_compiled", lambda net: wrong)
    net = trained(ours(2))
    with torch.no_grad(), pytest.raises(InputError, match="differs from PyTorch by .* of the largest logit"):
        OverlapTileInferer(engine="compiled")(torch.rand(1, 1, 32, 32), net)


def test_an_engine_that_fails_says_so(monkeypatch):
    def fails(_):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(engines, "_compiled", fails)
    with torch.no_grad(), pytest.raises(InputError, match=r"cannot run this network \(no C\+\+ compiler\): use null"):
        OverlapTileInferer(engine="compiled")(torch.rand(1, 1, 32, 32), trained(ours(2)))


def test_an_engine_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(InputError, match="`engine` must be null or one of 'compiled', 'openvino', got 'onnx'"):
        OverlapTileInferer(engine="onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with torch.no_grad(), pytest.raises(InputError, match=r"needs OpenVINO: pip install 'overtile\[openvino\]'"):
        OverlapTileInferer(engine="openvino")(torch.rand(1, 1, 32, 32), trained(ours(2)))
