"""One image through a small network in a process of its own, whose memory is watched from outside.

`python -m tests.benchmarks.inference_child WHO SIZE FOLDER`: WHO is `nobody` (imports and network alone), `ours`
(`pipeline.predict.Predictor`: a memory-mapped TIFF to a TIFF of labels) or a peer (memory-mapped image to logits).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
import torch
from monai.transforms import Activationsd, AsDiscreted

from pipeline.inferers import OverlapTileInferer
from pipeline.networks import UNet
from pipeline.predict import Predictor
from tests.benchmarks.inference_peers import MAKERS

WIDTH, TILE_GB, WINDOW = 2, 0.1, {"MONAI": (256, 256), "nnU-Net": (512, 512), "TorchIO": (256, 256)}


def network() -> UNet:
    """A 2D U-Net of five levels, narrow, so that the largest image takes a minute."""
    torch.manual_seed(0)
    return UNet(2, 1, 2, width=WIDTH, padding="zeros", norm="batch").eval()


def write_image(path: Path, size: int) -> None:
    """Noise in float32, row by row."""
    image = tifffile.memmap(path, shape=(size, size), dtype=np.float32, photometric="minisblack")
    rng = np.random.default_rng(0)
    for row in range(0, size, 256):
        image[row : row + 256] = rng.standard_normal((256, size), np.float32)
    image.flush()


def mapped(path: str | Path) -> torch.Tensor:
    """(1, H, W), backed by the file."""
    return torch.from_numpy(tifffile.memmap(path, mode="r+"))[None]


def main(who: str, size: int, folder: Path) -> None:
    """Predict, or hold still."""
    path, net = folder / f"image{size}.tif", network()
    if who == "ours":
        activation, discretisation = Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)
        about = {"class_names": ["background", "block"], "spatial_dims": 2, "device": "cpu"}
        where = {"source": str(path), "output_dir": str(folder / "labels")}
        inferer = OverlapTileInferer(memory_gb=TILE_GB)
        Predictor(
            net, lambda item: {"image": mapped(item["image"])}, inferer, activation, discretisation, **about, **where
        ).run()
    elif who != "nobody":
        whole = MAKERS[who](net, WINDOW[who])
        whole(mapped(path)[None])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
