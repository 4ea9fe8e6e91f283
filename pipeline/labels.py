"""Raw label values become class indices by declaration: a number, a range of numbers, or a colour; never by guessing.

A declaration is text: `255` or `-2000`, `128..255` (both ends included), `#ff0000` (of an RGB label).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError

JPEG_SUFFIXES = (".jpg", ".jpeg")
"""Files that cannot hold labels: the compression changes values."""

NUMBERS = re.compile(r"(-?\d+)(?:\.\.(-?\d+))?")
COLOUR = re.compile(r"#([0-9a-fA-F]{6})")


class RawValues(NamedTuple):
    """Raw values that mean one class, both ends included; a colour is the number 65536 red + 256 green + blue."""

    low: int
    high: int
    is_colour: bool


def parse_raw(text: str) -> RawValues:
    """Read the declaration of raw values.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_raw("128..255"), parse_raw("#0000ff")
        (RawValues(low=128, high=255, is_colour=False), RawValues(low=255, high=255, is_colour=True))
    """
    numbers, colour = NUMBERS.fullmatch(text), COLOUR.fullmatch(text)
    if colour:
        value = int(colour[1], 16)
        return RawValues(value, value, True)
    if not numbers:
        raise ValueError(f"{text!r} is no raw value: write a number as 255, a range as 128..255 or a colour as #ff0000")
    low, high = int(numbers[1]), int(numbers[2] or numbers[1])
    if low > high:
        raise ValueError(f"the range {text!r} is empty: write the lower end first")
    return RawValues(low, high, False)


def check(label_values: Mapping[str, int]) -> None:
    """Refuse declarations that contradict each other.

    Raises:
        ValueError: one cannot be read, two overlap, or numbers stand beside colours.
    """
    declared = sorted((parse_raw(text), text) for text in label_values)
    if len({raw.is_colour for raw, _ in declared}) > 1:
        raise ValueError(f"numbers and colours in one table: {', '.join(text for _, text in declared)}")
    for (one, text), (other, other_text) in pairwise(declared):
        if other.low <= one.high:
            raise ValueError(f"the raw values {text} and {other_text} overlap")


def to_class_indices(raw: np.ndarray, label_values: Mapping[str, int], source: str) -> np.ndarray:
    """Map raw label values to class indices by declaration.

    Args:
        raw: (1, H, W), any dtype; (3, H, W) uint8 where colours are declared.
        label_values: declaration -> class index.
        source: what to name in an error.

    Returns:
        (1, H, W) uint8.

    Raises:
        DataError: the label has another number of channels, colours not of 8 bits, or a raw value that is not
            declared.
    """
    table = [(parse_raw(text), index) for text, index in label_values.items()]
    coloured = any(declared.is_colour for declared, _ in table)
    if raw.shape[0] != (3 if coloured else 1):
        wanted = "three channels, its classes being declared as colours" if coloured else "one channel"
        raise DataError(f"{source}: a label must have {wanted}, this has {raw.shape[0]}")
    if coloured and raw.dtype != np.uint8:
        raise DataError(f"{source}: colours must be of 8 bits, these are {raw.dtype}; save it as an 8-bit PNG or TIFF")
    if coloured:
        raw = np.tensordot([65536, 256, 1], raw.astype(np.int64), 1)[None]  # (3, H, W) -> (1, H, W)
    indices = np.zeros(raw.shape, np.uint8)
    known = np.zeros(raw.shape, bool)
    for declared, index in table:
        mask = (raw >= declared.low) & (raw <= declared.high)
        indices[mask] = index
        known |= mask
    if not known.all():
        strange = [_shown(value, coloured) for value in np.unique(raw[~known])[:6]]
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise DataError(
            f"{source}: raw label values {shown} are not declared (declared: {', '.join(_in_order(label_values))}); "
            "correct the mask or declare them in the manifest's `label_values`"
        )
    return indices


def _shown(value: float, coloured: bool) -> str:
    return f"#{int(value):06x}" if coloured else f"{value:g}"


def _in_order(label_values: Mapping[str, int]) -> list[str]:
    return sorted(label_values, key=parse_raw)
