"""What the gate says before the sealed patients are opened: how many a decision takes, and who need not try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from pipeline.gate_pairs import Pairs, dice_of, pairs
from pipeline.gate_rule import Rule
from pipeline.gate_words import signed

CORRELATION = 0.9
"""Of the two models' Dice over patients, assumed before there is a new one: a patient who is hard for one is hard for
the other. Between trainings that we compared it was 0.97 to 0.99; 0.9 asks for more patients than that."""

MOST = 100_000
"""Patients, beyond which nobody counts."""


@dataclass(frozen=True)
class Needed:
    """How many sealed patients a decision takes.

    Attributes:
        patients: for the class that takes most; None: not to be said.
        have: sealed patients, where known.
        classes: class -> patients.
        sentence: for the site, before training.
    """

    patients: int | None
    have: int | None
    classes: dict[str, int | None]
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """As a record holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Screen:
    """Whether a new model may go to the sealed patients.

    Attributes:
        passed: it may.
        reason: a paragraph.
        classes: class -> `patients`, `difference` (mean), `margin`.
    """

    passed: bool
    reason: str
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As a record holds it."""
        return asdict(self)


def needed(
    deployed_evaluation: Mapping[str, Any], rule: Rule, *, have: int | None = None, correlation: float = CORRELATION
) -> Needed:
    """How many sealed patients it takes to accept a model that is as good as the deployed one with `rule.power`.

    Before training there are no differences, so their spread is taken from the deployed model's own Dice: with a
    correlation r of the two models' Dice it is sd * sqrt(2 (1 - r)). Patients without the class do not count for it, so
    more are needed in proportion. The formula is that of Student's t; the rule is a little more careful.

    Args:
        deployed_evaluation: of the deployed model on the validation patients.
        rule: of the gate.
        have: how many patients are sealed.
        correlation: assumed.
    """
    classes = {
        name: _needed_for(deployed_evaluation, name, rule, correlation) for name in _decides(deployed_evaluation, rule)
    }
    known = [count for count in classes.values() if count is not None]
    patients = max(known) if known and len(known) == len(classes) else None
    return Needed(patients, have, classes, _needed_sentence(patients, have, classes, rule, correlation))


def patients_for(spread: float, margin: float, rule: Rule) -> int:
    """Patients for `rule.power` where the differences are normal around 0; the rule's minimum at least.

    Args:
        spread: standard deviation of the differences.
        margin: of the class.
        rule: of the gate.

    Example:
        >>> patients_for(0.04, 0.02, Rule())  # the margin is half a standard deviation
        27
    """
    low, high = 1, MOST
    if _power(high, spread, margin, rule.alpha) < rule.power:
        return MOST
    while high - low > 1:  # power rises with every patient
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, spread, margin, rule.alpha) >= rule.power else (middle, high)
    return max(high, rule.minimum_patients)


def screen(new_validation: Mapping[str, Any], deployed_validation: Mapping[str, Any], rule: Rule) -> Screen:
    """Refuse a model that is worse by more than the margin on validation, in the mean, and leave the patients sealed.

    It asks for no certainty: a model that fails here would almost never pass the gate, and every opening of the sealed
    patients takes something from the next one.

    Args:
        new_validation: evaluation of the new model on the validation patients.
        deployed_validation: of the deployed model on the same.
        rule: of the gate.

    Raises:
        InputError: the evaluations are not of the same patients and classes, or the rule does not fit them.
    """
    paired = pairs(new_validation, deployed_validation)
    classes, failed = {}, []
    for name in rule.decides(list(paired)):
        mean, margin = _mean(paired[name]), rule.margin_of(name)
        classes[name] = {"patients": len(paired[name].deployed), "difference": mean, "margin": margin}
        if mean is not None and mean < -margin:
            failed.append(name)
    return Screen(not failed, _screen_reason(classes, failed), classes)


def _mean(pair: Pairs) -> float | None:
    return float(pair.differences.mean()) if pair.deployed else None


def _decides(evaluation: Mapping[str, Any], rule: Rule) -> list[str]:
    return rule.decides(list(evaluation["classes"][1:]))


def _needed_for(evaluation: Mapping[str, Any], name: str, rule: Rule, correlation: float) -> int | None:
    dice = dice_of(evaluation, name)
    if len(dice) < 2:
        return None
    spread = float(np.std(dice, ddof=1)) * float(np.sqrt(2 * (1 - correlation)))
    having = len(dice) / len(evaluation["patients"])
    return int(np.ceil(patients_for(spread, rule.margin_of(name), rule) / having))


def _power(patients: int, spread: float, margin: float, alpha: float) -> float:
    """That Student's test shows a difference of 0 to lie above -margin (noncentral t)."""
    if patients < 2 or spread <= 0:
        return float(patients >= 2)
    bound = stats.t.ppf(1 - alpha, patients - 1)
    return float(stats.nct.sf(bound, patients - 1, margin / spread * np.sqrt(patients)))


def _needed_sentence(
    patients: int | None, have: int | None, classes: Mapping[str, int | None], rule: Rule, correlation: float
) -> str:
    if patients is None:
        unknown = ", ".join(name for name, count in classes.items() if count is None)
        return (
            f"How many sealed patients a decision takes cannot be said: fewer than two validation patients have "
            f"{unknown}. The rule asks for {rule.minimum_patients} at least"
            + (f"; you have {have}." if have is not None else ".")
        )
    most = max(classes, key=lambda name: classes[name] or 0)
    said = f"To decide, about {patients} sealed patients are needed" + (
        f"; you have {have}." if have is not None else "."
    )
    why = (
        f" That is for `{most}` and a new model as good as the deployed one, which should then pass with "
        f"{100 * rule.power:.0f} %: from how much the deployed model's Dice varies over the validation patients, "
        f"assuming that the new model's follows it with a correlation of {correlation:g}."
    )
    if have is None or have >= patients:
        return said + why
    if have < rule.minimum_patients:
        return f"{said}{why} With fewer than {rule.minimum_patients} the verdict will be `not decidable`."
    return f"{said}{why} With {have}, a model as good as the deployed one will often be refused: it could not be shown."


def _screen_reason(classes: Mapping[str, Mapping[str, Any]], failed: list[str]) -> str:
    if not failed:
        return "On validation the new model is not worse than the deployed one by more than the margin in any class."
    told = "; ".join(
        f"`{name}`: {signed(classes[name]['difference'], -classes[name]['margin'])} of Dice in the mean of "
        f"{classes[name]['patients']} patients, where the margin is {signed(-classes[name]['margin'])}"
        for name in failed
    )
    return (
        f"Refused on validation: the new model is worse than the deployed one by more than the margin ({told}). The "
        "sealed patients were not opened for it. The deployed model stays."
    )
