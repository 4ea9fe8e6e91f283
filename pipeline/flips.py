"""Test-time flips: the mean answer to an image and its mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from pipeline.errors import InputError
from pipeline.scratch import scratch


class FlipInferer(Inferer):
    """Hand another inferer the image and its mirror images along the spatial axes, and take the mean of the answers.

    The mean is of what the network answers, that is of logits, as in nnU-Net (doi 10.1038/s41592-020-01008-z): the
    postprocessing then makes probabilities of them, as without flips. (The mean of logits is the geometric mean of the
    probabilities, normalised.) One is predicted after the other, along all axes 4 times the work in 2D and 8 times in
    3D; beside the answer, memory holds one flipped image and its answer, those of large volumes in temporary files.

    Give the axes along which the network was trained with flips: others show it what it has never seen, and where left
    and right are different classes, a mirrored image has them the wrong way round.

    Args:
        inferer: which predicts each of them.
        flips: False hands the image on as it is.
        axes: spatial axes to flip along, from 0; None: all.
    """

    def __init__(self, inferer: Inferer, flips: bool, axes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.inferer = inferer
        self.flips = flips
        self.axes = axes

    @property
    def unchanged(self) -> Inferer | None:
        """The other inferer, where it gets the image as it is."""
        return None if self.flips else self.inferer

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict (N, C, *spatial) -> (N, classes, *spatial)."""
        if not self.flips:
            return torch.as_tensor(self.inferer(inputs, network, *args, **kwargs))
        total: torch.Tensor | None = None
        every = mirrorings(range(inputs.ndim - 2) if self.axes is None else _checked(self.axes, inputs.ndim - 2))
        for axes in every:
            answer = torch.as_tensor(self.inferer(_flipped(inputs, axes), network, *args, **kwargs))
            total = _zeros_like(answer) if total is None else total
            _add_flipped(total, answer, axes)
            del answer  # before the next one is made
        assert total is not None
        return total.div_(len(every))


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Of axes, those along which each mirror image is flipped; first none.

    Example:
        >>> mirrorings([0, 2])
        [(), (0,), (2,), (0, 2)]
    """
    return list(chain.from_iterable(combinations(axes, number) for number in range(len(axes) + 1)))


def _checked(axes: Sequence[int], dimensions: int) -> Sequence[int]:
    if len(set(axes)) < len(axes) or not set(axes) <= set(range(dimensions)):
        raise InputError(f"`axes` to flip along must be different ones of {list(range(dimensions))}, got {list(axes)}")
    return axes


def _flipped(inputs: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    if not axes:
        return inputs
    mirrored = _zeros_like(inputs)
    _add_flipped(mirrored, inputs, axes)
    if isinstance(inputs, MetaTensor):
        return MetaTensor(mirrored, meta=inputs.meta)  # an inferer may ask for the size of the voxels
    return mirrored


def _zeros_like(values: torch.Tensor) -> torch.Tensor:
    """Zeros in float32, on the same device; beyond a size in a file (`pipeline.scratch`)."""
    if values.device.type == "cpu":
        return torch.from_numpy(scratch(values.shape, np.float32))
    return torch.zeros(tuple(values.shape), device=values.device)


def _add_flipped(total: torch.Tensor, values: torch.Tensor, axes: Sequence[int]) -> None:
    """Add values, flipped along spatial axes, plane by plane: torch copies what it flips."""
    values = values.as_subclass(torch.Tensor)
    size = values.shape[2]
    others = [axis + 1 for axis in axes if axis > 0]  # of a plane, which lacks the first spatial axis
    for index in range(size):
        plane = values[:, :, size - 1 - index if 0 in axes else index]
        total[:, :, index] += plane.flip(others)
