"""Pictures of an image with its reference and a prediction: contours, errors, coloured cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

REFERENCE_COLOUR = (0, 114, 178)
PREDICTION_COLOUR = (230, 159, 0)
BOTH_COLOUR = (255, 255, 255)
"""Blue, orange and white of Okabe and Ito's palette: colour-blind people tell them apart."""

TINT = 0.55
"""Share of the colour where an image shines through."""

CAPTION_HEIGHT = 18
"""Pixels above each panel."""


def grey(image: np.ndarray) -> np.ndarray:
    """(C, H, W) of any range -> (H, W, 3) uint8, the first channel between its 1st and 99th percentile."""
    plane = np.asarray(image[0], np.float32)
    low, high = np.percentile(plane, (1, 99))
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=2)


def contours(image: np.ndarray, reference: np.ndarray | None, prediction: np.ndarray | None) -> np.ndarray:
    """Draw the inner boundaries of two label maps on an image.

    Args:
        image: (C, H, W), any range.
        reference: (H, W) class indices, drawn blue.
        prediction: (H, W) class indices, drawn orange; white where both run.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = grey(image)
    drawn = [
        np.zeros(canvas.shape[:2], bool) if m is None else find_boundaries(m, mode="inner")
        for m in (reference, prediction)
    ]
    canvas[drawn[0]] = REFERENCE_COLOUR
    canvas[drawn[1]] = PREDICTION_COLOUR
    canvas[drawn[0] & drawn[1]] = BOTH_COLOUR
    return canvas


def errors(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Foreground (H, W) against foreground: agreement white, missed blue, added orange; (H, W, 3) uint8."""
    truth, found = reference > 0, prediction > 0
    canvas = np.zeros((*truth.shape, 3), np.uint8)
    canvas[truth & found] = BOTH_COLOUR
    canvas[truth & ~found] = REFERENCE_COLOUR
    canvas[~truth & found] = PREDICTION_COLOUR
    return canvas


def cells(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tint every label of an image with a colour of its own; the same label has the same colour in every picture.

    Args:
        image: (C, H, W), any range.
        labels: (H, W) int; 0 is drawn black.

    Returns:
        (H, W, 3) uint8.
    """
    used, index = np.unique(labels, return_inverse=True)
    hues = used * 0.618034 % 1  # the golden section keeps neighbouring numbers apart
    wheel = np.abs((hues[:, None] + np.array([0, 1 / 3, 2 / 3])) % 1 * 6 - 3) - 1
    colours = np.clip(wheel, 0, 1)[index].reshape(*labels.shape, 3) * 255
    tinted = TINT * colours + (1 - TINT) * grey(image)
    return np.where(labels[..., None] > 0, tinted, 0).astype(np.uint8)


def tinted(image: np.ndarray, masks: Mapping[tuple[int, int, int], np.ndarray]) -> np.ndarray:
    """An image with masks laid over it: (C, H, W) and colour -> (H, W) bool, to (H, W, 3) uint8."""
    canvas = grey(image).astype(np.float32)
    for colour, mask in masks.items():
        canvas[mask] = TINT * np.array(colour, np.float32) + (1 - TINT) * canvas[mask]
    return canvas.astype(np.uint8)


def panels(pictures: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Captioned (H, W, 3) pictures of one size side by side, 4 pixels apart."""
    height, width = pictures[0][1].shape[:2]
    sheet = Image.new("RGB", (len(pictures) * (width + 4) - 4, height + CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (caption, picture) in enumerate(pictures):
        draw.text((column * (width + 4) + 2, 2), caption, fill="black")
        sheet.paste(Image.fromarray(picture), (column * (width + 4), CAPTION_HEIGHT))
    return np.asarray(sheet)


def stack_rows(rows: list[np.ndarray]) -> np.ndarray:
    """(H, W, 3) pictures below each other, padded with white to one width."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def comparison(image: np.ndarray, reference: np.ndarray, prediction: np.ndarray, title: str) -> np.ndarray:
    """Image, contours and errors of one case side by side."""
    return panels(
        [
            (title, grey(image)),
            ("blue reference, orange ours", contours(image, reference, prediction)),
            ("blue missed, orange added", errors(reference, prediction)),
        ]
    )


def save(picture: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
