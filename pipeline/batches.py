"""An engine's batch taken apart into cases, and its labels as class indices."""

from __future__ import annotations

from typing import Any

import numpy as np
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing


def cases_of(engine: Engine) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """An engine's batch taken apart into cases: the item with its `id` and `patient`, and the output for it."""
    items: Any = engine.state.batch
    outputs: Any = engine.state.output
    return list(zip(items, outputs, strict=True))


def classes(label: np.ndarray) -> np.ndarray:
    """(1, H, W) class indices or (classes, H, W) one-hot -> (H, W) class indices; volumes have three axes."""
    return label[0].astype(np.uint8) if label.shape[0] == 1 else label.argmax(0).astype(np.uint8)


def volume_spacing_mm(volume: Any) -> tuple[float, ...] | None:
    """Between the voxels of a volume along X, Y and Z, from its affine; None for images, and for plain tensors.

    Args:
        volume: (C, X, Y, Z); an image is (C, H, W), and its affine says nothing.
    """
    if not isinstance(volume, MetaTensor) or volume.ndim != 4:
        return None
    return tuple(round(float(mm), 6) for mm in affine_to_spacing(volume.affine))
