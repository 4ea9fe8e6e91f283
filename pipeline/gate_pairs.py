"""Two evaluations of the same patients side by side: Dice of both models, class by class, paired by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.patient_scores import NETWORK
from pipeline.retrain_record import Scores

SAME = {
    "partition": "partition",
    "manifest_sha256": "manifest",
    "pixels_sha256": "division of the cases",
}
"""What two evaluations must agree on, where both say it."""

EMPTY = "false_positives_where_empty"
"""A patient's cases without a class in the reference, and what was predicted there."""


@dataclass(frozen=True)
class FalsePositives:
    """Patients who have nothing of a class, and those of them in whom a model found some of it all the same."""

    patients: int
    deployed: int
    new: int
    deployed_pixels: int
    new_pixels: int


@dataclass(frozen=True)
class Pairs:
    """One class in all patients.

    Attributes:
        deployed: patient -> Dice, of the patients who have the class.
        new: likewise, the same patients.
        absent: what happened in the others, whose Dice is not defined.
    """

    name: str
    deployed: dict[str, float]
    new: dict[str, float]
    absent: FalsePositives

    @property
    def by_patient(self) -> dict[str, float]:
        """Patient -> new - deployed."""
        return {patient: self.new[patient] - dice for patient, dice in self.deployed.items()}

    @property
    def differences(self) -> np.ndarray:
        """(patients,) float64, new - deployed."""
        return np.array(list(self.by_patient.values()), float)


def pairs(new: Mapping[str, Any], deployed: Mapping[str, Any]) -> dict[str, Pairs]:
    """Pair two evaluations.

    Args:
        new: evaluation.json of the new model.
        deployed: of the deployed one.

    Returns:
        Class -> its pairs, without the background.

    Raises:
        InputError: they are of different patients, cases, classes or references.
    """
    _refuse_strangers(new, deployed)
    of_new, of_deployed = _rows(new), _rows(deployed)
    return {name: _of_class(name, of_new, of_deployed) for name in deployed["classes"][1:]}


def differences(new: Mapping[str, Any], deployed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Class -> (patients,) paired differences of Dice; what `pipeline.gate_simulation` takes, of the validation."""
    return {name: pair.differences for name, pair in pairs(new, deployed).items()}


def means(evaluation: Mapping[str, Any]) -> Scores:
    """Mean Dice per class over the patients of one evaluation, as a record keeps it of the validation."""
    rows = _rows(evaluation)
    found = {name: [d for row in rows.values() if (d := _dice(row, name)) is not None] for name in _named(evaluation)}
    return Scores(
        patients=len(rows),
        dice={name: float(np.mean(dice)) if dice else None for name, dice in found.items()},
        defined={name: len(dice) for name, dice in found.items()},
    )


def dice_of(evaluation: Mapping[str, Any], name: str) -> list[float]:
    """Dice of one class, of every patient who has it."""
    return [dice for row in _rows(evaluation).values() if (dice := _dice(row, name)) is not None]


def _named(evaluation: Mapping[str, Any]) -> list[str]:
    return list(evaluation["classes"][1:])


def _rows(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {row["patient"]: row[NETWORK] for row in evaluation["patients"]}


def _refuse_strangers(new: Mapping[str, Any], deployed: Mapping[str, Any]) -> None:
    for key, what in SAME.items():
        if new.get(key, deployed.get(key)) != deployed.get(key, new.get(key)):
            raise InputError(
                f"the evaluations of the new and of the deployed model differ in their {what}; evaluate both on one "
                "manifest"
            )
    if _named(new) != _named(deployed):
        raise InputError(
            f"the new model has the classes {', '.join(_named(new))}, the deployed one {', '.join(_named(deployed))}; "
            "models of different classes cannot be compared"
        )
    ours, theirs = ({row["patient"] for row in table["patients"]} for table in (new, deployed))
    if ours != theirs:
        raise InputError(
            f"the evaluations are of different patients: {len(ours - theirs)} only of the new model, "
            f"{len(theirs - ours)} only of the deployed one; evaluate both on one manifest"
        )


def _of_class(name: str, new: Mapping[str, Any], deployed: Mapping[str, Any]) -> Pairs:
    scores = {patient: (_dice(deployed[patient], name), _dice(new[patient], name)) for patient in deployed}
    if torn := [patient for patient, (a, b) in scores.items() if (a is None) != (b is None)]:
        raise InputError(
            f"{torn[0]}: has `{name}` in the reference of one evaluation and not in that of the other; evaluate both "
            "models on the same references"
        )
    without = [patient for patient, (a, _) in scores.items() if a is None]
    (few, pixels), (new_few, new_pixels) = (_wrong(rows, without, name) for rows in (deployed, new))
    return Pairs(
        name,
        {patient: a for patient, (a, _) in scores.items() if a is not None},
        {patient: b for patient, (_, b) in scores.items() if b is not None},
        FalsePositives(len(without), few, new_few, pixels, new_pixels),
    )


def _dice(row: Mapping[str, Any], name: str) -> float | None:
    value = row["dice"].get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def _wrong(rows: Mapping[str, Any], patients: list[str], name: str) -> tuple[int, int]:
    """Patients with false positives, and the pixels of these."""
    found = [rows[patient].get(EMPTY, {}).get(name, {}).get("pixels", 0) for patient in patients]
    return sum(pixels > 0 for pixels in found), int(sum(found))
