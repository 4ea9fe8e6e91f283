"""Networks that see volumes at one voxel size, whatever the scanner's, and answer on the scanner's grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.orientation import spacing_mm as sides_mm


def size_at(shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis when a volume is resampled to another voxel size; at least 1.

    Args:
        shape: voxels along X, Y and Z.
        affine: (4, 4) of the volume.
        spacing_mm: wanted, along X, Y and Z.

    Example:
        >>> size_at((100, 100, 20), np.diag([1.0, 1.0, 5.0, 1.0]), (2, 2, 2))
        (50, 50, 50)
    """
    sides = sides_mm(affine)
    return tuple(max(1, round(n * side / mm)) for n, side, mm in zip(shape, sides, spacing_mm, strict=True))


def resample(volumes: torch.Tensor, size: Sequence[int], mode: str = "bilinear") -> torch.Tensor:
    """Resample volumes to as many voxels; what they cover stays the same, corners are not aligned.

    Args:
        volumes: (N, C, X, Y, Z).
        size: voxels per axis of the result.
        mode: `bilinear` (trilinear, smoothed first along axes that shrink), or `nearest` for labels.
    """
    if tuple(volumes.shape[2:]) == tuple(size):
        return volumes
    if mode == "nearest":
        return functional.interpolate(volumes, tuple(size), mode="nearest-exact")
    n, c, x, _, _ = volumes.shape
    # torch smooths images only: first every (Y, Z) plane, then X as the row of images of one column per line
    planes = _smooth(volumes.flatten(0, 2)[:, None], size[1:])
    lines = planes.reshape(n * c, 1, x, size[1] * size[2])
    return _smooth(lines, (size[0], size[1] * size[2])).reshape(n, c, *size)


class ToSpacingd(MapTransform):
    """Resample volumes to a voxel size, as `SpacingInferer` does before it asks the network.

    Args:
        keys: of MetaTensors (C, X, Y, Z), all on one grid.
        spacing_mm: along X, Y and Z; None leaves them as they are.
        mode: `bilinear` or `nearest`, one for all keys or one for each.
    """

    def __init__(
        self, keys: KeysCollection, spacing_mm: Sequence[float] | None, mode: str | Sequence[str] = "bilinear"
    ) -> None:
        super().__init__(keys)
        self.spacing_mm = spacing_mm
        self.modes = [mode] * len(self.keys) if isinstance(mode, str) else list(mode)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The item with its volumes resampled, their affines with them."""
        item = dict(data)
        if self.spacing_mm is not None:
            for key, mode in zip(self.keys, self.modes, strict=True):
                item[key] = _one(item[key], self.spacing_mm, mode)
        return item


class SpacingInferer(Inferer):
    """Hand another inferer the volume at a voxel size, and bring its answer back to the volume's own grid.

    Args:
        inferer: which predicts the resampled volume.
        spacing_mm: along X, Y and Z; None hands the volume on as it is.
    """

    def __init__(self, inferer: Inferer, spacing_mm: Sequence[float] | None) -> None:
        super().__init__()
        self.inferer = inferer
        self.spacing_mm = spacing_mm

    @property
    def unchanged(self) -> Inferer | None:
        """The other inferer, where it gets the volume as it is."""
        return self.inferer if self.spacing_mm is None else None

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict (N, C, X, Y, Z) -> (N, classes, X, Y, Z), the answer interpolated back."""
        if self.spacing_mm is None:
            return torch.as_tensor(self.inferer(inputs, network, *args, **kwargs))
        volumes = torch.as_tensor(inputs)
        affine = _affine(inputs)
        size = size_at(tuple(inputs.shape[2:]), affine, self.spacing_mm)
        answer = self.inferer(resample(_plain(volumes), size), network, *args, **kwargs)
        return resample(_plain(torch.as_tensor(answer)), tuple(inputs.shape[2:]))


def _one(volume: torch.Tensor, spacing_mm: Sequence[float], mode: str) -> MetaTensor:
    affine, shape = _affine(volume), tuple(volume.shape[1:])
    size = size_at(shape, affine, spacing_mm)
    resampled = resample(_plain(volume)[None].float(), size, mode)[0].to(volume.dtype)
    step = np.array(shape) / np.array(size)  # of an old voxel; the outer faces stay, so the first centre moves
    moved = affine @ np.block([[np.diag(step), (step[:, None] - 1) / 2], [np.zeros((1, 3)), np.ones((1, 1))]])
    return MetaTensor(resampled, affine=torch.as_tensor(moved))


def _affine(volume: torch.Tensor) -> np.ndarray:
    """Of a volume, or of the first of a batch."""
    if not isinstance(volume, MetaTensor) or volume.affine.shape[-1] != 4 or volume.ndim < 4:
        raise InputError("`spacing_mm` is for volumes that know their voxel size: set it to null")
    affine: np.ndarray = volume.affine.reshape(-1, 4, 4)[0].cpu().numpy()
    return affine


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _smooth(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return functional.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=True)
