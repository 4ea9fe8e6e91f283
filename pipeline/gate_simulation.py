"""How often the gate's rule would err at this site: false acceptance and power by number of patients, by simulation.

The differences of the two models on the validation patients are moved so that their mean is exactly minus the margin,
patients are drawn from them with replacement, and the rule itself is applied (`pipeline.gate_judged.shown`): every
acceptance is a false one. Moved to 0, the models are equally good, and every acceptance is as it should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.gate_judged import shown
from pipeline.gate_rule import Rule
from pipeline.lower_bound import LEAST

PATIENTS = (5, 10, 20, 30, 50, 100)
"""Numbers of sealed patients that are always tried, beside the site's own."""

EXPERIMENTS = 4000
"""Of each number: a false acceptance of 5 % is then known to 0.3 points (one standard error)."""

AT_ONCE = 2**20
"""Differences that are drawn at once: 8 MB."""

FEW = 10
"""Validation patients, below which the table rests on too few to be more than a hint."""


def simulated(
    differences: Mapping[str, Sequence[float] | np.ndarray], rule: Rule, *, sealed: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """The table and how to read it, as a record keeps it.

    Args:
        differences: class -> difference of every validation patient, from `pipeline.gate_pairs.differences`.
        rule: of the gate.
        sealed: how many patients the site has sealed.
        seed: of the draws.

    Returns:
        `rows` of `table`, `notes`, `experiments` and `seed`.
    """
    numbers = sorted({*PATIENTS, *([sealed] if sealed and sealed >= LEAST else [])})
    rows = table(differences, rule, patients=numbers, seed=seed)
    return {"rows": rows, "notes": notes(differences, rule), "experiments": EXPERIMENTS, "seed": seed}


def table(
    differences: Mapping[str, Sequence[float] | np.ndarray],
    rule: Rule,
    *,
    patients: Sequence[int] = PATIENTS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Simulate the rule, class by class and number by number of patients.

    Args:
        differences: class -> difference (new - deployed) of every validation patient.
        rule: of the gate.
        patients: numbers of sealed patients, two or more each.
        seed: of the draws; the same differences give the same table.

    Returns:
        Rows of `class`, `patients`, `decides` (whether the rule decides with so many), `false_acceptance` (of a model
        exactly the margin worse), `power` (of one that is as good), `power_observed` (of one whose true mean is what
        the validation saw), `observed` (that mean) and `error` (the largest standard error of these shares). A class
        whose differences are all equal, or that fewer than two patients have, has no rows.
    """
    rows = []
    for name in rule.decides(list(differences)):
        values = np.asarray(differences[name], float)
        if _spread(values):
            random = np.random.default_rng(seed)
            rows += [_row(name, values, number, rule, random) for number in patients]
    return rows


def notes(differences: Mapping[str, Sequence[float] | np.ndarray], rule: Rule) -> list[str]:
    """What the table rests on, in sentences."""
    said = []
    for name in rule.decides(list(differences)):
        values = np.asarray(differences[name], float)
        count = f"{len(values)} validation patient{'s' if len(values) != 1 else ''}"
        if len(values) < LEAST:
            said.append(f"`{name}`: {count} with it, so the rule's error cannot be simulated.")
        elif not _spread(values):
            said.append(f"`{name}`: the difference is the same in all {count}, so there is nothing to simulate.")
        elif len(values) < FEW:
            said.append(f"`{name}`: the table rests on {count} and is no more than a hint.")
        else:
            said.append(f"`{name}`: drawn from the differences of {count}.")
    said.append(
        f"{EXPERIMENTS:,} experiments each. What no validation patient shows is not in it: if one sealed patient in "
        "fifty fares badly and no validation patient does, the rule errs more often than this."
    )
    return said


def _spread(values: np.ndarray) -> bool:
    return bool(len(values) >= LEAST and np.ptp(values) > 8 * np.finfo(float).eps)


def _row(name: str, values: np.ndarray, number: int, rule: Rule, random: np.random.Generator) -> dict[str, Any]:
    margin, observed = rule.margin_of(name), float(values.mean())
    passed = np.zeros(3)
    for start in range(0, EXPERIMENTS, step := max(1, AT_ONCE // number)):
        drawn = random.choice(values - observed, (min(step, EXPERIMENTS - start), number))
        passed += [shown(drawn + mean, margin, rule.alpha).sum() for mean in (-margin, 0.0, observed)]
    false, power, as_observed = (float(share) for share in passed / EXPERIMENTS)
    return {
        "class": name,
        "patients": number,
        "decides": number >= rule.minimum_patients,
        "false_acceptance": false,
        "power": power,
        "power_observed": as_observed,
        "observed": observed,
        "error": max((share * (1 - share) / EXPERIMENTS) ** 0.5 for share in (false, power, as_observed)),
    }
