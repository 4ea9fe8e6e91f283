"""The weight map of the U-Net paper: rare classes and the seams between neighbouring cells count more."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.measure import label as connected_components

from pipeline.errors import DataError
from pipeline.instances import touching
from pipeline.labels import to_class_indices
from pipeline.manifest import folder_of, read, require_partitions
from pipeline.pictures import read_page

NEGLIGIBLE = 1e-7
"""Share of `w0` below which a border term may be left at 0: beside a class weight of 1, float32 hardly shows it."""


def border_weights(
    instances: np.ndarray, *, w0: float = 10.0, sigma: float = 5.0, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """The border term of the U-Net's weight map, w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    From equation 2 of Ronneberger, Fischer and Brox (arXiv 1505.04597); d1 and d2 are a background pixel's
    distances to the nearest and to the second nearest cell, each from the pixel's centre to the centre of the
    cell's nearest pixel, so a pixel beside a cell is 1 from it. The term is 0 inside cells, hence also along two
    cells that touch without background between them, and 0 everywhere with fewer than two cells.
    It differs from the formula by less than `NEGLIGIBLE` times w0, which is where the search for cells ends.

    Args:
        instances: (H, W) or (X, Y, Z) integers: the cell that a pixel belongs to, 0 for the background.
        w0: the term between two cells that nearly touch.
        sigma: width of the seam, in pixels, or in the unit of `spacing`.
        spacing: distance between pixels along each axis; None for 1.

    Returns:
        The term of every pixel, float32, the shape of `instances`.

    Raises:
        ValueError: `instances` holds fractions or negative numbers, or an argument is out of range.

    Example:
        >>> border_weights(np.array([[1, 0, 2]])).round(2)
        array([[0.  , 9.23, 0.  ]], dtype=float32)
    """
    _check(instances, w0, sigma, spacing)
    steps = np.ones(instances.ndim) if spacing is None else np.asarray(spacing, float)
    reach = np.ceil(sigma * math.sqrt(-2 * math.log(NEGLIGIBLE)) / steps).astype(int)
    nearest, second = _two_nearest(_renumbered(instances), reach, steps)
    return np.where(instances == 0, w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)), 0).astype(np.float32)


def instances_of(label: np.ndarray, *, cells: int) -> np.ndarray:
    """Number the cells of a class map: its connected components of one class.

    Pixels are connected through edges (4 neighbours, in 3D 6 through faces), not through corners, so that a
    seam of one pixel separates two cells even where it runs diagonally.

    Args:
        label: (H, W) or (X, Y, Z) class indices.
        cells: class index of the cells; every other class is background between them.

    Returns:
        Integers 1, 2, ... in the cells and 0 elsewhere, the shape of `label`.
    """
    return np.asarray(connected_components(label == cells, connectivity=1))


def class_weights(counts: Sequence[int]) -> list[float]:
    """Weights w_c = N / (C n_c) of C classes with n_c of all N pixels: rarer counts more, the mean over pixels is 1.

    Args:
        counts: pixels of every class, class 0 first.

    Raises:
        ValueError: a class has no pixel.

    Example:
        >>> class_weights([75, 25])
        [0.6666666666666666, 2.0]
    """
    for index, count in enumerate(counts):
        if count <= 0:
            raise ValueError(f"class {index} has no pixel, so no inverse frequency: give the class weights by hand")
    return [sum(counts) / (len(counts) * count) for count in counts]


def training_class_weights(manifest_path: str | Path, root: str | Path | None = None) -> list[float]:
    """`class_weights` of the labels of a manifest's training partition; no other partition is opened.

    Args:
        manifest_path: the manifest, which declares classes and raw label values.
        root: folder that its paths are relative to; None is the manifest's own folder.

    Returns:
        One weight per class, class 0 first.

    Raises:
        DataError: a class never occurs, a label is missing or holds an undeclared value.
        InputError: the manifest or a label cannot be read.
    """
    manifest = read(manifest_path)
    require_partitions(manifest, manifest_path)
    folder = Path(root) if root else folder_of(manifest_path)
    counts = np.zeros(len(manifest.labels), np.int64)
    for case in manifest.training:
        if case.label is None:
            raise DataError(f"{manifest_path}: {case.id} in training has no label")
        indices = to_class_indices(read_page(folder / case.label, case.page), manifest.label_values, case.id)
        counts += np.bincount(indices.ravel(), minlength=len(counts))
    try:
        return class_weights(counts.tolist())
    except ValueError as error:
        raise DataError(f"{manifest_path}: in the training partition {error}") from None


class BorderWeightd(MapTransform):
    """Write the weight map w_c + border term (`border_weights`) of a label under a new key.

    It draws no random number, so a MONAI CacheDataset computes it once per case. Put it before the augmentation
    and name its key in the spatial transforms, so that it is warped with the image.

    Args:
        keys: of the label, (1, H, W) or (1, X, Y, Z) class indices.
        class_weights: w_c, class 0 first; see `training_class_weights`.
        cells: class index whose connected components are the cells; None where `instances` is given.
        instances: key of an instance map, shaped as the label, 0 = background; None where `cells` is given.
        w0: as for `border_weights`.
        sigma: as for `border_weights`.
        spacing: as for `border_weights`.
        weight: key to write, float32 of the label's shape, type and affine.

    Raises:
        ValueError: not one key, not one of `cells` and `instances`, or a label has a class without a weight.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable] = "label",
        *,
        class_weights: Sequence[float],
        cells: int | None = None,
        instances: str | None = None,
        w0: float = 10.0,
        sigma: float = 5.0,
        spacing: Sequence[float] | None = None,
        weight: str = "weight",
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"`keys` must name one label, got {self.keys}")
        if (cells is None) == (instances is None):
            raise ValueError("give `cells`, the class index of the cells, or `instances`, the key of an instance map")
        self.class_weights = np.asarray(class_weights, np.float32)
        self.cells, self.instances, self.weight = cells, instances, weight
        self.w0, self.sigma, self.spacing = w0, sigma, spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the weight map added."""
        label = data[self.keys[0]]
        indices = _array(label)[0].astype(int)
        if indices.max() >= len(self.class_weights) or indices.min() < 0:
            span = f"{indices.min()} to {indices.max()}"
            raise ValueError(f"{len(self.class_weights)} class weights for a label with the classes {span}")
        border = border_weights(self._instances(data, indices), w0=self.w0, sigma=self.sigma, spacing=self.spacing)
        weight = (self.class_weights[indices] + border)[None]  # (1, H, W)
        return {**data, self.weight: convert_to_dst_type(weight, label, dtype=torch.float32)[0]}

    def _instances(self, data: Mapping[Hashable, Any], indices: np.ndarray) -> np.ndarray:
        if self.cells is not None:
            return instances_of(indices, cells=self.cells)
        instances = _array(data[self.instances])[0]
        if instances.shape != indices.shape:
            raise ValueError(f"`{self.instances}` is {instances.shape}, `{self.keys[0]}` is {indices.shape}")
        return instances


class TouchingInstancesd(MapTransform):
    """Set pixels where instances touch (`touching`) to background, so that a seam separates the instances.

    Without a seam a class map cannot tell two touching nuclei apart, and `border_weights`, which is 0 inside instances,
    has no pixel between them to weigh. Put it before `BorderWeightd`, for the instances too, so that both see the seam.
    It is for training: the references of an evaluation stay whole.

    Args:
        keys: maps to cut, (1, H, W) or (1, X, Y, Z): class indices whose class 0 is the background, or instances.
        instances: key of the instance map, of the same shape.

    Raises:
        ValueError: a map has another shape than the instances.
    """

    def __init__(
        self, keys: Hashable | Sequence[Hashable] = ("label", "instances"), *, instances: str = "instances"
    ) -> None:
        super().__init__(keys)
        self.instances = instances

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the seam cut out of its maps; the maps given are left as they are."""
        seam = touching(_array(data[self.instances])[0])[None]  # (1, H, W)
        item = dict(data)
        for key in self.keys:
            values = _array(data[key])
            if values.shape != seam.shape:
                raise ValueError(f"`{key}` is {values.shape}, `{self.instances}` is {seam.shape}")
            item[key] = convert_to_dst_type(np.where(seam, 0, values), data[key], dtype=data[key].dtype)[0]
        return item


