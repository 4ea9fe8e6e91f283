"""A synthetic case that goes with a release, its network's answer, and whether a device gives the same answer."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from monai.utils import CommonKeys
from scipy.ndimage import gaussian_filter

from pipeline.bundle import components, settings
from pipeline.errors import InputError
from pipeline.release_files import REFERENCE, REFERENCE_ABOUT, REFERENCE_EXPECTED, STATE
from pipeline.volumes import write_volume

SHAPES = {2: (96, 80), 3: (40, 48, 32)}
"""Pixels of the case: small, of whole patches for networks of up to five levels, no two sides alike, so that swapped
axes are noticed."""

IMAGES = {2: f"{REFERENCE}/image.tif", 3: f"{REFERENCE}/image.nii.gz"}
"""The file of the image, by the dimensions of the network."""

AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])
"""Of the volume, 1 mm per voxel: stored from right to left, so that a reader that forgets orientation is noticed."""

SEED, BRIGHTEST = 20150518, 255
"""Of the image; its values are whole numbers from 0."""

TOLERANCES = {"cpu": 1e-3, "cuda": 3e-2}
"""Largest difference of a probability, by kind of device."""

WHY = {
    "cpu": "float32, summed in another order by another processor or library: up to 6e-6 seen over our networks",
    "cuda": "a GPU's convolutions round to TensorFloat-32, 10 bits of mantissa: up to 1e-2 when emulated on a CPU",
}
"""Where the tolerances come from."""

MEMORY_GB = 2.0
"""For one tile, whatever is free: where tiling is approximate, its tiles must be the same everywhere."""

PROBABILITIES, LABELS = "probabilities", "labels"
"""The arrays of the expected answer: (classes, ...) float32, or (1, ...) with one output; (...) uint8."""


class Reproduction(NamedTuple):
    """How closely a device reproduces the expected answer."""

    largest_difference: float
    """Of a probability; infinite where the answer has another shape or is not finite."""
    tolerance: float
    passed: bool
    """Also the classes are the expected ones, wherever the probabilities leave no doubt."""


def write(folder: Path) -> None:
    """Write the case, the answer of the release's network on the CPU, and what is known of both.

    Args:
        folder: of a release, with its configs and weights.
    """
    deployed = settings(folder, "predicting")
    dims, channels = int(deployed["spatial_dims"]), int(deployed["in_channels"])
    picture = image(channels, dims)
    path = folder / IMAGES[dims]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture if channels > 1 else picture[0]
    if dims == 2:
        planar = "separate" if channels > 1 else None
        tifffile.imwrite(path, picture, photometric="minisblack", planarconfig=planar, metadata=None)
    else:
        write_volume(picture, AFFINE, path)
    likely, labels = _answer(folder, path, "cpu")
    np.savez_compressed(folder / REFERENCE_EXPECTED, probabilities=likely, labels=labels)
    about = {
        "image": IMAGES[dims],
        "expected": REFERENCE_EXPECTED,
        "what": "smooth blobs and noise, drawn from a seed; no image of anybody",
        "seed": SEED,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "tolerance": TOLERANCES,
        "why": WHY,
        "classes": "may differ where two classes are within twice the tolerance",
    }
    (folder / REFERENCE_ABOUT).write_text(json.dumps(about, indent=4) + "\n")


def reproduce(folder: Path, device: str = "cpu") -> Reproduction:
    """Run a release's reference case on a device and compare the answer with the expected one.

    It evaluates the configs: check them first (`pipeline.verify` does).

    Args:
        folder: of a release.
        device: `cpu`, `cuda` or `cuda:1`.

    Raises:
        InputError: the release has no reference case, or a broken one.
    """
    about, expected = _expected(folder)
    tolerance = float(about["tolerance"][device.partition(":")[0]])
    likely, labels = _answer(folder, folder / about["image"], device)
    if likely.shape != expected[PROBABILITIES].shape:
        return Reproduction(float("inf"), tolerance, passed=False)
    difference = float(np.abs(likely - expected[PROBABILITIES]).max())
    difference = difference if np.isfinite(difference) else float("inf")
    settled = _lead(expected[PROBABILITIES]) > 2 * tolerance
    same = bool((labels == expected[LABELS])[settled].all())
    return Reproduction(difference, tolerance, passed=difference <= tolerance and same)


def image(channels: int, dims: int) -> np.ndarray:
    """Blobs of two sizes and noise, another picture in each channel: (C, H, W) or (C, X, Y, Z) uint8."""
    rng = np.random.default_rng(SEED)
    fields = [
        sum(_unit(gaussian_filter(rng.normal(size=SHAPES[dims]), sigma)) * share for sigma, share in ((6, 1), (2, 0.6)))
        + 0.15 * rng.normal(size=SHAPES[dims])
        for _ in range(channels)
    ]
    scaled = [(field - field.min()) / np.ptp(field) * BRIGHTEST for field in fields]
    return np.stack(scaled).round().astype(np.uint8)


def _unit(field: np.ndarray) -> np.ndarray:
    return field / field.std()


def _expected(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    try:
        about = json.loads((folder / REFERENCE_ABOUT).read_text())
        with np.load(folder / REFERENCE_EXPECTED, allow_pickle=False) as arrays:
            return about, {name: arrays[name] for name in (PROBABILITIES, LABELS)}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: missing; a release has a reference case") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / REFERENCE}: the reference case cannot be read: {error}") from None


@torch.no_grad()
def _answer(folder: Path, path: Path, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (classes, ...) float32 and class indices (...) uint8 of the case's image."""
    known = settings(folder, "predicting")
    wanted = {"device": device, "memory_gb": MEMORY_GB, "checkpoint": str(folder / STATE)}
    overrides = {key: value for key, value in wanted.items() if key in known}
    keys = ("network", "preprocessing", "inferer", "activation", "discretisation")
    network, preprocessing, inferer, activation, discretisation = components(folder, "predicting", overrides, keys)
    batch = preprocessing({CommonKeys.IMAGE: str(path)})[CommonKeys.IMAGE][None].to(device)
    logits = torch.Tensor(inferer(batch, network.to(device).eval()))[0].float()
    likely = torch.as_tensor(activation({CommonKeys.PRED: logits})[CommonKeys.PRED])
    labels = torch.as_tensor(discretisation({CommonKeys.PRED: likely})[CommonKeys.PRED])
    return likely.cpu().numpy().astype(np.float32), labels.cpu().numpy()[0].astype(np.uint8)


def _lead(likely: np.ndarray) -> np.ndarray:
    """By how much the likeliest class leads over the next one, at every pixel."""
    if len(likely) == 1:
        return np.asarray(2 * np.abs(likely[0] - 0.5))
    ranked = np.sort(likely, axis=0)
    return np.asarray(ranked[-1] - ranked[-2])
