"""Random elastic deformation, fused with crop, rotation, scale, flip and shift into one resampling.

The deformation is that of the U-Net paper (arXiv 1505.04597, section 3.1): Gaussian displacement vectors on a coarse
control grid of 3 points per axis (corners, edge middles, centre), interpolated to every pixel by Keys' cubic
convolution (doi 10.1109/TASSP.1981.1163711). Coordinates are in px, in the order of the array's axes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch.nn import functional

from pipeline.sampling import mirrored, sample

MODES = ("bilinear", "nearest")
POINTS = 3
"""Control points per axis, the paper's."""
SIGMA_PX = 10.0
"""Standard deviation of a displacement, the paper's, for its tiles of several hundred pixels."""
SIGMA_SHARE = 0.04
"""Its largest share of the shortest side: 10 px would fold a patch of 64 x 64 or 40 x 56 x 40 onto itself."""
OVERSHOOT = 1.375
"""Per axis, how far cubic convolution can go beyond the largest control value: its largest sum of |weights|."""
PLANES = {2: [(0, 1)], 3: [(1, 2), (0, 2), (0, 1)]}
"""Axes that each rotation turns, by the number of dimensions: in 3D about axis 0, 1 and 2."""


class Warp(NamedTuple):
    """Where an output looks: its pixel at `o` from its centre at `centre + matrix @ (o + displacement(o))`."""

    size: tuple[int, ...]
    """Pixels per axis of the output."""
    centre: np.ndarray
    """(dims,) px, where in the image the output's centre looks."""
    matrix: np.ndarray
    """(dims, dims) of rotation, scale and flip, from `affine`."""
    control: np.ndarray
    """(points, ..., dims) px, displacement of the control points."""


def default_sigma(size: Sequence[int]) -> float:
    """Standard deviation in px of a displacement in a patch of `size`: min(10, 4 % of the shortest side)."""
    return min(SIGMA_PX, SIGMA_SHARE * min(size))


def bicubic_weights(size: int, points: int = POINTS) -> torch.Tensor:
    """Weight of every control point in every pixel of one axis, by cubic convolution with a = -0.75.

    The first and last pixel lie on the first and last control point; beyond, the grid repeats its outermost points.

    Returns:
        (size, points) float32, rows sum to 1.
    """
    eye = torch.eye(points)[None, None]
    return functional.interpolate(eye, (size, points), mode="bicubic", align_corners=True)[0, 0]


