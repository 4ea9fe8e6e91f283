import os
import subprocess
import sys

import pytest
import torch

from pipeline.memory import inference_bytes, training_bytes
from pipeline.networks import UNet
from tests.conftest import ROOT

STEP = """
import sys
import torch
from monai.losses import DiceCELoss
from pipeline.networks import UNet

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def step(net, *size):
    images, labels = torch.rand(size), torch.zeros(size)
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        DiceCELoss(to_onehot_y=True, softmax=True)(net(images), labels).backward()
        optimizer.step()

dims, width, depth, batch, *sides = map(int, sys.argv[1:])
step(UNet(dims, 1, 2, width=2, depth=2, padding="zeros", norm="batch"), 1, 1, *[8] * dims)
before = anonymous()
import threading, time
peak, done = [before], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
step(UNet(dims, 1, 2, width=width, depth=depth, padding="zeros", norm="batch"), batch, 1, *sides)
done.set()
watcher.join()
print(peak[0] - before)
"""


def estimated(dims, width, depth, batch, *sides):
    with torch.device("meta"):
        net = UNet(dims, 1, 2, width=width, depth=depth, padding="zeros", norm="batch")
    return training_bytes(net, torch.empty(batch, 1, *sides, device="meta"), 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("settings", [(3, 16, 3, 2, 40, 56, 40), (2, 16, 3, 4, 256, 256)], ids=["3D", "2D"])
def test_the_estimate_of_a_training_step_is_near_its_resident_memory(settings):
    command = [sys.executable, "-c", STEP, *map(str, settings)]
    said = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert 0.75 < estimated(*settings) / int(said.stdout) < 1.35


def test_a_training_step_takes_what_its_images_and_its_weights_ask_for():
    one, two, four = (estimated(3, 8, 3, batch, 64, 64, 64) for batch in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)  # activations grow with the batch
    weights = sum(p.nbytes for p in UNet(2, 1, 2, width=32, depth=5).parameters())
    assert estimated(2, 32, 5, 1, 32, 32) > 4 * weights  # gradients and two moments beside them


FORWARD = """
import sys, threading, time
import torch
from pipeline.inferers import OverlapTileInferer
from pipeline.networks import UNet

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

dims, width, depth, side = map(int, sys.argv[1:5])
norm = {"batch": "batch", "instance": "instance"}[sys.argv[5]]
net = UNet(dims, 1, 2, width=width, depth=depth, padding="zeros", norm=norm).eval()
inferer = OverlapTileInferer(memory_gb=9)
image = torch.rand(1, 1, *[side] * dims)
with torch.no_grad():
    inferer(image[(..., *[slice(64)] * dims)], net)
    said = 1e9 * inferer.plan(image.shape, net).memory_gb
    peak, done = [before := anonymous()], threading.Event()
    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)
    watcher = threading.Thread(target=watch)
    watcher.start()
    inferer(image, net)
    done.set()
    watcher.join()
print((peak[0] - before) / said)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("settings", [(2, 8, 5, 1024), (3, 8, 4, 96), (2, 32, 4, 640)], ids=["2D", "3D", "wide"])
@pytest.mark.parametrize("norm", ["batch", "instance"])  # channels together, and apart
def test_a_tile_takes_no_more_than_was_said(settings, norm):
    command = [sys.executable, "-c", FORWARD, *map(str, settings), norm]
    said = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert 0.5 < float(said.stdout) < 1.05


def test_few_channels_cost_as_much_as_a_block_where_they_lie_apart():
    with torch.device("meta"):
        net, x = torch.nn.Conv2d(8, 8, 3, padding=1), torch.empty(1, 8, 64, 64)
    cpu, image = torch.device("cpu"), 8 * 64 * 64 * 4
    assert inference_bytes(net, x, cpu, channels_last=True) == pytest.approx(1.35 * 2 * image, rel=0.01)
    # what comes in and what goes out, and a copy of each with 16 channels
    assert inference_bytes(net, x, cpu, channels_last=False) == pytest.approx(1.45 * (2 + 4) * image, rel=0.01)