def _check(instances: np.ndarray, w0: float, sigma: float, spacing: Sequence[float] | None) -> None:
    least = instances.min(initial=0)
    if least < 0 or not np.issubdtype(instances.dtype, np.integer):
        raise ValueError(f"`instances` must be whole numbers from 0, got {instances.dtype} from {least:g} on")
    if w0 < 0 or not sigma > 0:
        raise ValueError(f"`w0` must be at least 0 and `sigma` above 0, got {w0} and {sigma}")
    if spacing is not None and (len(spacing) != instances.ndim or min(spacing) <= 0):
        raise ValueError(f"`spacing` must be {instances.ndim} numbers above 0, got {list(spacing)}")


def _renumbered(instances: np.ndarray) -> np.ndarray:
    """The same cells as 1, 2, ..., the background stays 0: identities may be large, tables of them are not."""
    names, numbers = np.unique(instances, return_inverse=True)
    return numbers.reshape(instances.shape).astype(np.int32) + (1 if names.size and names[0] > 0 else 0)


def _two_nearest(cells: np.ndarray, reach: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and second nearest cell, exact up to `reach` pixels per axis, beyond it at least that.

    Every cell is looked at within its own surroundings alone; infinity where no cell was found.
    """
    nearest, second = np.full((2, *cells.shape), np.inf, np.float32)
    for number, box in enumerate(find_objects(cells), start=1):
        around = tuple(slice(max(0, side.start - r), side.stop + r) for side, r in zip(box, reach, strict=True))
        distance = distance_transform_edt(cells[around] != number, sampling=steps)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    return nearest, second


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
