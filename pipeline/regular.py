"""Whether the headers of a series make one regular volume: in the order of its slices, or refused by rule and file.

Nothing here reads a file or knows a DICOM library: a header is whatever gives values by DICOM keyword.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

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

SINGLE = (None, "", 1)
"""Values of NumberOfFrames and SamplesPerPixel of one grey slice."""

NUMBERS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""Attributes that are numbers, and how many."""


class Refused(InputError):  # noqa: N818 - the name says what happened, the base class that it is an error
    """What is no regular volume: the sentence, and for a report the rule and the file at fault.

    Attributes:
        rule: two or three words, the same for every refusal of the kind: "missing slice", "mixed orientation", ...
        file: the `filename` of the header at fault, as that header gives it.
    """

    def __init__(self, message: str, rule: str = "", file: str = "") -> None:
        super().__init__(message)
        self.rule, self.file = rule, file


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
    slices = [_placed(header, where) for header in headers]
    for keyword in ALIKE:
        _check_alike(slices, keyword, where)
    if len(slices) == 1:
        sentence = f"{where} holds one slice, {slices[0].name}, which has no slice distance: give two or more"
        raise Refused(sentence, "single slice", slices[0].file)
    orientation = slices[0].values["ImageOrientationPatient"]
    normal = np.cross(orientation[:3], orientation[3:])
    normal /= np.linalg.norm(normal)
    slices.sort(key=lambda one: float(normal @ one.values["ImagePositionPatient"]))
    positions_mm = np.array([one.values["ImagePositionPatient"] for one in slices])  # (Z, 3), LPS
    _check_gaps(slices, np.diff(positions_mm @ normal), where)
    _check_upright(slices, positions_mm, normal, where)
    return [one.header for one in slices]


@dataclass(frozen=True)
class _Slice(Generic[H]):
    """A header with its values, read once: decimal strings are slow to convert."""

    header: H
    values: dict[str, tuple[Any, ...]]

    @property
    def file(self) -> str:
        return str(self.header.filename)

    @property
    def name(self) -> str:
        return Path(self.file).name


def _check_kind(headers: Sequence[Header], where: str) -> None:
    """Refuse files that are no single grey slices, or not of one series."""
    series = headers[0].get("SeriesInstanceUID")
    for header in headers:
        name, file = Path(str(header.filename)).name, str(header.filename)
        if header.get("SeriesInstanceUID") != series:
            first = Path(str(headers[0].filename)).name
            sentence = f"{first} and {name} are of two series: put each into a folder of its own"
            raise Refused(f"{where}: {sentence}", "two series", file)
        if header.get("NumberOfFrames") not in SINGLE or header.get("SharedFunctionalGroupsSequence") is not None:
            sentence = f"{name} is multi-frame: export it as one file per slice, or convert it to NIfTI"
            raise Refused(f"{where}: {sentence}", "multi-frame", file)
        grey = str(header.get("PhotometricInterpretation") or "MONOCHROME2").startswith("MONOCHROME")
        if header.get("SamplesPerPixel") not in SINGLE or not grey:
            raise Refused(f"{where}: {name} is in colour: give a series with one value per voxel", "colour", file)


def _placed(header: H, where: str) -> _Slice[H]:
    """A header with the values that place its slice; refused where one is missing or places nothing."""
    name, file = Path(str(header.filename)).name, str(header.filename)
    values = {}
    try:
        for keyword in (*ALIKE, "ImagePositionPatient"):
            value = header.get(keyword)
            if value is None or value in ("", []):
                sentence = f"{where}: {name} has no {keyword}: export the original images"
                raise Refused(sentence, "missing attribute", file)
            values[keyword] = _numbers(value, keyword) if keyword in NUMBERS else (value,)
        _check_plane(values["ImageOrientationPatient"], values["PixelSpacing"])
    except (TypeError, ValueError) as error:
        sentence = f"{where}: of {name}, {error}: export the original images"
        raise Refused(sentence, "unreadable attribute", file) from None
    return _Slice(header, values)


def _numbers(value: Any, keyword: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in value)
    if len(values) != NUMBERS[keyword] or not all(map(isfinite, values)):
        raise ValueError(f"{keyword} is not {NUMBERS[keyword]} numbers")
    return values


