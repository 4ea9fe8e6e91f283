"""Patients in groups by a column of the manifest: values, quartile bands of numbers, and small groups put together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.manifest import FOLD, Manifest

LEAST = 5
"""Patients of the smallest group that is shown: fewer say nothing, and may be recognised."""

RARE = f"fewer than {LEAST} each"
MIXED = "differs between cases"
MISSING = "not stated"
"""Groups that no value names: patients of small groups together, with several values, and without any."""

CATEGORIES = 10
"""Numbers of more different values than that are cut into bands."""

BANDS = 4
"""Quartiles, where there are patients enough for that many bands of `LEAST`."""

IDENTIFIER_SHARE = 0.9
"""Different values per patient from which a column is taken for an identifier."""

IDENTIFIER_DIGITS = 6
"""Of whole numbers that may be identifiers or dates rather than a measurement."""

NO_VALUES = frozenset({"", "nan", "none", "null", "na", "n/a", "unknown"})
"""How tables say that they do not know."""


class Grouping(NamedTuple):
    """The group of every patient by one column, all groups in order; `edges` of the bands where numbers were cut."""

    of: Mapping[str, str]
    order: Sequence[str]
    edges: tuple[float, ...] = ()

    def shown(self) -> list[str]:
        """The groups with `LEAST` patients or more, in order."""
        sizes = Counter(self.of.values())
        return [name for name in (*self.order, MIXED, MISSING, RARE) if sizes[name] >= LEAST]


Values = Mapping[str, Sequence[Any]]
"""A column: patient -> the value of each of the patient's cases."""


def columns(manifest: Manifest, cases: Mapping[str, str]) -> dict[str, dict[str, list[Any]]]:
    """The extra columns of a manifest, of some of its cases.

    Args:
        manifest: where the columns stand.
        cases: id -> patient.

    Returns:
        Column -> patient -> the value of each of the patient's cases, None where a case has none.
    """
    extra = {case.id: case.model_extra or {} for _, case in manifest.cases() if case.id in cases}
    names = dict.fromkeys(name for row in extra.values() for name in row if name != FOLD)
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in names}
    for case, patient in cases.items():
        for name in names:
            found[name].setdefault(patient, []).append(extra.get(case, {}).get(name))
    return found


def grouping(values: Values) -> Grouping | str:
    """Put patients into groups by one column, or say why not.

    A patient whose cases have different values is in a group of their own, `MIXED`; of numbers that are cut into bands,
    the mean of the patient's cases counts. Patients of groups smaller than `LEAST` are put together.

    Args:
        values: of the column.

    Returns:
        The groups, or a reason why there are none.
    """
    stated = {patient: [v for v in map(_tidied, its) if v is not None] for patient, its in values.items()}
    different = {value for its in stated.values() for value in its}
    if not different:
        return "no case states it"
    numbers = {value: _number(value) for value in different}
    numeric = all(number is not None for number in numbers.values())
    if len(values) >= LEAST and _identifies(different, len(values), numeric):
        return "nearly as many values as patients: an identifier"
    if numeric and len(different) > CATEGORIES:
        means = {p: float(np.mean([numbers[v] for v in its])) for p, its in stated.items() if its}
        edges = _edges(list(means.values()))
        bands = [_band(edge, edges) for edge in (*edges, math.inf)]
        found = Grouping({p: _band(means[p], edges) if p in means else MISSING for p in values}, bands, edges)
    else:
        of = {p: MISSING if not its else its[0] if len(set(its)) == 1 else MIXED for p, its in stated.items()}
        found = Grouping(of, sorted(different, key=lambda value: (numbers[value] or 0.0, value)))
    found = _without_small(found)
    if len(found.shown()) < 2:
        return f"fewer than two groups of {LEAST} or more"
    return found


def _tidied(value: Any) -> str | None:
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value) if whole else value).strip()
    return None if value is None or text.lower() in NO_VALUES else text


def _number(text: str) -> float | None:
    """A measurement; `007` is none."""
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _identifies(different: set[str], patients: int, numeric: bool) -> bool:
    measured = numeric and not all(value.isdigit() and len(value) >= IDENTIFIER_DIGITS for value in different)
    return not measured and len(different) >= IDENTIFIER_SHARE * patients


def _edges(values: Sequence[float]) -> tuple[float, ...]:
    """Where numbers are cut: quantiles to 3 digits, which tell no patient's value to the last digit."""
    bands = max(1, min(BANDS, len(values) // LEAST))
    quantiles = np.quantile(values, [number / bands for number in range(1, bands)])
    return tuple(sorted({float(f"{edge:.3g}") for edge in quantiles}))


def _band(value: float, edges: Sequence[float]) -> str:
    """`up to 40`, `above 40 up to 60`, `above 60`."""
    place = int(np.searchsorted(edges, value))  # an edge belongs to the band below it
    low = f"above {edges[place - 1]:g}" if place else ""
    high = f"up to {edges[place]:g}" if place < len(edges) else ""
    return " ".join(part for part in (low, high) if part) or "all"


def _without_small(found: Grouping) -> Grouping:
    sizes = Counter(found.of.values())
    return found._replace(of={p: group if sizes[group] >= LEAST else RARE for p, group in found.of.items()})
