"""Pictures of volumes: a slice in each of three planes, as radiologists hang them, with the patient's sides in letters.

Arrays are (X, Y, Z) with X to the patient's right, Y to the front and Z up, as `LoadCased` gives them. Pictures show
the patient's right on their left side: axial slices as seen from the feet, coronal ones from the front, sagittal ones
from the patient's left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import overlay
from pipeline.body import box, covered


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

LONGEST = 512
"""Pixels of a larger image's longer side in a comparison; a smaller one is enlarged to `SIDE`."""

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
    return overlay.resized(values, _size(plane, shape, spacing_mm, side), smooth=values.dtype != np.uint8)


def _size(plane: Plane, shape: Sequence[int], spacing_mm: Sequence[float] | None, side: int = SIDE) -> tuple[int, int]:
    """Rows and columns of a slice whose volume's longest edge has `side` pixels."""
    edges = np.multiply(shape, spacing_mm or (1.0, 1.0, 1.0))
    across, down = (max(1, round(edge * side / edges.max())) for axis, edge in enumerate(edges) if axis != plane.axis)
    return down, across


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
    """(3, rows, columns) uint8: the image between black and white, class indices of reference and prediction."""


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
    shape = reference.shape
    crop = tuple(slice(0, side) for side in shape) if body is None else box(body | (reference > 0))
    if body is not None:
        image, prediction = covered(image, body)[(slice(None), *crop)], np.where(body, prediction, 0)[crop]
        reference, body = reference[crop], body[crop]
    if reference.ndim == 2:
        scale = min(max(*reference.shape, SIDE), LONGEST) / max(reference.shape)
        size = (max(1, round(reference.shape[0] * scale)), max(1, round(reference.shape[1] * scale)))
        return [View("image", "", size, _layers(image[0], reference, prediction, body, size))]
    wrong = reference != prediction
    places = most(wrong if wrong.any() else reference > 0)
    found = []
    for plane in PLANES:
        place = places[plane.axis]
        inside = None if body is None else cut(body, plane, place)
        size = _size(plane, reference.shape, spacing_mm)
        image_, truth, ours = (cut(volume, plane, place) for volume in (image[0], reference, prediction))
        about = caption(plane, place + crop[plane.axis].start, shape)
        found.append(View(about, plane.letters, size, _layers(image_, truth, ours, inside, size)))
    return found


def drawn(found: Sequence[View], lines: Sequence[str], names: Mapping[int, str] | None = None) -> np.ndarray:
    """Image, contours and errors of every view, below lines of text: (rows, columns, 3) uint8.

    Args:
        found: from `views`.
        lines: of the case; one or more.
        names: class index from 1 on -> name, where there are several: each then has a colour, and they stand below.
    """
    rows = []
    for view in found:
        image, truth, ours = (overlay.resized(layer, view.size, smooth=not n) for n, layer in enumerate(view.layers))
        picture, several = overlay.shown(image[None], (0, 255)), bool(names)
        rows.append(
            overlay.comparison(picture, truth, ours, view.caption, letters=view.letters, width=SIDE, by_class=several)
        )
    if names:
        rows.append(overlay.legend(names, rows[0].shape[1]))
    return overlay.captioned(overlay.stack_rows(rows), *lines)


def _layers(
    image: np.ndarray, reference: np.ndarray, prediction: np.ndarray, body: np.ndarray | None, size: tuple[int, int]
) -> np.ndarray:
    """(3, rows, columns) uint8, no larger than they are drawn."""
    inside = image if body is None or not body.any() else image[body]
    low, high = overlay.window(inside)
    grey = (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    kept = (min(image.shape[0], size[0]), min(image.shape[1], size[1]))
    if kept == image.shape:
        return np.stack([grey, reference, prediction]).astype(np.uint8)
    layers = (np.ascontiguousarray(layer).astype(np.uint8) for layer in (grey, reference, prediction))
    return np.stack([overlay.resized(layer, kept, smooth=not number) for number, layer in enumerate(layers)])


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
