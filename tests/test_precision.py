import pytest
import torch

from pipeline import precision
from pipeline.precision import AutocastInferer, computes_in_bfloat16


def test_float32_where_the_device_has_no_bfloat16(monkeypatch):
    network, image = torch.nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 8)
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda _: False)
    torch.testing.assert_close(AutocastInferer(True)(image, network), network(image), rtol=0, atol=0)


def test_bfloat16_inside_and_float32_outside(monkeypatch):
    network, image = torch.nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 8)
    seen = []
    network.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda _: True)
    out = AutocastInferer(True)(image, network)
    assert (seen, out.dtype) == ([torch.bfloat16], torch.float32)
    AutocastInferer(False)(image, network)
    assert seen[1] == torch.float32


@pytest.mark.parametrize("found", ["avx512_bf16", "amx_bf16"])
def test_processors_that_compute_in_bfloat16(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {found: True})
    assert computes_in_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert not computes_in_bfloat16(torch.device("cpu"))
