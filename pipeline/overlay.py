"""Pictures of an image with the contours of its reference and of a prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

REFERENCE_COLOUR = (0, 114, 178)
PREDICTION_COLOUR = (230, 159, 0)
BOTH_COLOUR = (255, 255, 255)
"""Blue, orange and white of Okabe and Ito's palette: colour-blind people tell them apart."""

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
