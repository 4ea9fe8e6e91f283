"""What of an evaluation may leave a site: figures over at least five patients, nothing of a single one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import provenance
from pipeline.groups import LEAST
from pipeline.verdicts import NETWORK

SAID = "overlap_with_training_patients"
"""The key of an evaluation that says whether the training has seen its patients."""


@dataclass(frozen=True)
class Figures:
    """Aggregates of an evaluation.

    Attributes:
        unit: what is counted: patient, cluster or image.
        patients: how many; None below `LEAST`, where with few a mean would give single values away.
        dice: class -> mean and, where there is one, its 95 % interval; empty below `LEAST`.
        overlap: what is known of patients and pixels that the training has seen too; empty: nothing is said.
    """

    unit: str
    patients: int | None
    dice: Mapping[str, tuple[float, tuple[float, float] | None]]
    overlap: str = ""


def figures(evaluation: Mapping[str, Any]) -> Figures:
    """The aggregates of the contents of an evaluation.json."""
    unit, rows = str(evaluation["unit"]), evaluation["patients"]
    if len(rows) < LEAST:
        return Figures(unit, None, {})
    summary = evaluation["summary"][NETWORK]
    intervals = (summary.get("interval_95") or {}).get("dice") or {}
    scored = {
        name: sum(row[NETWORK]["dice"].get(name) is not None for row in rows) for name in evaluation["classes"][1:]
    }
    dice = {
        name: (float(summary["dice"][name]), _pair(intervals.get(name)))
        for name in evaluation["classes"][1:]
        if scored[name] >= LEAST and summary["dice"].get(name) is not None
    }
    return Figures(unit, len(rows), dice, provenance.sentence(evaluation) if SAID in evaluation else "")


def count(number: int, unit: str = "patient") -> str:
    """How many patients, as it may be told: `12 patients`, or `fewer than 5 patients`."""
    return f"{number} {unit}s" if number >= LEAST else f"fewer than {LEAST} {unit}s"


def _pair(interval: Any) -> tuple[float, float] | None:
    return (float(interval[0]), float(interval[1])) if interval else None
