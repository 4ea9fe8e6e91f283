"""Intensities to a common range: between two values of a modality, or between two percentiles of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

SAMPLED = 10_000_000
"""Voxels of a channel that percentiles are taken of; of a larger one every n-th, so that no copy of it is sorted."""


class Scaled(MapTransform):
    """Clip each channel to a range and bring the range to -1 .. 1; in place, so that a volume is never there twice.

    The range is `window`, the same for every image (CT, whose Hounsfield units mean something); else the
    `percentiles` of the channel itself (MR, whose values mean nothing across scanners); else the tensor is left as it
    is. A channel of one value becomes 0.

    Args:
        keys: of tensors (C, H, W) or (C, X, Y, Z), float.
        percentiles: lower and upper, 0 to 100, say [0.5, 99.5].
        window: lower and upper value; has precedence.

    Raises:
        ValueError: a range is no two rising numbers.

    Example:
        >>> Scaled("image", window=[0, 200])({"image": torch.tensor([[[-5.0, 50.0, 300.0]]])})["image"].tolist()
        [[[-1.0, -0.5, 1.0]]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        percentiles: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.percentiles = _rising("percentiles", percentiles)
        self.window = _rising("window", window)
        if self.percentiles and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError(f"`percentiles` are from 0 to 100, got {percentiles}")

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The item with its tensors scaled."""
        item = dict(data)
        if self.window or self.percentiles:
            for key in self.keys:
                for channel in torch.as_tensor(item[key]).detach().numpy():
                    low, high = self.window or percentiles_of(channel, self.percentiles or (0, 100))
                    _scale(channel, low, high)
        return item


def percentiles_of(values: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """Two percentiles of an array, linearly interpolated; of at most `SAMPLED` values, evenly spread over it."""
    flat = values.reshape(-1)
    low, high = np.percentile(flat[:: -(-flat.size // SAMPLED)], percentiles)
    return float(low), float(high)


def _scale(channel: np.ndarray, low: float, high: float) -> None:
    """Row by row, or slice by slice: what is written to at once stays small."""
    for part in channel:
        np.clip(part, low, high, out=part)
        np.subtract(part, (low + high) / 2, out=part)
        np.multiply(part, 2 / (high - low) if high > low else 0, out=part)


def _rising(name: str, ends: Sequence[float] | None) -> tuple[float, float] | None:
    if ends is None:
        return None
    if isinstance(ends, str) or len(ends) != 2 or not float(ends[0]) < float(ends[1]):
        raise ValueError(f"`{name}` must be two rising numbers, lower and upper, or null; got {ends!r}")
    return float(ends[0]), float(ends[1])
