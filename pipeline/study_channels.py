"""The series of one study as the channels of one case, by rule; refused where a rule leaves a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.channel_rules import Channels, Rule, fits
from pipeline.headers import Header, Refusal, called

GRID_TOLERANCE = 0.01
"""Two series have one grid where no corner is further apart than this fraction of a voxel: headers are rounded."""


@dataclass(frozen=True)
class Unit:
    """What can be a channel: a series that is a regular volume, or a single image."""

    image: str
    series: str | None
    headers: tuple[Header, ...]

    @property
    def name(self) -> str:
        """How a sentence calls it: its description and its place."""
        described = str(self.headers[0].get("SeriesDescription", "without a description"))
        return f"{described!r} in {called(self.image)}"


def assigned(units: Sequence[Unit], rules: Channels) -> tuple[list[Unit], list[int]] | Refusal:
    """Which series of a study is which channel.

    Args:
        units: the usable series, or single images, of one study.
        rules: channel -> rule; the first channel's grid is that of the case.

    Returns:
        One unit per channel, and the numbers, from 1, of the channels that are to be resampled to channel 0; or why
        the study is no case, without the file.
    """
    chosen: list[Unit] = []
    for name, rule in rules.items():
        fitting = [unit for unit in units if fits(rule, unit.headers)]
        if len(fitting) != 1:
            return _no_single_one(name, rule, fitting, units)
        if fitting[0] in chosen:
            said = f"{fitting[0].name} fits two channels, {name} is the second: narrow one of the rules"
            return Refusal("one series for two channels", "", said)
        chosen.append(fitting[0])
    resampled = []
    for number, (name, rule) in enumerate(rules.items()):
        if said := _apart(chosen[0], chosen[number]):
            if not rule.resample or chosen[number].series is None or "frame of reference" in said:
                advice = "" if rule.resample else "; say `resample: true` in its rule, if it is to be resampled"
                return Refusal(
                    "another grid", "", f"{name}, {chosen[number].name}, {said} than the first channel{advice}"
                )
            resampled.append(number)
    return chosen, resampled


def _no_single_one(name: str, rule: Rule, fitting: Sequence[Unit], units: Sequence[Unit]) -> Refusal:
    if fitting:
        there = "; ".join(unit.name for unit in fitting)
        said = f"{len(fitting)} series fit channel {name} ({rule}): {there}: narrow its rule"
        return Refusal("several series for a channel", "", said)
    there = "; ".join(unit.name for unit in units) or "no usable series"
    return Refusal("no series for a channel", "", f"no series fits channel {name} ({rule}); there is {there}")


def _apart(one: Unit, two: Unit) -> str:
    """How the grid of a channel differs from the first one's; empty where it does not."""
    frames = {unit.headers[0].get("FrameOfReferenceUID") for unit in (one, two)}
    if len(frames) > 1 and one.series and two.series:
        return "has another frame of reference, so nobody knows where it lies,"
    shapes = [_shape(unit) for unit in (one, two)]
    if shapes[0] != shapes[1]:
        return f"has another size ({' x '.join(map(str, shapes[1]))} instead of {' x '.join(map(str, shapes[0]))})"
    if one.series is None or two.series is None:
        return ""
    corners = [_corners_mm(unit) for unit in (one, two)]
    apart_mm = float(np.linalg.norm(corners[0] - corners[1], axis=1).max())
    voxel_mm = min(_numbers(one.headers[0], "PixelSpacing").min(), _step_mm(one))
    return f"lies up to {apart_mm:.2f} mm elsewhere" if apart_mm > GRID_TOLERANCE * voxel_mm else ""


def _shape(unit: Unit) -> tuple[int, ...]:
    first = unit.headers[0]
    return first.get("Columns"), first.get("Rows"), len(unit.headers)


def _step_mm(unit: Unit) -> float:
    first, second = (_numbers(header, "ImagePositionPatient") for header in unit.headers[:2])
    return float(np.linalg.norm(second - first))


def _corners_mm(unit: Unit) -> np.ndarray:
    """The centres of the eight corner voxels, (8, 3) mm in LPS."""
    first, last = unit.headers[0], unit.headers[-1]
    rows, columns = np.split(_numbers(first, "ImageOrientationPatient"), 2)
    between_rows, between_columns = _numbers(first, "PixelSpacing")
    x, y = (unit.headers[0].get("Columns") - 1) * between_columns, (unit.headers[0].get("Rows") - 1) * between_rows
    starts = [_numbers(header, "ImagePositionPatient") for header in (first, last)]
    return np.array([start + i * x * rows + j * y * columns for start in starts for i in (0, 1) for j in (0, 1)])


def _numbers(header: Header, keyword: str) -> np.ndarray:
    """Of an attribute that `regular.in_order` has checked."""
    return np.array(header.get(keyword), dtype=np.float64)
