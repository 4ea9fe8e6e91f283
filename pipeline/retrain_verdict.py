"""What a retraining says of its new model beside the gate: whether validation lets it through, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import gate, gate_pairs
from pipeline.gate_rule import Rule
from pipeline.release_figures import count
from pipeline.retrain_plan import FINE_TUNED
from pipeline.retrain_record import RetrainRecord


def screened(new: Mapping[str, Any], deployed: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """Whether the new model may go to the sealed patients: not worse in any class, and better on the whole.

    A fine-tuning keeps its best epoch. The deployed model is that training's epoch 0: where no epoch was better on
    validation, it is the best there is, and nothing would be gained by opening the sealed patients.

    Args:
        new: evaluation of the new model on validation.
        deployed: of the deployed model.
        rule: of the gate.

    Returns:
        `gate.Screen.as_json()`.
    """
    found = gate.screen(new, deployed, rule).as_json()
    if not found["passed"]:
        return found
    gain = _gain(new, deployed, rule)
    if gain is not None and gain <= 0:
        found |= {
            "passed": False,
            "reason": (
                "Refused on validation: no epoch of the fine-tuning was better than the deployed model (mean Dice over "
                f"classes {gain:+.4f}). The sealed patients were not opened for it. The deployed model stays."
            ),
        }
    return found


def changelog(record: RetrainRecord) -> str:
    """What is new in the release, in one sentence that may leave the site."""
    assert record.release and record.split and record.decision
    sealed = record.decision["patients"]
    return (
        f"{FINE_TUNED} {record.release.version} on {count(record.split.training.patients)} of one site, "
        f"and not worse than it by the stated margin on {count(sealed)} that this training never saw."
    )


def _gain(new: Mapping[str, Any], deployed: Mapping[str, Any], rule: Rule) -> float | None:
    """Mean over the deciding classes of the mean difference per patient; None where no patient has any of them."""
    differences = gate_pairs.differences(new, deployed)
    means = [float(differences[name].mean()) for name in rule.decides(list(differences)) if differences[name].size]
    return float(np.mean(means)) if means else None
