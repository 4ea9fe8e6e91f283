"""Inference on a GPU: exact where float32 is float32, smaller tiles where memory runs out, near enough in bfloat16."""

import logging

import pytest
import torch

from pipeline.inferers import OverlapTileInferer
from tests.test_folding import ours, trained

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu(monkeypatch):
    """A GPU without TensorFloat-32, whose 10 bits of mantissa would hide what tiles do."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda")


@pytest.mark.parametrize("dims", [2, 3])
@torch.no_grad()
def test_tiled_is_whole_with_tf32_off(gpu, dims):
    net = trained(ours(dims)).to(gpu)
    image = torch.rand(1, 1, *[96] * dims, device=gpu)
    expected = net(image)
    found = OverlapTileInferer(tile=64)(image, net)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_the_tile_is_halved_where_the_gpu_has_no_more(gpu, caplog):
    net, image = trained(ours(2, width=16)).to(gpu), torch.rand(1, 1, 2048, 2048, device=gpu)
    expected = OverlapTileInferer(tile=256)(image, net)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 500 * 2**20) / total)
    try:
        found = OverlapTileInferer(tile=2048)(image, net)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert said == ["memory ran out with tiles of 2048 x 2048: they are halved until they fit"]
    assert (found - expected).abs().max() <= 1e-2 * expected.abs().max()


@torch.no_grad()
def test_bfloat16_is_near(gpu):
    net, image = trained(ours(2)).to(gpu), torch.rand(1, 1, 256, 256, device=gpu)
    expected = net(image)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = OverlapTileInferer()(image, net)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max()
