"""What a retraining writes down of itself, `retrain.json`: enough to go on after a crash, and to be judged by later.

It stays at the site. Every part is optional, so that a page can be made of a retraining at any stage: what is missing
was not reached. Patients are named by pseudonym, files not at all.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FILE = "retrain.json"
"""The record, in the folder of the retraining."""

STEPS = {
    "verify": "The release was verified",
    "index": "The studies were indexed",
    "audit": "The data was audited",
    "split": "The patients were divided",
    "deployed": "The deployed model was scored on validation",
    "training": "The new model was trained",
    "validation": "The new model was scored on validation",
    "gate": "Both models met the sealed patients",
    "release": "The release was made",
    "aliases": "MLflow was told",
}
"""The steps in order, and what a page says when one is done."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Release(_Part):
    """The deployed release that the retraining started from.

    Attributes:
        name: of its bundle.
        version: likewise.
        sha256: of the zip file.
        signer: fingerprint of the key that signed it; empty where nothing was verified.
        trust: the reason that was given to go on although a check failed; empty: none was needed.
        checks: what was checked, in order: the name, whether it passed, and a sentence.
    """

    name: str = ""
    version: str = ""
    sha256: str = ""
    signer: str = ""
    trust: str = ""
    checks: list[dict[str, Any]] = Field(default_factory=list)


class Refused(_Part):
    """What the index left out: a pseudonym or a count (`3 studies`), never a name or a path, and why."""

    what: str
    reason: str


class Index(_Part):
    """What was found in the site's folder."""

    cases: int = 0
    patients: int = 0
    refused: list[Refused] = Field(default_factory=list)


class Audit(_Part):
    """Findings of the audit as sentences that name cases by pseudonym; an error stops the retraining."""

    errors: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class Partition(_Part):
    """How many are in one part of the data."""

    patients: int = 0
    cases: int = 0


class Split(_Part):
    """The three parts; `sealed` is the manifest's test partition."""

    training: Partition = Field(default_factory=Partition)
    validation: Partition = Field(default_factory=Partition)
    sealed: Partition = Field(default_factory=Partition)


class Scores(_Part):
    """Means over the patients of the validation: Dice of every class, and for how many patients it is defined."""

    patients: int = 0
    dice: dict[str, float | None] = Field(default_factory=dict)
    defined: dict[str, int] = Field(default_factory=dict)


class Training(_Part):
    """How the new model was trained; `settings` are keys of train.json that matter: learning rate, frozen parts."""

    epochs: int = 0
    best_epoch: int | None = None
    minutes: float | None = None
    hours_given: float | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Opening(_Part):
    """One reading of the sealed patients, written down before it happens; see `pipeline.sealed`.

    Attributes:
        opened_at: UTC.
        deployed_sha256: of the deployed model's weights.
        new_sha256: of the new model's.
        rule_sha256: of the rule that decides.
        patients: how many are sealed.
        sealed_sha256: of their pseudonyms, sorted; it names nobody.
        resumed: the same comparison was begun before and cut off.
        previous: of an earlier retraining, whose record was carried over.
    """

    opened_at: datetime
    deployed_sha256: str
    new_sha256: str
    rule_sha256: str
    patients: int
    sealed_sha256: str = ""
    resumed: bool = False
    previous: bool = False


class Result(_Part):
    """How it ended.

    Attributes:
        verdict: `accepted`, `refused` or `not decidable`; `stopped` where it never came to a verdict, as after errors
            in the data.
        reason: one paragraph for the site's engineer.
        release: name of the file that was made, without its folder; None: none was.
    """

    verdict: Literal["accepted", "refused", "not decidable", "stopped"]
    reason: str
    release: str | None = None


class Step(_Part):
    """When a step began and ended; `finished` None: it is under way, or was cut off."""

    started: datetime
    finished: datetime | None = None


class RetrainRecord(BaseModel):
    """The record of a retraining; what the story needs to be resumed may stand beside these keys.

    Attributes:
        rule: of the gate, `gate.Rule.as_json()`.
        rule_sha256: `gate.Rule.digest()`.
        rule_fixed_at: when it was fixed, UTC: before anything else.
        needed: how many sealed patients a decision takes, `gate.Needed.as_json()`.
        screen: of the new model on validation, `gate.Screen.as_json()`.
        simulation: of the rule's errors, what `gate_simulation.simulated` gives.
        decision: `gate.Decision.as_json()`.
        steps: by name, see `STEPS`; others may stand there too.
    """

    model_config = ConfigDict(extra="allow", validate_assignment=True)

    release: Release | None = None
    rule: dict[str, Any] | None = None
    rule_sha256: str | None = None
    rule_fixed_at: datetime | None = None
    index: Index | None = None
    audit: Audit | None = None
    split: Split | None = None
    needed: dict[str, Any] | None = None
    deployed_validation: Scores | None = None
    new_validation: Scores | None = None
    training: Training | None = None
    screen: dict[str, Any] | None = None
    simulation: dict[str, Any] | None = None
    openings: list[Opening] = Field(default_factory=list)
    decision: dict[str, Any] | None = None
    result: Result | None = None
    steps: dict[str, Step] = Field(default_factory=dict)
