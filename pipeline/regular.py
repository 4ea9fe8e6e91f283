"""Whether the headers of a series make one regular volume: in the order of its slices, or refused by rule and file.

Nothing here reads a file or knows a DICOM library: a header is whatever gives values by DICOM keyword.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

ORIENTATION_TOLERANCE = 1e-4
"""Direction cosines may differ by rounding between slices: 1e-4 is 0.05 mm over a field of view of 500 mm."""

UPRIGHT_TOLERANCE = 1e-3
"""Rows and columns are unit vectors at right angles up to this: some exports round cosines to three digits."""

PIXEL_SPACING_TOLERANCE = 1e-5
"""Pixel spacings are one up to this fraction: 0.005 pixels at the far end of a row of 512."""

SAME_PLACE_MM = 1e-3
"""Two slices closer than this are one slice twice; no scanner reconstructs at a micrometre."""

SPACING_TOLERANCE = 0.01
"""A gap may differ from the mean gap by this fraction, highdicom's own default."""

MULTIPLE_TOLERANCE = 0.05
"""A gap this close to 2, 3, ... of the usual gap, as a fraction of it, tells of missing slices, not of uneven ones."""

DRIFT_TOLERANCE = 0.25
"""No slice may lie further than this fraction of a pixel from where the affine puts it.

highdicom alone accepts a tilt of 2.5 degrees, 13 mm over a scan of 300 mm.
"""

ALIKE = {
    "FrameOfReferenceUID": ("different frames of reference", "keep only the slices of one scan"),
    "ImageOrientationPatient": ("mixed orientation", "keep only the slices of one volume (no localizer)"),
    "Rows": ("different sizes", "keep only the slices of one volume (no localizer)"),
    "Columns": ("different sizes", "keep only the slices of one volume (no localizer)"),
    "PixelSpacing": ("different spacings", "keep only the slices of one volume (no localizer)"),
}
"""What every slice of a volume must have, and have alike: keyword -> the rule where it differs, and what to do."""

