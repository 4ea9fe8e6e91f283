"""An elastic deformation with rotation and scale of an image and its label, beside MONAI, TorchIO, batchgeneratorsv2.

One process, one thread. Each with its own way to a displacement, and of what it samples the same: the image linearly,
the label by its nearest pixel. TorchIO's does not rotate, and its default is one that 2D images do not bend along.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from monai.transforms import Rand2DElasticd, Rand3DElasticd
from scipy.ndimage import map_coordinates

from pipeline.elastic import RandElasticAffined, coordinates, resample
from tests.benchmarks.harness import Row, Scale, in_turns, missing_peer

SIZES = {Scale.FULL: ((512, 512), (96, 96, 96)), Scale.QUICK: ((64, 64), (24, 24, 24))}
TURNS = {Scale.FULL: {2: 30, 3: 9}, Scale.QUICK: {2: 3, 3: 1}}
LEAST = 5.0

KEYS, MODES = ["image", "label"], ["bilinear", "nearest"]
TURN, GROW = 3.14, 0.1
"""Radians and share: the largest rotation and change of size of all who can."""

TOLERANCE, TIES = 1e-3, 1e-3
"""Largest difference of an image in 0..1 to scipy's, float32 coordinates of up to 512 px; and the share of labels that
lie half-way between two pixels, where either is right."""

BATCHGENERATORS = "batchgeneratorsv2.transforms.spatial.spatial"


def rows(scale: Scale) -> Iterator[Row]:
    """Milliseconds for an image with its label, in 2D and 3D."""
    torch.set_num_threads(1)
    for size in SIZES[scale]:
        yield _row(size, TURNS[scale][len(size)])


def _row(size: tuple[int, ...], turns: int) -> Row:
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    label = (image > 0.5).to(torch.uint8)
    calls, absent = contenders(image, label)
    taken = {name: [1e3 * each for each in seconds] for name, seconds in in_turns(calls, turns).items()}
    ours = taken.pop("ours")
    work = f"elastic augmentation of an image with label, {' x '.join(map(str, size))}, one thread"
    aim = dict.fromkeys((*taken, *absent), LEAST)
    return Row(work, "ms", ours, taken | absent, aim=aim, same=equality(image, label))


def contenders(image: torch.Tensor, label: torch.Tensor) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Name -> one deformation of image and label, ours first; and why the others cannot."""
    item = {"image": image, "label": label}
    ours, monai = _ours(), _monai(image.ndim - 1)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: ours(item), "MONAI": lambda: monai(item)}
    absent = {"TorchIO": missing_peer("torchio"), "batchgeneratorsv2": missing_peer(BATCHGENERATORS)}
    if not absent["TorchIO"]:
        calls["TorchIO"] = _torchio(image, label)
    if not absent["batchgeneratorsv2"]:
        calls["batchgeneratorsv2"] = _batchgenerators(image, label)
    return calls, {name: why for name, why in absent.items() if why}


def _ours() -> RandElasticAffined:
    return RandElasticAffined(KEYS, mode=MODES, rotation=TURN, scale=GROW)


def _monai(dims: int) -> Any:
    """Control points 32 px apart in 2D, since coarser grids cost it more; in 3D it smooths an offset for each voxel."""
    how = {"prob": 1.0, "mode": MODES, "rotate_range": (TURN,) * (1 if dims == 2 else 3), "scale_range": (GROW,) * dims}
    if dims == 2:
        return Rand2DElasticd(KEYS, spacing=32, magnitude_range=(0, 2), **how)
    return Rand3DElasticd(KEYS, sigma_range=(5, 8), magnitude_range=(50, 150), **how)


def _torchio(image: torch.Tensor, label: torch.Tensor) -> Callable[[], object]:
    import SimpleITK
    import torchio

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    flat = image.ndim == 3
    volumes = [each[..., None] if flat else each for each in (image, label)]
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=volumes[0]), label=torchio.LabelMap(tensor=volumes[1]))
    transform = torchio.RandomElasticDeformation(max_displacement=(10, 10, 0) if flat else 4)
    return lambda: transform(subject)


def _batchgenerators(image: torch.Tensor, label: torch.Tensor) -> Callable[[], object]:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    transform = SpatialTransform(
        image.shape[1:],
        0,
        random_crop=False,
        p_elastic_deform=1,
        p_rotation=1,
        rotation=(-TURN, TURN),
        p_scaling=1,
        scaling=(1 - GROW, 1 + GROW),
        mode_seg="nearest",
    )
    return lambda: transform(image=image, segmentation=label)


def equality(image: torch.Tensor, label: torch.Tensor) -> str:
    """That of our resampling with scipy's at the same coordinates.

    Raises:
        ValueError: they differ by more than the tolerance.
    """
    transform = _ours().set_random_state(0)
    transform.randomize(tuple(image.shape[1:]))
    warped, labelled = resample([image, label], MODES, transform.warp)
    places = coordinates(transform.warp).movedim(-1, 0).double().numpy()
    theirs = map_coordinates(image[0].double().numpy(), places, order=1, mode="mirror")
    nearest = map_coordinates(label[0].numpy(), places, order=0, mode="mirror")
    worst = float(np.abs(warped[0].numpy() - theirs).max())
    ties = float((labelled[0].numpy() != nearest).mean())
    if worst > TOLERANCE or ties > TIES:
        raise ValueError(f"our resampling is off scipy's by {worst:.1e} in the image and {ties:.1e} of the label")
    return (
        f"at the same displacement scipy's map_coordinates gives the same image to {worst:.0e} (tolerance {TOLERANCE}) "
        f"and the same label but for {ties:.1%} of its pixels (tolerance {TIES:.1%})"
    )
