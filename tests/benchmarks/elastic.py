"""Milliseconds of an elastic deformation with rotation and scale, beside MONAI's and TorchIO's; exit code 1 below 5 x.

A float32 image of 512 x 512 and its uint8 label, one process, one thread. The transforms take turns, so that what else
the machine does meets all of them; a ratio is the median of the turns' ratios. MONAI's control points stand 32 px
apart, since coarser grids cost it more; TorchIO's does not rotate.
"""

import importlib.util
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from monai.transforms import Rand2DElasticd

from pipeline.elastic import RandElasticAffined

SIZE, TURNS, LEAST = 512, 30, 5.0
KEYS, MODES = ["image", "label"], ["bilinear", "nearest"]


def contenders(image: torch.Tensor, label: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Name -> one deformation of image and label, ours first."""
    item = {"image": image, "label": label}
    ours = RandElasticAffined(KEYS, mode=MODES, rotation=3.14, scale=0.1)
    monai = Rand2DElasticd(
        KEYS, spacing=32, magnitude_range=(0, 2), prob=1.0, rotate_range=3.14, scale_range=0.1, mode=MODES
    )
    calls = {"pipeline.elastic": lambda: ours(item), "MONAI Rand2DElasticd": lambda: monai(item)}
    if importlib.util.find_spec("torchio"):
        import SimpleITK
        import torchio

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        subject = torchio.Subject(
            image=torchio.ScalarImage(tensor=image[..., None]), label=torchio.LabelMap(tensor=label[..., None])
        )
        theirs = torchio.RandomElasticDeformation(max_displacement=(10, 10, 0))
        calls["TorchIO RandomElasticDeformation"] = lambda: theirs(subject)
    return calls


def milliseconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    call()
    return (perf_counter() - start) * 1e3


def main() -> int:
    """Let them take turns, say each one's median and how many times faster ours is."""
    torch.set_num_threads(1)
    image = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    calls = contenders(image, (image > 0.5).to(torch.uint8))
    for call in calls.values():
        call()
    taken = np.array([[milliseconds(call) for call in calls.values()] for _ in range(TURNS)])
    ratios = np.median(taken / taken[:, :1], axis=0)
    for name, median, ratio in zip(calls, np.median(taken, axis=0), ratios, strict=True):
        sys.stdout.write(f"elastic: {SIZE} x {SIZE} with label, {name}: {median:.1f} ms, {ratio:.1f} x\n")
    if len(calls) < 3:
        sys.stdout.write("elastic: TorchIO is not installed, `make bench` installs it\n")
    return int(bool((ratios[1:] < LEAST).any()))


if __name__ == "__main__":
    sys.exit(main())
