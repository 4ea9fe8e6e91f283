"""Where memory runs out, smaller tiles give the same answer."""

import logging

import pytest
import torch
from torch import nn

from pipeline.inferers import OverlapTileInferer
from pipeline.out_of_memory import halved, is_out_of_memory
from pipeline.reach import Reach
from tests.test_inferers import error, unet

CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


class Greedy(nn.Module):
    """Has room for images of so many pixels; its copies too."""

    most, tiles = 10**9, []

    def __init__(self, net, failure):
        super().__init__()
        self.net, self.failure = net, failure

    def forward(self, x):
        if not x.is_meta and x.shape[2:].numel() > Greedy.most:
            raise self.failure
        if not x.is_meta:
            Greedy.tiles.append(tuple(x.shape[2:]))
        return self.net(x)


@pytest.fixture
def greedy():
    """Room for everything, before the test and after it."""
    Greedy.most, Greedy.tiles = 10**9, []
    yield Greedy
    Greedy.most = 10**9


@pytest.mark.parametrize(
    "failure", [RuntimeError(CPU), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_the_tile_is_halved_until_it_fits_and_said_once(failure, greedy, caplog):
    net, image = unet(2, 2, padding="zeros", norm="batch"), torch.rand(1, 1, 150, 90, dtype=torch.float64)
    with torch.no_grad():
        expected = net(image)
        net, inferer = greedy(net, failure).eval(), OverlapTileInferer()
        inferer(image, net)  # analysed while there was room
        Greedy.most, Greedy.tiles = 76 * 46, []
        out = inferer(image, net)
        again = inferer(image, net)
    assert error(out, expected) < 1e-10 and torch.equal(out, again)
    assert set(Greedy.tiles) == {(76, 46)}  # of 150 x 90: 76 x 90, then 76 x 46
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert said == ["memory ran out with tiles of 150 x 90: they are halved until they fit"]


def test_what_does_not_fit_at_all_is_raised(greedy):
    net, inferer = greedy(unet(2, 2, padding="zeros"), MemoryError("no")), OverlapTileInferer()
    inferer.plan((1, 1, 64, 64), net)
    Greedy.most = 1
    with torch.no_grad(), pytest.raises(MemoryError):
        inferer(torch.rand(1, 1, 64, 64, dtype=torch.float64), net)


def test_other_errors_are_others():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError(CPU))


def test_halving_keeps_the_margins_and_the_grid():
    net = Reach(stride=16, lost=0, halo=96, least=16)
    assert halved((1024, 512), (96, 96), [net, net]) == (512, 512)
    assert halved((304, 208), (96, 96), [net, net]) == (208, 208)  # half would leave no step
    assert halved((208, 208), (96, 96), [net, net]) is None