def displacement(control: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolate the control points' displacements to every pixel; separable, so tricubic in 3D.

    Args:
        control: (points, points, 2) or (points, points, points, 3).
        size: pixels per axis.

    Returns:
        (*size, 2) or (*size, 3), on the device of `control`.
    """
    weights = [bicubic_weights(n, p).to(control) for n, p in zip(size, control.shape, strict=False)]
    return torch.einsum("ijc,xi,yj->xyc" if len(size) == 2 else "ijkc,xi,yj,zk->xyzc", control, *weights)


def affine(
    angles: Sequence[float], zoom: float, flips: Sequence[bool], spacing: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """The matrix of rotation, scale and flip, from output to image.

    Args:
        angles: rad; one in 2D, in 3D one about each axis, turned in their order. A positive angle turns the content
            from the first axis of its plane (see `PLANES`) towards the second, as `torch.rot90` does.
        zoom: 1.1 enlarges the content by 10 %.
        flips: whether each axis is flipped.
        spacing: mm per axis; the rotation is one in mm, so that anisotropic voxels do not shear. None: all equal.

    Returns:
        (dims, dims) float64.
    """
    dims = len(flips)
    matrix = np.eye(dims) / zoom
    for (i, j), angle in zip(PLANES[dims], angles, strict=True):
        turn = np.eye(dims)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    mm = np.ones(dims) if spacing is None else np.asarray(spacing)
    return matrix * mm / mm[:, None] * np.where(flips, -1, 1)


def coordinates(warp: Warp, device: torch.device | str = "cpu") -> torch.Tensor:
    """Where in the image every pixel of the output looks: (*size, dims) float32, each coordinate lies in a plane.

    The displacement is separable and the matrix linear along each axis: along the last one both are a product of two
    small matrices, which writes the coordinates once.
    """
    dims = len(warp.size)
    control = _tensor(warp.control @ warp.matrix.T, device)
    weights = [bicubic_weights(n, p).to(control) for n, p in zip(warp.size, control.shape, strict=False)]
    lines = [
        _tensor(np.outer(column, np.arange(n) - (n - 1) / 2) + (warp.centre[:, None] if axis == 0 else 0), device)
        for axis, (n, column) in enumerate(zip(warp.size, warp.matrix.T, strict=True))
    ]  # each (dims, n)
    if dims == 2:
        bent, straight = torch.einsum("ijc,xi->cxj", control, weights[0]), lines[0]
    else:
        bent = torch.einsum("ijkc,xi,yj->cxyk", control, *weights[:2]).flatten(1, 2)
        straight = (lines[0][:, :, None] + lines[1][:, None]).flatten(1)
    left = torch.cat([bent, straight[..., None]], -1)  # (dims, all other pixels, points + 1)
    right = torch.cat([weights[-1].T, torch.ones_like(weights[-1].T[:1])])  # (points + 1, pixels of the last axis)
    planes = torch.baddbmm(lines[-1][:, None], left, right.expand(dims, -1, -1))
    return planes.view(dims, *warp.size).movedim(0, -1)


def resample(images: Sequence[torch.Tensor], modes: Sequence[str], warp: Warp) -> list[torch.Tensor]:
    """Sample images of one shape at the same coordinates, mirrored at their borders without repeating the edge pixel.

    Args:
        images: each (C, H, W) or (C, X, Y, Z), any dtype, all on one device.
        modes: of each, `"bilinear"` (trilinear in 3D) or `"nearest"`.
        warp: where to look; anywhere, also far outside.

    Returns:
        each (C, *size); float32, or for `"nearest"` of its image's dtype (values up to 2^24).
    """
    window, first, last = _window(images[0].shape[1:], warp)
    scale = 2 / np.maximum(last - first, 1)  # `grid_sample` wants -1 .. 1 and the axes in reverse
    centre, matrix = scale * (warp.centre - first) - 1, scale[:, None] * warp.matrix
    grid = mirrored(coordinates(warp._replace(centre=centre[::-1], matrix=matrix[::-1]), images[0].device))
    return [sample(image[window], grid, mode) for image, mode in zip(images, modes, strict=True)]


def _window(shape: Sequence[int], warp: Warp) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """The part of an image that the output can see: as slices, and its first and last pixel.

    It holds what is seen in the mirror too, and ends at the image's edge where a mirror stands. A patch of a large
    label is converted to float32 in that part alone.
    """
    axes = tuple(range(len(shape)))
    reach = np.abs(warp.control @ warp.matrix.T).max(axes) * OVERSHOOT ** len(shape)
    reach = reach + np.abs(warp.matrix) @ (np.array(warp.size) - 1) / 2
    low, high, end = warp.centre - reach, warp.centre + reach, np.array(shape) - 1
    first = np.floor(np.maximum(0, np.minimum(low, 2 * end - high))).astype(int)
    last = np.ceil(np.minimum(end, np.maximum(high, -low))).astype(int)
    return (slice(None), *(slice(a, b + 1) for a, b in zip(first, last, strict=True))), first, last


class RandElasticAffined(RandomizableTransform, MapTransform):
    """Random patch, elastic deformation, rotation, scale, flip and shift of image and label in one resampling.

    All keys of an item move together: (C, H, W) or (C, X, Y, Z) on any one device. They come out as plain tensors on
    that device; a MetaTensor loses its metadata, since its place in the world has changed.

    Args:
        keys: of the tensors, all of the same spatial shape.
        mode: `"bilinear"` for images and weight maps (float32 comes out), `"nearest"` for labels (the dtype is kept
            and no value invented); one for all keys or one per key.
        size: px per axis of the output, or one number for all; null: the input's own. A smaller patch is drawn
            uniformly from the image and bends in its real surroundings; on an axis where the image is smaller than
            the patch it is centred and the rest mirrored.
        sigma: px, standard deviation of the displacement per axis; 0: none; null: min(10, 4 % of the shortest side).
        sigma_mm: mm, instead of `sigma`, where a key is a MetaTensor: its affine gives the spacing (MONAI's is
            1 mm where it is unknown).
        prob: probability of the deformation; the rest happens always.
        rotation: rad, largest angle either way; in 3D about each axis, or three numbers. With a MetaTensor's
            spacing it is a rotation in mm.
        scale: largest change of size, as a fraction.
        flip: probability of flipping each axis, or one per axis.
        shift: px, largest shift either way along each axis, or one per axis; it may lead out of the image.
        allow_missing_keys: pass an item without such a key through.

    Raises:
        ValueError: an argument is out of range; an item's keys differ in shape; `sigma_mm` without a MetaTensor.

    Example:
        >>> item = {"image": torch.rand(1, 100, 90), "label": torch.ones(1, 100, 90, dtype=torch.uint8)}
        >>> warped = RandElasticAffined(["image", "label"], mode=["bilinear", "nearest"], size=64, rotation=3.14)(item)
        >>> warped["image"].shape, warped["label"].unique()
        (torch.Size([1, 64, 64]), tensor([1], dtype=torch.uint8))
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mode: str | Sequence[str],
        size: int | Sequence[int] | None = None,
        sigma: float | None = None,
        sigma_mm: float | None = None,
        prob: float = 1.0,
        rotation: float | Sequence[float] = 0.0,
        scale: float = 0.0,
        flip: float | Sequence[float] = 0.0,
        shift: float | Sequence[float] = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, _within("prob", prob, 0, 1))
        if sigma is not None and sigma_mm is not None:
            raise ValueError(f"`sigma` and `sigma_mm` exclude each other, got {sigma!r} and {sigma_mm!r}: give one")
        self.mode = _modes(mode, len(self.keys))
        self.size = size if size is None else _within("size", size, 1, kind=Integral)
        self.sigma = sigma if sigma is None else _within("sigma", sigma, 0)
        self.sigma_mm = sigma_mm if sigma_mm is None else _within("sigma_mm", sigma_mm, 0)
        self.rotation = _within("rotation", rotation, 0)
        self.scale = _within("scale", scale, 0, 0.9)
        self.flip = _within("flip", flip, 0, 1)
        self.shift = _within("shift", shift, 0)

    def randomize(self, data: tuple[int, ...], spacing: np.ndarray | None = None) -> None:
        """Draw `self.warp` for an image of the shape `data`; `self.R` is asked the same for every one of its dims."""
        super().randomize(None)
        dims, turns = len(data), len(PLANES[len(data)])
        place, flips = self.R.uniform(size=(2, dims))
        angles = self.R.uniform(-1, 1, turns) * _per_axis("rotation", self.rotation, turns)
        zoom = 1 + self.R.uniform(-1, 1) * self.scale
        shift = self.R.uniform(-1, 1, dims) * _per_axis("shift", self.shift, dims)
        control = self.R.normal(size=(*[POINTS] * dims, dims))

        size = data if self.size is None else tuple(int(n) for n in _per_axis("size", self.size, dims))
        free = np.subtract(data, size)
        start = np.where(free < 0, free // 2, np.floor(place * (free + 1)))
        self.warp = Warp(
            size=size,
            centre=start + (np.array(size) - 1) / 2 - shift,
            matrix=affine(angles, zoom, list(flips < _per_axis("flip", self.flip, dims)), spacing),
            control=control * (self._sigma_px(size, spacing) if self._do_transform else 0.0),
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its tensors warped."""
        item = dict(data)
        modes = dict(self.key_iterator(item, self.mode))
        if modes:
            self.randomize(*_geometry({key: item[key] for key in modes}))
            tensors = [convert_to_tensor(item[key], track_meta=False) for key in modes]
            item.update(zip(modes, resample(tensors, list(modes.values()), self.warp), strict=True))
        return item

    def _sigma_px(self, size: Sequence[int], spacing: np.ndarray | None) -> float | np.ndarray:
        if self.sigma_mm is None:
            return default_sigma(size) if self.sigma is None else self.sigma
        if spacing is None:
            raise ValueError(f"`sigma_mm` needs a MetaTensor's spacing, got none in {self.keys}: use `sigma`, in px")
        return self.sigma_mm / spacing


def _geometry(tensors: Mapping[Hashable, Any]) -> tuple[tuple[int, ...], np.ndarray | None]:
    """The spatial shape that all have, and the spacing in mm of the first that knows one."""
    shapes = {key: tuple(tensor.shape[1:]) for key, tensor in tensors.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all keys must have one spatial shape, got {shapes}: resample them to one grid first")
    if len(shape) not in PLANES:
        raise ValueError(f"tensors must be (C, H, W) or (C, X, Y, Z), got the spatial shape {shape}")
    known = (tensor.pixdim for tensor in tensors.values() if isinstance(tensor, MetaTensor))
    return shape, next((np.asarray(spacing)[: len(shape)] for spacing in known), None)


def _modes(mode: str | Sequence[str], keys: int) -> tuple[str, ...]:
    modes = (mode,) * keys if isinstance(mode, str) else tuple(mode)
    for one in modes:
        if one not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(map(repr, MODES))}, got {one!r}: labels need 'nearest'")
    if len(modes) != keys:
        raise ValueError(f"`mode` must be one for all keys or one per key, got {len(modes)} for {keys} keys")
    return modes


def _within(name: str, value: Any, low: float, high: float = np.inf, kind: Any = Real) -> Any:
    """The number or sequence of numbers, refused where one is of another kind, not finite or out of bounds."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(isinstance(one, kind) and low <= one <= high and np.isfinite(one) for one in values):
        bounds = f"at least {low}" if high == np.inf else f"{low} to {high}"
        hint = ": YAML takes 1e-3 for text, write 1.0e-3" if isinstance(value, str) else ""
        raise ValueError(f"`{name}` must be a {'whole ' * (kind is Integral)}number of {bounds}, got {value!r}{hint}")
    return value


def _per_axis(name: str, value: Any, count: int) -> np.ndarray:
    if np.ndim(value) and len(value) != count:
        raise ValueError(f"`{name}` must be one number or {count}, got {value!r}")
    return np.broadcast_to(value, count)


def _tensor(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(array, np.float32), device=device)
