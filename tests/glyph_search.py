"""Looks for a burnt-in text in pictures, by correlation with its letters, in every orientation and in several sizes."""

import io

import numpy as np
from PIL import Image
from skimage.feature import match_template

from tests.byte_search import PNG, everything

FOUND = 0.65
"""Correlation from which the letters count as found; what the tests measure lies far on both sides of it."""

JPEG = b"\xff\xd8\xff"


def pictures(folders):
    """Every different picture in files, in archives and in pages: pairs of a name and (H, W) float32, grey."""
    seen = set()
    for name, data in everything(folders):
        if data.startswith((PNG, JPEG)) and data not in seen:
            seen.add(data)
            yield name, np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)


def strongest(picture, glyphs, scales):
    """The largest correlation of letters with a part of a picture, in eight orientations.

    Args:
        picture: (H, W) grey.
        glyphs: (H, W) bool, the letters as they were burnt in.
        scales: how many of the picture's pixels one pixel of the letters may be wide.
    """
    picture = picture.astype(np.float32)
    letters = np.pad(glyphs.astype(np.float64), 1)
    turned = [np.rot90(side, turns) for side in (letters, letters[:, ::-1]) for turns in range(4)]
    best = 0.0
    for scale in scales:
        size = [max(1, round(edge / scale)) for edge in picture.shape]
        small = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX))
        small = small + np.random.default_rng(0).normal(size=small.shape)  # where all is white, rounding correlates
        for template in turned:
            if all(np.less_equal(template.shape, small.shape)):
                best = max(best, float(np.abs(match_template(small, template)).max()))
    return best
