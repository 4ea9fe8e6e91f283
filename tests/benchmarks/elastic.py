"""An elastic deformation with rotation and scale of an image and its label, beside MONAI's and TorchIO's.

One process, one thread. The transforms take turns, so that what else the machine does meets all of them. MONAI's
control points stand 32 px apart, since coarser grids cost it more; TorchIO's does not rotate.
"""

from collections.abc import Callable, Iterator

import torch
from monai.transforms import Rand2DElasticd

from pipeline.elastic import RandElasticAffined
from tests.benchmarks.harness import Row, Scale, in_turns, missing_peer

SIZE, TURNS, LEAST = 512, 30, 5.0
KEYS, MODES = ["image", "label"], ["bilinear", "nearest"]


def contenders(image: torch.Tensor, label: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Name -> one deformation of image and label, ours first."""
    item = {"image": image, "label": label}
    ours = RandElasticAffined(KEYS, mode=MODES, rotation=3.14, scale=0.1)
    monai = Rand2DElasticd(
        KEYS, spacing=32, magnitude_range=(0, 2), prob=1.0, rotate_range=3.14, scale_range=0.1, mode=MODES
    )
    calls = {"ours": lambda: ours(item), "MONAI": lambda: monai(item)}
    if not missing_peer("torchio"):
        import SimpleITK
        import torchio

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        subject = torchio.Subject(
            image=torchio.ScalarImage(tensor=image[..., None]), label=torchio.LabelMap(tensor=label[..., None])
        )
        theirs = torchio.RandomElasticDeformation(max_displacement=(10, 10, 0))
        calls["TorchIO"] = lambda: theirs(subject)
    return calls


def rows(scale: Scale) -> Iterator[Row]:
    """Milliseconds for an image with its label."""
    torch.set_num_threads(1)
    size, turns = (SIZE, TURNS) if scale == Scale.FULL else (64, 3)
    image = torch.rand(1, size, size, generator=torch.Generator().manual_seed(0))
    calls = contenders(image, (image > 0.5).to(torch.uint8))
    taken = {name: [1e3 * each for each in seconds] for name, seconds in in_turns(calls, turns).items()}
    work = f"elastic augmentation of an image with label, {size} x {size}, one thread"
    ours = taken.pop("ours")
    absent = {} if "TorchIO" in taken else {"TorchIO": missing_peer("torchio")}
    yield Row(work, "ms", ours, taken | absent, aim=dict.fromkeys((*taken, *absent), LEAST))
