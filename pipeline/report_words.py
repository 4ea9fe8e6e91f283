"""Numbers, counts and tables as a report words them for a doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

NONE = "\N{EN DASH}"
"""Where a value is not defined; a screen reader is told in words, see the template."""

PLURALS = {"class": "classes", "study": "studies", "series": "series"}


UNITS = {
    "cluster": "A cluster is a group of images that look alike; whose they are is not known, so one patient may be in "
    "several clusters.",
    "image": "Whose the images are is not known, so one patient may be in several of them.",
}
"""What a unit is that is no patient."""


@dataclass(frozen=True)
class Table:
    """A table of a report: the first cell of each row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    text_columns: int = 1
    """Columns from the left that hold words, not figures."""


def things(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    """What is scored: ("volume", "voxel") or ("image", "pixel")."""
    spacings = [case.get("spacing_mm") for case in evaluation["cases"]]
    return ("volume", "voxel") if any(spacing and len(spacing) == 3 for spacing in spacings) else ("image", "pixel")


def counted(number: int, what: str) -> str:
    """`1 patient`, `1,200 patients`."""
    return f"{number:,} {what if number == 1 else plural(what)}"


def plural(what: str) -> str:
    """`patients` of `patient`."""
    return PLURALS.get(what, f"{what}s")


def figure(value: float | None, digits: int = 3) -> str:
    """A score; a dash where it is not defined."""
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign and a minus that is one."""
    return NONE if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None, digits: int = 2) -> str:
    """A share in per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def significant(value: float | None, unit: str) -> str:
    """A size with three figures that count, and its unit."""
    return NONE if value is None else f"{value:.3g} {unit}".replace("-", "\N{MINUS SIGN}")


def between(
    ends: Sequence[float] | None, digits: int = 3, *, scale: float = 1.0, unit: str = "", sign: bool = False
) -> str:
    """The two ends of an interval, `sign` with a plus before what is above 0."""
    if not ends:
        return NONE
    low, high = (f"{end * scale:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}") for end in ends)
    return f"{low} to {high}{unit}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def moment(time: datetime | None) -> str:
    """A date that no country reads in another order, with the time in UTC."""
    return "not known" if time is None else f"{time.day} {time:%B %Y, %H:%M} UTC"


def duration(start: datetime | None, end: datetime | None) -> str:
    """How long something took, in the unit that a person would use."""
    if start is None or end is None:
        return "not known"
    seconds = (end - start).total_seconds()
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}s"
    return f"{seconds:.0f} seconds"
