"""What a retraining is told to do, and that the same command again is the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import bundle as bundles
from pipeline.checkpoint import WEIGHTS_DEPEND_ON
from pipeline.configuration import pathless
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.gate_rule import Rule
from pipeline.recipe import read_recipe
from pipeline.release_files import METADATA
from pipeline.terms import read_metadata

HOURS = 8.0
"""Of the fine-tuning, where nothing else is said: a night."""

FINE_TUNING = 0.1
"""Of the release's own learning rate: its weights are near a good place, long steps would leave it. The rate of a
release that was fine-tuned itself is taken as it is."""

FINE_TUNED = "Fine-tuned from version"
"""How the changelog of a retraining's release begins."""

SEED = 1
"""Of the order in which patients are dealt, where nothing else is said."""

TRAINING = "training"
"""The folder of the fine-tuning below that of the retraining."""

RECIPE = "recipe.yaml"
"""In the data's folder, or in a release: how the studies are indexed."""

SET_BY_US = {
    "manifest", "dataset_dir", "output_dir", "checkpoint", "tracking_uri", "resume", "parent_run", "partition",
    "start_from", "encoder_weights",
}  # fmt: skip
"""Keys that every step is given; as overrides they would be overwritten."""

MANIFEST = "manifest.json"
"""In the folder of a retraining: its cases and how they are divided."""

OF_THE_RELEASE_ONLY = ("listed", "downloads")
"""Fields of a recipe that name files or addresses of the place where the release was trained."""


@dataclass(frozen=True)
class Plan:
    """What the command was given.

    Attributes:
        release: zip of the deployed release.
        data: folder with the site's studies.
        out: folder of the retraining.
        key: public key of who signed the release.
        trust: reason to go on although a check of the release fails.
        hours: of fine-tuning; None: `HOURS`, or as many epochs as `overrides` say.
        recipe: how the studies are indexed; None: `recipe.yaml` of the data, else the release's.
        rule: of the gate; None: the one that stands in `pipeline.gate_rule`.
        sign: private key for the new release; None: one in `out`.
        previous: folder of the retraining before this one.
        fractions: of patients for training, validation and sealed; None: `pipeline.retrain_data.shares`.
        seed: of the split.
        overrides: keys of the release's train.json.
    """

    release: Path
    data: Path
    out: Path
    key: Path | None = None
    trust: str = ""
    hours: float | None = None
    recipe: Path | None = None
    rule: Path | None = None
    sign: Path | None = None
    previous: Path | None = None
    fractions: tuple[float, float, float] | None = None
    seed: int = SEED
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def new_weights(self) -> Path:
        """The best weights of the fine-tuning."""
        return self.out.absolute() / TRAINING / "model.pt"

    @property
    def minutes(self) -> float | None:
        """Of fine-tuning; None where the number of epochs is given."""
        if self.hours is None:
            return None if "epochs" in self.overrides else 60 * HOURS
        return 60 * self.hours


def check(plan: Plan) -> None:
    """Refuse at once what cannot work.

    Raises:
        InputError: a file or folder is missing, or two options contradict each other.
    """
    _check_files(plan)
    if plan.hours is not None and not 0 < plan.hours < math.inf:
        raise InputError(f"--hours must be above 0, got {plan.hours:g}")
    if plan.hours is not None and "epochs" in plan.overrides:
        raise InputError("--hours and --epochs both say how long the fine-tuning is; give one of them")
    for key in plan.overrides:
        top = key.replace("::", "#").partition("#")[0]
        if top in SET_BY_US:
            raise InputError(f"--{key} is set by this command; leave it out")
        if top == "minutes":
            raise InputError("--minutes: say --hours, which is the same in hours")
        if top in WEIGHTS_DEPEND_ON:
            raise InputError(f"--{key} is the release's own: a retraining keeps the network; leave it out")


