"""The gate: new against deployed on the sealed patients, paired by patient, not worse by a margin in any class.

The rule and why it is so: `pipeline.gate_rule` and `pipeline.lower_bound`. What can be said before the patients are
opened: `pipeline.gate_before`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline import gate_words
from pipeline.errors import InputError
from pipeline.gate_before import needed, screen
from pipeline.gate_judged import Judged, figures
from pipeline.gate_pairs import Pairs, pairs
from pipeline.gate_rule import Rule, read_rule
from pipeline.groups import LEAST
from pipeline.subgroups import ABOUT

__all__ = ["Decision", "Rule", "Verdict", "decide", "needed", "read_rule", "screen"]

Verdict = Literal["accepted", "refused", "not decidable"]


@dataclass(frozen=True)
class Decision:
    """The verdict and everything that it rests on.

    Attributes:
        verdict: of the gate.
        reason: one paragraph for the site's engineer.
        classes: one by one.
        subgroups: likewise, of every column that divides the patients.
        notes: sentences on how to read this.
        rule: as it was fixed.
        rule_sha256: its digest.
        patients: that are sealed.
    """

    verdict: Verdict
    reason: str
    classes: list[Judged]
    subgroups: list[Judged]
    notes: list[str]
    rule: dict[str, Any]
    rule_sha256: str
    patients: int

    def as_json(self) -> dict[str, Any]:
        """As `gate.json` holds it: with pseudonyms, so it stays at the site."""
        return asdict(self)

    def aggregates(self) -> dict[str, Any]:
        """What may leave with a release: verdict, rule and means over five patients or more; nobody, no subgroup."""
        keys = ("name", "patients", "deployed", "new", "difference", "lower", "margin", "found")
        return {
            "verdict": self.verdict,
            "rule": self.rule,
            "rule_sha256": self.rule_sha256,
            "patients": self.patients,
            "classes": [
                {key: getattr(judged, key) for key in keys} for judged in self.classes if judged.patients >= LEAST
            ],
        }


def decide(
    new: Mapping[str, Any], deployed: Mapping[str, Any], rule: Rule, *, fixed_sha256: str | None = None
) -> Decision:
    """Decide on a new model.

    `accepted`: in every class that decides, the lower bound lies above minus the margin, and no subgroup is worse.
    `refused`: a class with patients enough does not, or a subgroup's interval lies wholly below minus the margin.
    `not decidable`: nothing refuses it, and a class has fewer patients than the rule asks for.

    Args:
        new: evaluation of the new model on the sealed patients.
        deployed: of the deployed model on the same.
        rule: fixed before they were opened.
        fixed_sha256: its digest as it was recorded then; None: not compared.

    Raises:
        InputError: the evaluations are not of the same patients, cases and classes; the rule does not fit them, or is
            not the one that was fixed.
    """
    if fixed_sha256 is not None and fixed_sha256 != rule.digest():
        raise InputError(
            f"the rule ({rule.digest()[:12]}) is not the one that was fixed before the sealed patients were opened "
            f"({fixed_sha256[:12]}); decide by that one"
        )
    paired = pairs(new, deployed)
    deciding = rule.decides(list(paired))
    every = [_judged(pair, rule, decides=name in deciding) for name, pair in paired.items() if _has_margin(name, rule)]
    groups = [judged for name in deciding for judged in _subgroups(paired[name], deployed, rule)]
    verdict = _verdict([judged for judged in every if judged.decides], groups)
    return Decision(
        verdict,
        gate_words.reason(verdict, every, groups, rule),
        every,
        groups,
        gate_words.notes(every, groups, rule, (deployed.get(ABOUT) or {}).get("left_out", {})),
        rule.as_json(),
        rule.digest(),
        len(deployed["patients"]),
    )


def _has_margin(name: str, rule: Rule) -> bool:
    return not isinstance(rule.margin, dict) or name in rule.margin or rule.classes is None or name in rule.classes


def _verdict(classes: list[Judged], subgroups: list[Judged]) -> Verdict:
    if any(judged.found in ("worse", "not shown") for judged in classes) or any(one.blocks for one in subgroups):
        return "refused"
    return "accepted" if all(judged.found == "not worse" for judged in classes) else "not decidable"


def _judged(pair: Pairs, rule: Rule, *, decides: bool) -> Judged:
    return Judged(
        **figures(pair.by_patient, pair, rule, rule.minimum_patients),
        left_out=pair.absent.patients,
        decides=decides,
        absent=pair.absent,
    )


def _subgroups(pair: Pairs, deployed: Mapping[str, Any], rule: Rule) -> list[Judged]:
    """The groups that the deployed model's evaluation found in the manifest's columns, those that are large enough."""
    found = []
    for column, of in ((deployed.get(ABOUT) or {}).get("groups") or {}).items():
        for group in dict.fromkeys(of.values()):
            members = {patient: d for patient, d in pair.by_patient.items() if of.get(patient) == group}
            if len(members) >= rule.subgroup_minimum:
                missing = sum(its == group for its in of.values()) - len(members)
                own = figures(members, pair, rule, rule.subgroup_minimum)
                found.append(Judged(**own, left_out=missing, decides=False, column=column, group=group))
    return found
