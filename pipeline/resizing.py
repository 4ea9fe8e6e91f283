"""Networks that see a smaller image than the one that was given, and answer at the size that was given."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch.nn import functional

from pipeline.errors import InputError


def size_within(shape: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """Pixels per axis when the longest side becomes `longest` and the aspect stays; at least 1.

    Example:
        >>> size_within((4020, 4892), 256)
        (210, 256)
    """
    scale = longest / max(shape)
    return tuple(max(1, round(side * scale)) for side in shape)


def resize(images: torch.Tensor, size: tuple[int, ...], mode: str = "bilinear") -> torch.Tensor:
    """Resample images, corners not aligned; a bilinear one is smoothed first where it shrinks.

    Args:
        images: (N, C, H, W).
        size: pixels per axis of the result.
        mode: `bilinear`, or `nearest` (pixel centres, so that nothing is shifted) for labels.

    Raises:
        InputError: the images are not 2D.
    """
    if images.ndim != 4:
        raise InputError("`size` is for 2D images: set it to null")
    if tuple(images.shape[2:]) == size:
        return images
    if mode == "nearest":
        return functional.interpolate(images, size, mode="nearest-exact")
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class LongestSided(MapTransform):
    """Resize images so that their longest side has a given length; the aspect stays.

    Args:
        keys: of (C, H, W) tensors.
        size: px of the longest side; None leaves them as they are.
        mode: `bilinear` or `nearest`, one for all keys or one for each.
    """

    def __init__(self, keys: KeysCollection, size: int | None, mode: str | list[str] = "bilinear") -> None:
        super().__init__(keys)
        self.size = size
        self.modes = [mode] * len(self.keys) if isinstance(mode, str) else list(mode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the images resized."""
        item = dict(data)
        if self.size is not None:
            for key, mode in zip(self.keys, self.modes, strict=True):
                image = torch.as_tensor(item[key])
                size = size_within(tuple(image.shape[1:]), self.size)
                item[key] = resize(image[None].float(), size, mode)[0].to(image.dtype)
        return item


class LongestSideInferer(Inferer):
    """Hand another inferer the image with its longest side at `size`, and bring its answer back to the image's size.

    The image is resized as `LongestSided` does for training, so the network is used as it was trained.

    Args:
        inferer: which predicts the resized image.
        size: px of the longest side; None hands the image on as it is.
    """

    def __init__(self, inferer: Inferer, size: int | None) -> None:
        super().__init__()
        self.inferer = inferer
        self.size = size

    @property
    def unchanged(self) -> Inferer | None:
        """The other inferer, where it gets the image as it is."""
        return self.inferer if self.size is None else None

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Predict (N, C, H, W) -> (N, classes, H, W), the answer of the resized image interpolated back."""
        if self.size is None:
            return torch.as_tensor(self.inferer(inputs, network, *args, **kwargs))
        size = tuple(inputs.shape[2:])
        small = resize(inputs, size_within(size, self.size))
        return resize(torch.as_tensor(self.inferer(small, network, *args, **kwargs)), size)