def _check_files(plan: Plan) -> None:
    if plan.release.is_dir():
        raise InputError(f"{plan.release}: is a folder; --bundle is the file NAME-VERSION.zip that it came from")
    if not plan.release.is_file():
        raise InputError(f"{plan.release}: no such release; --bundle is the file NAME-VERSION.zip")
    if not plan.data.is_dir():
        raise InputError(f"{plan.data}: no such folder; --data is the folder with the studies")
    if plan.out.resolve().is_relative_to(plan.data.resolve()):
        raise InputError(f"{plan.out}: lies in {plan.data}, which is only read; give another --out")
    if plan.sign is not None and not plan.sign.is_file():
        raise InputError(f"{plan.sign}: no such key to sign with; leave --sign out for one that is made in --out")
    if plan.previous is not None and plan.previous.resolve() == plan.out.resolve():
        raise InputError("--previous is the folder of an earlier retraining; this one needs an --out of its own")
    if plan.previous is not None and not (plan.previous / MANIFEST).is_file():
        raise InputError(
            f"{plan.previous}: no {MANIFEST} in it; --previous is the output folder of the retraining before"
        )


def check_overrides(plan: Plan, bundle: Path) -> None:
    """Refuse overrides that the release's configs do not know, before anything is trained.

    Raises:
        InputError: as `pipeline.bundle.prepare`.
    """
    bundles.prepare(bundle, "training", plan.overrides, ())


def recipe_fields(plan: Plan, bundle: Path) -> dict[str, Any]:
    """How the studies are indexed: as --recipe says, else the data's own recipe.yaml, else the release's.

    The release's knows another place: that patient names are public, or which files are listed, is not taken over.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    source = recipe_source(plan, bundle)
    if source != bundle / RECIPE:
        return read_recipe(source)
    if not source.is_file():
        raise InputError(
            f"nothing says how the studies in {plan.data} are read: the release brings no {RECIPE}; write one, put it "
            "there or give it with --recipe"
        )
    fields = {key: value for key, value in read_recipe(source).items() if key not in OF_THE_RELEASE_ONLY}
    return fields | {"public": False}


def recipe_source(plan: Plan, bundle: Path) -> Path:
    """The file that says how the studies are indexed; the release's may be missing."""
    own = plan.recipe or plan.data / RECIPE
    return own if plan.recipe or own.is_file() else bundle / RECIPE


def began(plan: Plan, rule: Rule) -> dict[str, Any]:
    """What must be the same when the command is given again; the data's folder may have moved."""
    return {
        "release": file_digest(plan.release),
        "rule": rule.digest(),
        "hours": plan.hours,
        "seed": plan.seed,
        "fractions": list(plan.fractions) if plan.fractions else None,
        "overrides": json.loads(json.dumps(pathless(plan.overrides), default=str)),
        "previous": file_digest(plan.previous / MANIFEST) if plan.previous else None,
    }


def recipe_digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 that is the same for the same recipe, however its file was laid out."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def refuse_if_changed(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Refuse the same folder with other arguments.

    Raises:
        InputError: says what differs.
    """
    changed = [key for key in now if key in before and before[key] != now[key]]
    if changed:
        told = ", ".join(f"{key} was {_short(before[key])}, is {_short(now[key])}" for key in changed)
        raise InputError(
            f"{out}: holds a retraining that began otherwise ({told}); give what it began with to go on, or "
            "another --out"
        )


def learning_rate(bundle: Path) -> float | None:
    """What the release is fine-tuned with where nothing else is said; None where its config states no number."""
    rate = bundles.settings(bundle, "training").get("learning_rate")
    if not isinstance(rate, int | float):
        return None
    about = read_metadata(bundle / METADATA)
    latest = str((about.get("changelog") or {}).get(about.get("version")))
    return float(rate) if latest.startswith(FINE_TUNED) else float(f"{FINE_TUNING * rate:.6g}")


def as_yaml(fields: Mapping[str, Any]) -> str:
    """A recipe's fields as YAML."""
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
