"""What one case is like: intensities, amounts and parts of its classes, and the type that its file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
"""Of the intensities of a case; the outer two are those that nnU-Net clips CT to."""

SAMPLE = 100_000
"""Voxels of a case, drawn at random, from which its intensities are described; a smaller case is taken whole."""

SEARCHED = 2**26
"""Voxels among which foreground is looked for; of a larger volume every second, third, ... voxel."""

PILLOW_TYPES = {"1": "bool", "L": "uint8", "P": "uint8", "RGB": "uint8", "RGBA": "uint8", "I;16": "uint16"}
"""Pillow's name of a pixel type -> NumPy's."""


@dataclass(frozen=True)
class Intensities:
    """Intensities of one channel; `percentiles` are at `PERCENTILES`."""

    minimum: float
    maximum: float
    mean: float
    std: float
    percentiles: list[float]


@dataclass(frozen=True)
class CaseStatistics:
    """What one case is like.

    `size` is (H, W) of an image, (X, Y, Z) of a volume turned to RAS, `spacing_mm` likewise, None where it is unknown;
    `dtype` is that of the file, None where it is not known; `intensities` and those of the `foreground`, all classes
    but class 0, are one per channel; `foreground`, `voxels` and `parts` (connected, corners touch) are None without a
    label, `foreground` also where there is none. `voxels` and `parts` are by the name of the class.
    """

    id: str
    size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    dtype: str | None
    intensities: list[Intensities]
    foreground: list[Intensities] | None
    voxels: dict[str, int] | None
    parts: dict[str, int] | None

    def amount(self, name: str) -> float | None:
        """How much there is of a class: ml in a volume, mm2 in an image; None without a label or a spacing."""
        if self.voxels is None or self.spacing_mm is None:
            return None
        unit = 1000 if len(self.size) == 3 else 1  # cubic mm in a ml
        return self.voxels[name] * float(np.prod(self.spacing_mm)) / unit


def foreground(image: np.ndarray, label: np.ndarray, draw: np.random.Generator) -> np.ndarray | None:
    """Intensities (C, n) where the label is not class 0, n at most `SAMPLE`, in random order; None if it never is.

    Args:
        image: (C, ...).
        label: class indices, as large as a channel.
        draw: chooses the voxels.
    """
    step = -(-label.size // SEARCHED)
    places = np.flatnonzero(label.reshape(-1)[::step]) * step
    if not len(places):
        return None
    return _at(image, draw.choice(places, min(SAMPLE, len(places)), replace=False))


def sampled(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Intensities (C, n) of `SAMPLE` voxels, or of all where there are no more."""
    voxels = int(np.prod(image.shape[1:]))
    if voxels <= SAMPLE:
        return image.reshape(len(image), -1)
    return _at(image, draw.choice(voxels, SAMPLE, replace=False, shuffle=False))


def _at(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(C, n) of a (C, ...) array at flat places, without a copy of the array."""
    chosen: tuple[Any, ...] = np.unravel_index(places, image.shape[1:])
    return image[(slice(None), *chosen)]


def described(values: np.ndarray) -> Intensities:
    """Describe intensities (n,); with six digits, so that 0.1 of a float32 stays 0.1."""
    exact = values.astype(np.float64)
    points = np.percentile(exact, PERCENTILES)
    minimum, maximum, mean, std = (short(float(f(exact))) for f in (np.min, np.max, np.mean, np.std))
    return Intensities(minimum, maximum, mean, std, [short(point) for point in points])


def counts(label: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Voxels of every class."""
    return {name: int(np.count_nonzero(label == index)) for index, name in enumerate(classes)}


def parts(label: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Connected parts of every class but class 0, each looked for in the box around the class alone."""
    boxes = ndimage.find_objects(label, len(classes) - 1)
    touch = np.ones((3,) * label.ndim)
    return {
        name: 0 if box is None else int(ndimage.label(label[box] == index, touch)[1])
        for index, (name, box) in enumerate(zip(classes[1:], boxes, strict=True), start=1)
    }


def stored_dtype(path: Path, page: int) -> str | None:
    """The type in which a file holds its values, from its header; None where this does not read it."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        header: Any = nib.load(path).header
        return str(header.get_data_dtype().newbyteorder("="))
    if name.endswith((".tif", ".tiff")):
        with tifffile.TiffFile(path) as tiff:
            return str(tiff.pages[page].dtype)
    if name.endswith((".png", ".jpg", ".jpeg")):
        with Image.open(path) as image:
            return PILLOW_TYPES.get(image.mode, image.mode)
    return None


def short(value: float) -> float:
    """The number with six digits.

    Example:
        >>> short(0.10000000149)
        0.1
    """
    return float(f"{value:.6g}")
