"""Pictures of an image with its labels: contours, errors, coloured cells, heat; and captioned sheets of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from pipeline.errors import InputError

REFERENCE_COLOUR = (0, 114, 178)
PREDICTION_COLOUR = (230, 159, 0)
CONFUSED_COLOUR = (204, 121, 167)
LINE_COLOUR = (86, 180, 233)
"""Blue, orange, reddish purple and, for lines on dark tissue, sky blue of Okabe and Ito's palette: colour-blind people
tell them apart. In grey, orange is as bright as purple and sky blue, hence dashes and stripes."""

CLASS_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Of class 1, 2, ...: the same palette, first what is seen on black and on white; an eighth class starts it again."""

DASH, STRIPE = 8, 6
"""Pixels from one dash, one stripe to the next."""

DARKENED = 0.6
"""Share of an image's brightness on which errors are drawn."""

TINT = 0.55
"""Share of the colour where an image shines through."""

NOTHING = 1e-3
"""Share of the greatest value within which values are the same in `heat`: interpolation makes 1.0000001 of 1."""

FONT_SIZE = 13
"""Pixels of a caption's letters."""

CAPTION_HEIGHT = 18
"""Pixels of each line above a panel."""

GAP = 4
"""White pixels between two panels."""


def window(image: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of an image: what is drawn black and white, whatever the pixels' range."""
    low, high = np.percentile(np.asarray(image, np.float32), (1, 99))
    return float(low), float(high)


def shown(image: np.ndarray, span: tuple[float, float] | None = None) -> np.ndarray:
    """An image as a picture.

    Args:
        image: (1, H, W), drawn grey, or (3, H, W), drawn as red, green and blue; any range.
        span: values drawn black and white; None: the image's own `window`.

    Returns:
        (H, W, 3) uint8.
    """
    low, high = window(image) if span is None else span
    scaled = np.clip((np.asarray(image, np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.ascontiguousarray(np.broadcast_to(scaled.astype(np.uint8), (3, *image.shape[1:])).transpose(1, 2, 0))


def grey(image: np.ndarray) -> np.ndarray:
    """(C, H, W) of any range -> (H, W, 3) uint8, the first channel between its 1st and 99th percentile."""
    return shown(image[:1])


def outlined(picture: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Draw the outline of every class but 0 on a picture, in its colour of `CLASS_COLOURS`.

    The line is the outermost pixels of the class, and the pixel beyond them is darkened, so that it stands out from
    bright tissue too.

    Args:
        picture: (H, W, 3) uint8.
        label: (H, W) class indices.

    Returns:
        (H, W, 3) uint8, another array.
    """
    canvas = picture.copy()
    beyond = find_boundaries(label > 0, mode="outer") & (label == 0)
    canvas[beyond] = canvas[beyond] // 2
    for index in np.unique(label[label > 0]):
        canvas[find_boundaries(label == index, mode="inner")] = class_colour(int(index))
    return canvas


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour in which a class from 1 on is outlined."""
    return CLASS_COLOURS[(index - 1) % len(CLASS_COLOURS)]


def heat(values: np.ndarray, least: float, most: float) -> np.ndarray:
    """(H, W) -> (H, W, 3) uint8: `least` and below black, then red and yellow, `most` and above white."""
    share = (values - least) / (max(most - least, NOTHING * abs(most)) or 1) * 3
    return (np.clip(np.stack([share, share - 1, share - 2], axis=-1), 0, 1) * 255).astype(np.uint8)


def fitted(picture: np.ndarray, side: int, *, smooth: bool = True) -> np.ndarray:
    """A picture (H, W, 3) or a label map (H, W), uint8, in the size at which its longer side has `side` pixels.

    Args:
        picture: what to enlarge or to shrink.
        side: in pixels.
        smooth: mean over pixels, for a picture; False takes the nearest one, for a label map.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    return resized(picture, (max(1, round(height * scale)), max(1, round(width * scale))), smooth=smooth)


def resized(picture: np.ndarray, size: tuple[int, int], *, smooth: bool = True) -> np.ndarray:
    """A picture (H, W, 3) uint8, a slice (H, W) float32 or a label map (H, W) uint8 in another (height, width)."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size[::-1], method))


def channel(image: np.ndarray, index: int) -> np.ndarray:
    """One channel of an image, (C, H, W) -> (1, H, W), for the pictures that show the first one.

    Raises:
        InputError: the image has no such channel.
    """
    if not 0 <= index < image.shape[0]:
        raise InputError(f"`overlay_channel` is {index}, counted from 0, and the images have {image.shape[0]} channels")
    return image[index : index + 1]


def contours(
    picture: np.ndarray, reference: np.ndarray, prediction: np.ndarray, *, by_class: bool = False
) -> np.ndarray:
    """Draw where two label maps end: a line for the reference, dashes for the prediction.

    Args:
        picture: (H, W, 3) uint8.
        reference: (H, W) class indices, drawn light blue, or every class in its colour.
        prediction: (H, W) class indices, drawn orange, or likewise.
        by_class: in the classes' colours.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = picture.copy()
    dashes = _stripes(canvas.shape, DASH, DASH - 3)
    for label, colour, where in ((reference, LINE_COLOUR, True), (prediction, PREDICTION_COLOUR, dashes)):
        if not by_class:
            canvas[find_boundaries(label, mode="inner") & where] = colour
            continue
        for index in np.unique(label[label > 0]):
            canvas[find_boundaries(label == index, mode="inner") & where] = class_colour(int(index))
    return canvas


def errors(picture: np.ndarray, reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Foreground against foreground on a darkened picture: missed blue with white stripes, added orange.

    Where both have foreground, but of two classes, it is purple with black stripes. The stripes tell them apart in a
    print without colours.

    Args:
        picture: (H, W, 3) uint8.
        reference: (H, W) class indices.
        prediction: likewise.

    Returns:
        (H, W, 3) uint8.
    """
    truth, found = reference > 0, prediction > 0
    canvas = (picture * DARKENED).astype(np.uint8)
    stripes = _stripes(canvas.shape, STRIPE, 2)
    missed, confused = truth & ~found, truth & found & (reference != prediction)
    for where, colour in (
        (missed, REFERENCE_COLOUR),
        (missed & stripes, (255, 255, 255)),
        (found & ~truth, PREDICTION_COLOUR),
        (confused, CONFUSED_COLOUR),
        (confused & stripes, (0, 0, 0)),
    ):
        canvas[where] = colour
    return canvas


def _stripes(shape: Sequence[int], period: int, width: int) -> np.ndarray:
    """Diagonal stripes, (H, W) bool."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows + columns) % period < width)


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


def captioned(picture: np.ndarray, *lines: str, width: int = 0) -> np.ndarray:
    """Lines of text above an (H, W, 3) picture; a line that is too long loses its middle.

    Args:
        picture: what is below the text.
        lines: one or more.
        width: the result is at least so wide, in pixels.
    """
    height = CAPTION_HEIGHT * len(lines)
    sheet = Image.new("RGB", (max(width, picture.shape[1]), height + picture.shape[0]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((2, number * CAPTION_HEIGHT + 1), _shortened(line, sheet.width - 4), fill="black", font=_font())
    sheet.paste(Image.fromarray(picture), (0, height))
    return np.asarray(sheet)


def beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W, 3) pictures side by side, padded with white to one height."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [_padded(picture, height, picture.shape[1] + GAP) for picture in pictures]
    return np.concatenate(padded, axis=1)[:, :-GAP]


def lettered(picture: np.ndarray, letters: str) -> np.ndarray:
    """Write letters in the middle of an (H, W, 3) picture's left, right, top and bottom border, say `RLAP`."""
    sheet = Image.fromarray(picture)
    draw, middle = ImageDraw.Draw(sheet), (sheet.width / 2, sheet.height / 2)
    places = ((2, middle[1]), (sheet.width - 2, middle[1]), (middle[0], 2), (middle[0], sheet.height - 2))
    for letter, place, anchor in zip(letters, places, ("lm", "rm", "mt", "mb"), strict=True):
        draw.text(place, letter, fill="white", stroke_fill="black", stroke_width=1, anchor=anchor, font=_font())
    return np.asarray(sheet)


def panels(pictures: list[tuple[str, np.ndarray]], width: int = 0) -> np.ndarray:
    """Captioned (H, W, 3) pictures side by side, each at least so wide."""
    return beside([captioned(picture, caption, width=width) for caption, picture in pictures])


def stack_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W, 3) pictures below each other, padded with white to one width."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([_padded(row, row.shape[0] + GAP, width) for row in rows])


def legend(names: Mapping[int, str], width: int) -> np.ndarray:
    """Coloured squares with the names of classes: class index from 1 on -> name, to (H, width, 3) uint8."""
    side, places, left, line = FONT_SIZE, {}, 2, 0
    for index, name in names.items():
        needed = side + 6 + round(_font().getlength(name)) + 16
        if left > 2 and left + needed > width:
            left, line = 2, line + 1
        places[index] = (left, line * CAPTION_HEIGHT)
        left += needed
    sheet = Image.new("RGB", (width, (line + 1) * CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (x, y) in places.items():
        draw.rectangle((x, y + 2, x + side, y + 2 + side), fill=class_colour(index), outline="black")
        draw.text((x + side + 6, y + 1), names[index], fill="black", font=_font())
    return np.asarray(sheet)


def comparison(
    picture: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    title: str,
    *,
    letters: str = "",
    width: int = 0,
    by_class: bool = False,
) -> np.ndarray:
    """A picture (H, W, 3), contours and errors side by side, each with `letters` and at least `width` pixels wide."""
    lines = "line reference, dashes ours" if by_class else "blue line reference, orange dashes ours"
    confused = ", purple another class" if by_class else ""
    drawn = [
        (title, picture),
        (lines, contours(picture, reference, prediction, by_class=by_class)),
        (f"striped blue missed, orange added{confused}", errors(picture, reference, prediction)),
    ]
    return panels([(about, lettered(one, letters) if letters else one) for about, one in drawn], width)


def save(picture: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _shortened(line: str, width: int) -> str:
    """The line, or as much of its start and its end as fits: ids differ at the end, names at the start."""
    keep = len(line)
    shortened = line
    while keep > 1 and _font().getlength(shortened) > width:
        keep -= 1
        shortened = line[: keep // 2] + "\N{HORIZONTAL ELLIPSIS}" + line[len(line) - (keep - keep // 2) :]
    return shortened


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    below, right = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=255)
