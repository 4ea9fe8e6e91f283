"""Which part of an image is body, so that pictures show nothing else: names, dates and marks stand beside it.

What is burnt in over the body cannot be told from the body and stays, and so does what lies between two parts of it.
Where no body is found, the mask is empty and pictures show nothing of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import block_reduce

SIDE = {2: 256, 3: 128}
"""Pixels, or voxels, of the longest side at about which a body is looked for: enough for its outline, and quick."""

RANGE = (0.5, 99.5)
"""Percentiles that are black and white here."""

SMOOTHING = 0.7
"""Standard deviation of the Gaussian that evens out noise, in pixels: it joins no letters."""

ABOVE_AIR, ABOVE_NOISE = 0.06, 5.0
"""What is brighter than air by this share of the range, and by so many standard deviations of the noise, may be body.
Measured on 100 chest X-rays and 655 slices of brains: less shows more of the air, more opens lungs that lie at it."""

RIM = 0.02
"""Share of the sides that is the image's rim, where air is looked for."""

FRINGE, WHITE = 0.12, 0.3
"""Share of the sides where noise may look like dim tissue, and the correlation of pixels two apart below which it is
noise: 0.06 to 0.28 in the noise of magnetic resonance, from 0.38 in shoulders."""

STROKE = {2: 0.03, 3: 0.05}
"""Share of the longest side: what is narrower is no body, as letters and frames are."""

STRIKING = 0.25
"""Share of the range by which letters are brighter than what is around them, at least."""

BAY = 0.06
"""Share of the longest side: bays of a body that are narrower belong to it."""

SMALLEST = 0.005
"""Share of the image that a body covers at least."""

FILLING, UNEVEN = 0.25, 0.07
"""A body that covers this share of the rim, beside which the dark pixels vary by that share of Otsu's threshold, fills
the image: 0.09 to 0.14 in crops of brains, at most 0.05 beside chests."""


def mask(image: np.ndarray) -> np.ndarray:
    """Where the body is: the largest bright thing that is wider than letters, with all that it encloses.

    Background may be dark or, in a 2D image, bright, as in an X-ray that was not inverted. An image that shows tissue
    and no background, such as a crop, is body everywhere; one without any body, such as noise, nowhere.

    Args:
        image: (C, H, W) or (C, X, Y, Z), any range; the body of a volume is looked for in 3D, so that letters on every
            slice, which are a column there, are no body.

    Returns:
        (H, W) or (X, Y, Z) bool.
    """
    factors = [max(1, round(max(image.shape[1:]) / SIDE[image.ndim - 1]))] * (image.ndim - 1)
    small = _small(np.asarray(image, np.float32), factors)
    found = _found(small)
    for axis, factor in enumerate(factors):
        found = found.repeat(factor, axis)
    return found[tuple(slice(side) for side in image.shape[1:])]


def covered(image: np.ndarray, body: np.ndarray) -> np.ndarray:
    """An image whose pixels outside the body are the minimum of those inside; 0 where there is no body.

    Args:
        image: (C, H, W) or (C, X, Y, Z).
        body: (H, W) or (X, Y, Z) bool.

    Returns:
        Another array of the same shape and dtype.
    """
    return np.where(body, image, np.nan_to_num(image[:, body]).min() if body.any() else 0).astype(image.dtype)


def box(body: np.ndarray, margin: int = 2) -> tuple[slice, ...]:
    """Where a mask is, as slices of its axes, `margin` pixels wider; everything where it is empty."""
    if not body.any():
        return tuple(slice(0, side) for side in body.shape)
    found = []
    for axis, side in enumerate(body.shape):
        where = np.flatnonzero(body.any(axis=tuple(other for other in range(body.ndim) if other != axis)))
        found.append(slice(max(0, int(where[0]) - margin), min(side, int(where[-1]) + 1 + margin)))
    return tuple(found)