def _check_plane(orientation: tuple[float, ...], spacing_mm: tuple[float, ...]) -> None:
    row, column = orientation[:3], orientation[3:]
    for one, two, expected in ((row, row, 1), (column, column, 1), (row, column, 0)):
        if abs(sum(a * b for a, b in zip(one, two, strict=True)) - expected) > UPRIGHT_TOLERANCE:
            raise ValueError("ImageOrientationPatient is not two unit vectors at right angles")
    if min(spacing_mm) <= 0:
        raise ValueError("PixelSpacing is not positive")


def _check_alike(slices: Sequence[_Slice[Any]], keyword: str, where: str) -> None:
    """Refuse slices that differ in an attribute; those in the minority are at fault."""
    counted = Counter(one.values[keyword] for one in slices)
    if len(counted) == 1:
        return
    usual = counted.most_common(1)[0][0]
    rule, remedy = ALIKE[keyword]
    for one in slices:
        value = one.values[keyword]
        if not _same(keyword, value, usual):
            other = next(one for one in slices if one.values[keyword] == usual)
            raise Refused(
                f"{where}: slices differ in {keyword}, {other.name} has {_shown(usual)}, "
                f"{one.name} has {_shown(value)}: {remedy}",
                rule,
                one.file,
            )


def _shown(value: tuple[Any, ...]) -> str:
    return "\\".join(format(part, "g") if isinstance(part, float) else str(part) for part in value)


def _same(keyword: str, value: tuple[Any, ...], usual: tuple[Any, ...]) -> bool:
    """Whether two values are one, up to rounding where they are numbers."""
    if keyword == "PixelSpacing":
        return np.allclose(value, usual, rtol=PIXEL_SPACING_TOLERANCE, atol=0)
    if keyword == "ImageOrientationPatient":
        return np.allclose(value, usual, rtol=0, atol=ORIENTATION_TOLERANCE)
    return value == usual


def _check_gaps(ordered: Sequence[_Slice[Any]], gaps_mm: NDArray[np.float64], where: str) -> None:
    """Refuse slices that are there twice, that are missing, or that are unevenly far apart."""
    twice, widest = int(gaps_mm.argmin()), int(gaps_mm.argmax())
    if gaps_mm[twice] < SAME_PLACE_MM:
        one, two = ordered[twice], ordered[twice + 1]
        sentence = f"{where}: {one.name} and {two.name} lie at the same place: remove the copy, or split the series"
        raise Refused(f"{sentence} where it was scanned twice", "slice twice", two.file)
    if np.allclose(gaps_mm, gaps_mm.mean(), rtol=SPACING_TOLERANCE, atol=0):
        return
    usual_mm = float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])  # of two, the smaller: a hole only widens a gap
    told = (
        f"{where}: {gaps_mm[widest]:.2f} mm from {ordered[widest].name} to {ordered[widest + 1].name}, but "
        f"{usual_mm:.2f} mm between most slices"
    )
    steps = gaps_mm / usual_mm
    if np.abs(steps - steps.round()).max() <= MULTIPLE_TOLERANCE:
        sentence = f"{told}: a slice is missing or of another scan, export the whole series again"
        raise Refused(sentence, "missing slice", ordered[widest + 1].file)
    sentence = f"{told}: the slices are unevenly far apart, export the whole series again or resample it to even ones"
    raise Refused(sentence, "uneven slices", ordered[widest + 1].file)


def _check_upright(
    ordered: Sequence[_Slice[Any]], positions_mm: NDArray[np.float64], normal: NDArray[np.float64], where: str
) -> None:
    """Refuse a stack that leans: slices that lie beside the place where the affine of an upright one puts them."""
    step_mm = float((positions_mm[-1] - positions_mm[0]) @ normal) / (len(ordered) - 1)
    expected_mm = positions_mm[0] + np.arange(len(ordered))[:, None] * step_mm * normal
    drift_mm = np.linalg.norm(positions_mm - expected_mm, axis=1)
    furthest = int(drift_mm.argmax())
    if drift_mm[furthest] > DRIFT_TOLERANCE * min(ordered[0].values["PixelSpacing"]):
        raise Refused(
            f"{where}: {ordered[furthest].name} lies {drift_mm[furthest]:.2f} mm from its place in "
            f"an upright stack (tilted gantry?): resample the series to an upright grid first",
            "tilted gantry",
            ordered[furthest].file,
        )
