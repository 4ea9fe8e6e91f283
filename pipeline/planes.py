"""Pictures of volumes: a slice in each of three planes, as radiologists hang them, with the patient's sides in letters.

Arrays are (X, Y, Z) with X to the patient's right, Y to the front and Z up, as `LoadCased` gives them. Pictures show
the patient's right on their left side: axial slices as seen from the feet, coronal ones from the front, sagittal ones
from the patient's left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import overlay


@dataclass(frozen=True)
class Plane:
    """One way to cut a volume: across `axis`, the letters of a picture's left, right, top and bottom border."""

    name: str
    axis: int
    letters: str


AXIAL = Plane("axial", 2, "RLAP")
PLANES = (AXIAL, Plane("coronal", 1, "RLSI"), Plane("sagittal", 0, "APSI"))

SIDE = 300
"""Pixels of the volume's longest edge in a comparison: its caption fits above a cube."""

SMALL = 168
"""Likewise on a sheet of many: the three planes side by side are as wide as two pictures of 256 pixels."""


def cut(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """One slice as it is hung: (X, Y, Z) -> (rows, columns).

    Args:
        volume: any dtype.
        plane: of `PLANES`.
        index: along the plane's axis.
    """
    return volume.take(index, axis=plane.axis)[::-1, ::-1].T


def scaled(
    values: np.ndarray, plane: Plane, shape: Sequence[int], spacing_mm: Sequence[float] | None, side: int = SIDE
) -> np.ndarray:
    """A slice in the proportions that it has in mm; all planes of a volume have one scale.

    Args:
        values: (rows, columns), float32 (interpolated) or uint8 class indices (the nearest).
        plane: that it was cut in.
        shape: (X, Y, Z) of the volume.
        spacing_mm: along X, Y and Z; None: voxels are taken for cubes.
        side: pixels of the volume's longest edge.
    """
    edges = np.multiply(shape, spacing_mm or (1.0, 1.0, 1.0))
    across, down = (max(1, round(edge * side / edges.max())) for axis, edge in enumerate(edges) if axis != plane.axis)
    return overlay.resized(values, (down, across), smooth=values.dtype != np.uint8)


def most(mask: np.ndarray) -> tuple[int, int, int]:
    """The index along X, Y and Z of the slice with the most of a mask, (X, Y, Z) bool; the middle where it is empty."""
    if not mask.any():
        return tuple(size // 2 for size in mask.shape)
    counts = (mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3))
    return tuple(int(count.argmax()) for count in counts)  # type: ignore[return-value]


@dataclass(frozen=True)
class View:
    """One slice of a case, or an image, as it is kept until it is known whether it is drawn."""

    caption: str
    letters: str
    """Of the sides of the patient; empty for an image."""
    size: tuple[int, int]
    """Rows and columns at which it is drawn."""
    layers: np.ndarray
    """(3, rows, columns) uint8: the image between black and white, class indices of the reference, of the prediction."""


def views(
    image: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | None = None,
    body: np.ndarray | None = None,
) -> list[View]:
    """What is drawn of a case, cropped to the body: an image as it is, of a volume three slices, those most wrong.

    A volume is cut in each plane where most voxels are wrong, or, where nothing is, where most are foreground.

    Args:
        image: (1, H, W) or (1, X, Y, Z), any range.
        reference: (H, W) or (X, Y, Z) uint8 class indices.
        prediction: likewise.
        spacing_mm: along X, Y and Z; None: voxels are taken for cubes.
        body: (H, W) or (X, Y, Z) bool, outside of which neither the image nor the prediction is shown; the reference
            is. None: all of it.
    """
    if body is not None:
        crop = box(body | (reference > 0))
        image, prediction = covered(image, body)[(slice(None), *crop)], np.where(body, prediction, 0)[crop]
        reference, body = reference[crop], body[crop]
    else:
        crop = tuple(slice(0, side) for side in reference.shape)
    if reference.ndim == 2:
        scale = np.clip(max(reference.shape), SIDE, LONGEST) / max(reference.shape)
        size = tuple(max(1, round(side * scale)) for side in reference.shape)
        return [View("", "", size, _layers(image[0], reference, prediction, body))]
    wrong = reference != prediction
    places = most(wrong if wrong.any() else reference > 0)
    found = []
    for plane in PLANES:
        place, inside = places[plane.axis], None if body is None else cut(body, plane, places[plane.axis])
        slices = (cut(volume, plane, place) for volume in (image[0], reference, prediction))
        about = f"{plane.name} {place + 1 + crop[plane.axis].start} of {FULL}"
        found.append(View(about, plane.letters, size_of(plane, reference.shape, spacing_mm), _layers(*slices, inside)))
    return found


def outlined(
    image: np.ndarray,
    label: np.ndarray | None,
    *,
    spacing_mm: Sequence[float] | None = None,
    span: tuple[float, float] | None = None,
    letters: bool = True,
) -> list[np.ndarray]:
    """A volume in three planes with its label's outlines, where the label is largest, else in the middle.

    Args:
        image: (1, X, Y, Z), drawn grey, or (3, X, Y, Z), drawn as red, green and blue; any range.
        label: (X, Y, Z) uint8 class indices; None: without.
        spacing_mm: along X, Y and Z; None: voxels are taken for cubes.
        span: values drawn black and white; None: the `window` of the slices that are drawn.
        letters: say which side is where.

    Returns:
        Three captioned pictures, (rows, columns, 3) uint8, the volume's longest edge `SMALL` pixels.
    """
    shape = image.shape[1:]
    places = most(np.zeros(shape, bool) if label is None else label > 0)
    slices = {
        plane: np.stack([np.asarray(cut(part, plane, places[plane.axis]), np.float32) for part in image])
        for plane in PLANES
    }
    if span is None:
        span = overlay.window(np.concatenate([found.ravel() for found in slices.values()]))
    pictures = []
    for plane, found in slices.items():
        picture = overlay.shown(np.stack([scaled(part, plane, shape, spacing_mm, SMALL) for part in found]), span)
        if label is not None:
            picture = overlay.outlined(picture, labels_of(label, plane, places, spacing_mm))
        picture = overlay.lettered(picture, plane.letters) if letters else picture
        pictures.append(overlay.captioned(picture, caption(plane, places[plane.axis], shape), width=SMALL))
    return pictures


def labels_of(label: np.ndarray, plane: Plane, places: Sequence[int], spacing_mm: Sequence[float] | None) -> np.ndarray:
    """One slice of a label map, (X, Y, Z) uint8, as `outlined` scales it."""
    return scaled(np.ascontiguousarray(cut(label, plane, places[plane.axis])), plane, label.shape, spacing_mm, SMALL)


def caption(plane: Plane, index: int, shape: Sequence[int]) -> str:
    """Which slice it is, counted from 1: `axial 7 of 36`."""
    return f"{plane.name} {index + 1} of {shape[plane.axis]}"