NUMBERS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""Attributes that are numbers, and how many."""


class Refused(InputError):  # noqa: N818 - the name says what happened, the base class that it is an error
    """What is no regular volume: the sentence, and for a report the rule and the file at fault.

    Attributes:
        rule: two or three words, the same for every refusal of the kind: "missing slice", "mixed orientation", ...
        file: the `filename` of the header at fault, as that header gives it.
    """

    def __init__(self, message: str, rule: str = "", file: str = "") -> None:
        super().__init__(message, rule, file)  # all three, so that it survives the way from another process
        self.rule, self.file = rule, file

    def __str__(self) -> str:
        return str(self.args[0])


class Header(Protocol):
    """The header of one file: a pydicom Dataset, or anything else that gives values by DICOM keyword."""

    filename: Any

    def get(self, keyword: str, default: Any = None, /) -> Any:
        """The value of an attribute, or the default where it is absent."""


H = TypeVar("H", bound=Header)


def in_order(headers: Sequence[H], where: str) -> list[H]:
    """The headers of one series in the order of its slices, along the normal (row direction x column direction).

    The slices are one regular volume up to the tolerances above: positions and orientations in headers are rounded.

    Args:
        headers: of all files of the series, in any order.
        where: the folder or series, as the sentence of a refusal begins.

    Raises:
        Refused: with one of the rules "no slice", "two series", "multi-frame", "colour", "missing attribute",
            "unreadable attribute", "different frames of reference", "mixed orientation", "different sizes",
            "different spacings", "single slice", "slice twice", "missing slice", "uneven slices", "tilted gantry".
    """
    if not headers:
        raise Refused(f"{where} holds no slice: give the folder that holds the files of one series", "no slice")
    _check_kind(headers, where)
    for header in headers:
        _check_values(header, where)
    for keyword in ALIKE:
        _check_alike(headers, keyword, where)
    if len(headers) == 1:
        sentence = f"{where} holds one slice, {_name(headers[0])}, which has no slice distance: give two or more"
        raise Refused(sentence, "single slice", str(headers[0].filename))
    orientation = numbers(headers[0], "ImageOrientationPatient")
    normal = np.cross(orientation[:3], orientation[3:])
    normal /= np.linalg.norm(normal)
    ordered = sorted(headers, key=lambda header: float(normal @ numbers(header, "ImagePositionPatient")))
    positions_mm = np.array([numbers(header, "ImagePositionPatient") for header in ordered])  # (Z, 3), LPS
    _check_gaps(ordered, np.diff(positions_mm @ normal), where)
    _check_upright(ordered, positions_mm, normal, where)
    return ordered


def numbers(header: Header, keyword: str) -> NDArray[np.float64]:
    """The numbers of an attribute.

    Raises:
        ValueError: it is no list of numbers of the right length, or they are not finite.
    """
    try:
        values = np.array([float(value) for value in header.get(keyword)], dtype=np.float64)
    except TypeError:
        raise ValueError(f"{keyword} is no list of numbers") from None
    if values.shape != (NUMBERS[keyword],) or not np.isfinite(values).all():
        raise ValueError(f"{keyword} is not {NUMBERS[keyword]} numbers")
    return values


def _name(header: Header) -> str:
    return Path(str(header.filename)).name


def _check_kind(headers: Sequence[Header], where: str) -> None:
    """Refuse files that are no single grey slices, or not of one series."""
    first = headers[0]
    for header in headers:
        file = str(header.filename)
        if header.get("SeriesInstanceUID") != first.get("SeriesInstanceUID"):
            sentence = f"{_name(first)} and {_name(header)} are of two series: put each into a folder of its own"
            raise Refused(f"{where}: {sentence}", "two series", file)
        if header.get("NumberOfFrames") not in (None, "", 1):
            sentence = f"{_name(header)} is multi-frame: export it as one file per slice, or convert it to NIfTI"
            raise Refused(f"{where}: {sentence}", "multi-frame", file)
        if header.get("SamplesPerPixel") not in (None, "", 1):
            sentence = f"{_name(header)} is in colour: give a series with one value per voxel"
            raise Refused(f"{where}: {sentence}", "colour", file)


def _check_values(header: Header, where: str) -> None:
    """Refuse a header without the attributes that place a slice, or with values that place nothing."""
    for keyword in (*ALIKE, "ImagePositionPatient"):
        if header.get(keyword) in (None, "", []):
            sentence = f"{where}: {_name(header)} has no {keyword}: export the original images"
            raise Refused(sentence, "missing attribute", str(header.filename))
    try:
        rows, columns = np.split(numbers(header, "ImageOrientationPatient"), 2)
        numbers(header, "ImagePositionPatient")
        upright = np.allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=UPRIGHT_TOLERANCE)
        if not upright:
            raise ValueError("ImageOrientationPatient is not two unit vectors at right angles")
        if numbers(header, "PixelSpacing").min() <= 0:
            raise ValueError("PixelSpacing is not positive")
    except ValueError as error:
        sentence = f"{where}: of {_name(header)}, {error}: export the original images"
        raise Refused(sentence, "unreadable attribute", str(header.filename)) from None


def _check_alike(headers: Sequence[Header], keyword: str, where: str) -> None:
    """Refuse slices that differ in an attribute; those in the minority are at fault."""
    values = [_value(header, keyword) for header in headers]
    rounded = [tuple(np.round(value, 3)) if keyword in NUMBERS else value for value in values]
    usual = rounded.index(Counter(rounded).most_common(1)[0][0])
    rule, remedy = ALIKE[keyword]
    for header, value in zip(headers, values, strict=True):
        if not _same(keyword, value, values[usual]):
            raise Refused(
                f"{where}: slices differ in {keyword}, {_name(headers[usual])} has {_shown(values[usual])}, "
                f"{_name(header)} has {_shown(value)}: {remedy}",
                rule,
                str(header.filename),
            )


def _value(header: Header, keyword: str) -> tuple[Any, ...]:
    return tuple(numbers(header, keyword).tolist()) if keyword in NUMBERS else (header.get(keyword),)


def _shown(value: tuple[Any, ...]) -> str:
    return "\\".join(format(part, "g") if isinstance(part, float) else str(part) for part in value)


def _same(keyword: str, value: tuple[Any, ...], usual: tuple[Any, ...]) -> bool:
    if value == usual or keyword not in NUMBERS:
        return value == usual
    if keyword == "PixelSpacing":
        return np.allclose(value, usual, rtol=PIXEL_SPACING_TOLERANCE, atol=0)
    return np.allclose(value, usual, rtol=0, atol=ORIENTATION_TOLERANCE)


def _check_gaps(ordered: Sequence[Header], gaps_mm: NDArray[np.float64], where: str) -> None:
    """Refuse slices that are there twice, that are missing, or that are unevenly far apart."""
    twice, widest = int(gaps_mm.argmin()), int(gaps_mm.argmax())
    if gaps_mm[twice] < SAME_PLACE_MM:
        one, two = ordered[twice], ordered[twice + 1]
        sentence = f"{where}: {_name(one)} and {_name(two)} lie at the same place: remove the copy, or split the series"
        raise Refused(f"{sentence} where it was scanned twice", "slice twice", str(two.filename))
    if np.allclose(gaps_mm, gaps_mm.mean(), rtol=SPACING_TOLERANCE, atol=0):
        return
    usual_mm = float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])  # of two, the smaller: a hole only widens a gap
    told = (
        f"{where}: {gaps_mm[widest]:.2f} mm from {_name(ordered[widest])} to {_name(ordered[widest + 1])}, but "
        f"{usual_mm:.2f} mm between most slices"
    )
    steps = gaps_mm / usual_mm
    if np.abs(steps - steps.round()).max() <= MULTIPLE_TOLERANCE:
        sentence = f"{told}: a slice is missing or of another scan, export the whole series again"
        raise Refused(sentence, "missing slice", str(ordered[widest + 1].filename))
    sentence = f"{told}: the slices are unevenly far apart, export the whole series again or resample it to even ones"
    raise Refused(sentence, "uneven slices", str(ordered[widest + 1].filename))


def _check_upright(
    ordered: Sequence[Header], positions_mm: NDArray[np.float64], normal: NDArray[np.float64], where: str
) -> None:
    """Refuse a stack that leans: slices that lie beside the place where the affine of an upright one puts them."""
    step_mm = float((positions_mm[-1] - positions_mm[0]) @ normal) / (len(ordered) - 1)
    expected_mm = positions_mm[0] + np.arange(len(ordered))[:, None] * step_mm * normal
    drift_mm = np.linalg.norm(positions_mm - expected_mm, axis=1)
    furthest = int(drift_mm.argmax())
    if drift_mm[furthest] > DRIFT_TOLERANCE * numbers(ordered[0], "PixelSpacing").min():
        raise Refused(
            f"{where}: {_name(ordered[furthest])} lies {drift_mm[furthest]:.2f} mm from its place in "
            f"an upright stack (tilted gantry?): resample the series to an upright grid first",
            "tilted gantry",
            str(ordered[furthest].filename),
        )