def _small(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """The mean of the channels, each from 0 to 1, in blocks of pixels; body is bright in it."""
    scaled = [one for one in map(_upright, np.nan_to_num(image)) if one is not None]
    if not scaled:
        return np.zeros([-(-side // factor) for side, factor in zip(image.shape[1:], factors, strict=True)], np.float32)
    mean = np.mean(scaled, axis=0)
    filled = np.pad(mean, [(0, -side % factor) for side, factor in zip(mean.shape, factors, strict=True)], mode="edge")
    return block_reduce(filled, tuple(factors), np.mean) if max(factors) > 1 else filled


def _upright(channel: np.ndarray) -> np.ndarray | None:
    """A channel from 0 to 1, turned round if air is bright in it."""
    scaled = _scaled(channel)
    return _scaled(-channel) if scaled is not None and scaled.ndim == 2 and _is_bright_outside(scaled) else scaled


def _scaled(channel: np.ndarray) -> np.ndarray | None:
    """A channel from 0 to 1; None where it is one value. Padding, which is its minimum, says nothing about air."""
    inside = channel[channel > channel.min()]
    if not inside.size:
        return None
    low, high = np.percentile(inside, RANGE)
    return np.clip((channel - low) / (high - low), 0, 1) if high > low else (channel >= high).astype(np.float32)


def _is_bright_outside(image: np.ndarray) -> bool:
    """Whether the rim is brighter than the stripes through the middle, where every body has tissue."""
    stripes = np.zeros(image.shape, bool)
    for axis, side in enumerate(image.shape):
        width = max(1, round(0.05 * side))
        stripes[(slice(None),) * axis + (slice(side // 2 - width, side // 2 + width),)] = True
    return bool(image[stripes].mean() < image[_rim(image.shape, RIM)].mean())


def _found(small: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(small, SMOOTHING)
    if np.ptp(smooth) == 0:
        return np.zeros(small.shape, bool)
    otsu = float(threshold_otsu(smooth))
    rim = _rim(small.shape, RIM)
    radius = max(1, round(STROKE[small.ndim] / 2 * max(small.shape)))
    plain = ~_strokes(small, radius)
    if plain.mean() < 0.5:
        plain = np.ones(small.shape, bool)  # noise, whose every pixel strikes
    beside = rim & (smooth <= otsu) & plain
    if not beside.any():
        return np.ones(small.shape, bool)
    body = _largest(_opened(smooth > _threshold(small, smooth, otsu, beside, plain), radius))
    if body.sum() < SMALLEST * body.size:
        return np.zeros(small.shape, bool)
    if (body & rim).sum() > FILLING * rim.sum() and _variation(small, beside) > UNEVEN * otsu:
        return np.ones(small.shape, bool)
    return _filled(~_opened(~body, max(1, round(BAY / 2 * max(small.shape)))))


def _threshold(small: np.ndarray, smooth: np.ndarray, otsu: float, beside: np.ndarray, plain: np.ndarray) -> float:
    """A little above air and noise, so that dim tissue is body; Otsu's threshold where noise is as bright as that."""
    dark = (smooth <= otsu) & plain
    rough = np.abs(small - ndimage.uniform_filter(small, 3))[dark & (small > small.min())]
    noise = float(np.percentile(rough, 75)) / 1.15 if rough.size else 0.0  # the quartile of a normal distribution
    air = float(np.percentile(smooth[beside], 10))
    low = air + max(ABOVE_NOISE * noise, ABOVE_AIR * (float(np.percentile(smooth, 99)) - air))
    between = dark & (smooth > low) & _rim(small.shape, FRINGE)
    if low < otsu and _is_noise(small, plain, between):
        low = float(np.percentile(smooth[between], 99))
    return min(otsu, low)


def _is_noise(small: np.ndarray, plain: np.ndarray, where: np.ndarray) -> bool:
    """Whether pixels two apart have nothing to do with each other; False where there are too few to say."""
    if where.mean() < RIM:
        return False
    weight = ndimage.gaussian_filter(plain.astype(np.float32), 3)
    rough = small - ndimage.gaussian_filter(small * plain, 3) / np.maximum(weight, 1e-3)
    both = [(where & np.roll(where, 2, axis), rough * np.roll(rough, 2, axis)) for axis in range(small.ndim)]
    return all(product[pairs].mean() < WHITE * (rough[where] ** 2).mean() for pairs, product in both if pairs.any())


def _strokes(small: np.ndarray, radius: int) -> np.ndarray:
    """What is brighter than all around it and narrow, with its blurred edge: letters, which say nothing about air."""
    wide = (2 * radius + 1,) * small.ndim
    striking = small - ndimage.grey_opening(small, wide, mode="nearest") > STRIKING
    return ndimage.maximum_filter(striking.view(np.uint8), 5, mode="nearest").view(bool)


def _variation(small: np.ndarray, where: np.ndarray) -> float:
    """The lower quartile of the standard deviation over a few pixels, of what is left when white noise is gone."""
    even = ndimage.gaussian_filter(small, 1.5)
    variance = ndimage.gaussian_filter(even**2, 2) - ndimage.gaussian_filter(even, 2) ** 2
    return float(np.sqrt(max(0.0, np.percentile(variance[where], 25))))


def _rim(shape: Sequence[int], share: float) -> np.ndarray:
    rim = np.ones(shape, bool)
    widths = [max(1, round(share * side)) for side in shape]
    rim[tuple(slice(width, side - width) for width, side in zip(widths, shape, strict=True))] = False
    return rim


def _opened(where: np.ndarray, radius: int) -> np.ndarray:
    """Without what is narrower than twice the radius; the image goes on beyond its edge as it is there."""
    side = 2 * radius + 1
    return ndimage.grey_opening(where.view(np.uint8), (side,) * where.ndim, mode="nearest").view(bool)


def _largest(where: np.ndarray) -> np.ndarray:
    labels, number = ndimage.label(where)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax() if number else where


def _filled(body: np.ndarray) -> np.ndarray:
    """With the holes of every slice, of a volume in all three planes: lungs that its end cuts off are open in 3D."""
    filled = body.copy()
    for axis in range(body.ndim) if body.ndim == 3 else [None]:
        plane = ndimage.generate_binary_structure(body.ndim, 1)
        outside = np.zeros(body.shape, bool)
        for other in range(body.ndim):
            if other == axis:
                plane[(slice(None),) * other + ([0, 2],)] = False
            else:
                outside[(slice(None),) * other + ([0, -1],)] = True
        labels, _ = ndimage.label(~body, plane)
        filled |= ~np.isin(labels, np.unique(labels[outside])) & ~body
    return filled
