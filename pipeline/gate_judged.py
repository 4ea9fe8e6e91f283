"""One class in the sealed patients, or in a subgroup of them: its figures, and what they say against the margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline import lower_bound
from pipeline.gate_pairs import FalsePositives, Pairs
from pipeline.gate_rule import Rule

Found = Literal["not worse", "worse", "not shown", "too few", "absent"]
"""Of a class: shown not to be worse by the margin; shown to be worse by it; neither; too few patients to say; none."""


@dataclass(frozen=True)
class Judged:
    """One class, or one class in one subgroup, in the sealed patients.

    Attributes:
        name: of the class.
        patients: who have it.
        left_out: who do not: their Dice is not defined.
        deployed: mean Dice of the deployed model.
        new: of the new one.
        difference: new - deployed, the mean over patients.
        lower: one-sided bound of it; None with fewer than two patients.
        upper: likewise from above.
        margin: below minus which the lower bound may not lie.
        found: what that says.
        decides: whether the verdict hangs on it.
        by_patient: pseudonym -> difference.
        absent: what was found in patients who have nothing of it.
        column: of the subgroup; empty: all patients.
        group: likewise.
    """

    name: str
    patients: int
    left_out: int
    deployed: float | None
    new: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    margin: float
    found: Found
    decides: bool
    by_patient: dict[str, float]
    absent: FalsePositives | None = None
    column: str = ""
    group: str = ""

    @property
    def blocks(self) -> bool:
        """Whether a subgroup alone refuses the model: its interval lies wholly below minus the margin."""
        return bool(self.column) and self.found == "worse"


def figures(members: Mapping[str, float], pair: Pairs, rule: Rule, least: int) -> dict[str, Any]:
    """What `Judged` says of all patients who have a class and of those of a subgroup alike.

    Args:
        members: patient -> difference.
        pair: all patients of the class.
        rule: of the gate.
        least: patients, below which nothing is said.
    """
    values, margin = np.array(list(members.values()), float), rule.margin_of(pair.name)
    enough = len(values) >= lower_bound.LEAST
    low = float(lower_bound.lower(values, rule.alpha)) if enough else None
    high = float(lower_bound.upper(values, rule.alpha)) if enough else None
    return {
        "name": pair.name,
        "patients": len(values),
        "deployed": float(np.mean([pair.deployed[patient] for patient in members])) if members else None,
        "new": float(np.mean([pair.new[patient] for patient in members])) if members else None,
        "difference": float(values.mean()) if members else None,
        "lower": low,
        "upper": high,
        "margin": margin,
        "found": _found(values, rule, margin, least),
        "by_patient": dict(members),
    }


def shown(differences: np.ndarray, margin: float, alpha: float) -> np.ndarray:
    """Whether differences show that a model is not worse by the margin: the rule itself, here and in its simulation.

    Args:
        differences: (..., patients) of Dice, new - deployed; two patients or more.
        margin: of the class.
        alpha: of the rule.

    Returns:
        (...) bool.
    """
    return lower_bound.lower(differences, alpha) > -margin


def _found(values: np.ndarray, rule: Rule, margin: float, least: int) -> Found:
    if not len(values):
        return "absent"
    if len(values) < max(least, lower_bound.LEAST):
        return "too few"
    if shown(values, margin, rule.alpha):
        return "not worse"
    return "worse" if lower_bound.upper(values, rule.alpha) < -margin else "not shown"
