"""Child processes that train and evaluate, one after another; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import bundle as bundles
from pipeline.atomic import atomic
from pipeline.checkpoint import MAY_CHANGE, standing
from pipeline.configuration import differences, flattened
from pipeline.errors import INTERRUPTED, DataError, InputError
from pipeline.evaluate import TABLE
from pipeline.manifest import read
from pipeline.trials import Plan, Trial

Run = Callable[[Sequence[str]], int]
"""Words after `overtile` -> exit code."""

Say = Callable[[str], None]
"""Tells the user one line."""

RECORD = "trial.json"
"""In a trial's folder: what it was started with."""

PLAN = "plan.json"
"""In the output folder: what all trials were started with, and the id of the parent run."""


def run_trials(planned: Sequence[Trial], plan: Plan, run: Run, say: Say, ended: Callable[[], None]) -> None:
    """Train and evaluate what is not done yet.

    Args:
        planned: from `trials`.
        plan: that they are of.
        run: starts a child process, or stands for it in a test.
        say: told what begins and what has ended.
        ended: called after every child process, however it ended.

    Raises:
        DataError: a child failed.
        InputError: a trial's folder is of a trial with other settings.
        KeyboardInterrupt: a child was stopped.
    """
    digest = read(plan.manifest).digest()
    for number, trial in enumerate(planned, start=1):
        place = f"[{number} of {len(planned)}] {trial.title}"
        record(trial, digest)
        if is_evaluated(trial):
            say(f"{place}: was done before")
            continue
        begun, state = time.monotonic(), standing(trial.folder / "last.pt")
        if state != "finished":
            say(f"{place}: {'training goes on' if state == 'begun' else 'training'}")
            _child(run, training_words(trial, plan, resume=state == "begun"), f"{trial.title}: the training", ended)
        say(f"{place}: evaluation")
        _child(run, evaluating_words(trial, plan), f"{trial.title}: the evaluation", ended)
        say(f"{place}: done in {(time.monotonic() - begun) / 60:.1f} minutes")


def is_evaluated(trial: Trial) -> bool:
    """Whether the trial's evaluation is there, with all that a comparison reads of it."""
    try:
        return json.loads((trial.evaluation / TABLE).read_text()).keys() >= {"patients", "measures", "unit"}
    except (OSError, ValueError, AttributeError):
        return False


def training_words(trial: Trial, plan: Plan, resume: bool) -> list[str]:
    """The command that trains."""
    overlays = [word for name in trial.overlays for word in ("--overlay", name)]
    overrides = dict(trial.training) | ({"resume": True} if resume else {})
    return ["run", str(plan.bundle), "training", *overlays, *as_words(overrides)]


def evaluating_words(trial: Trial, plan: Plan) -> list[str]:
    """The command that evaluates."""
    overrides = dict(trial.evaluating)
    options = {name: str(overrides.pop(key)) for name, key in (
        ("--manifest", "manifest"), ("--output", "output_dir"), ("--checkpoint", "checkpoint"),
        ("--partition", "partition"), ("--tracking-uri", "tracking_uri"),
    )}  # fmt: skip
    named = [word for name, value in options.items() for word in (name, value)]
    if "dataset_dir" in overrides:
        named += ["--dataset-dir", str(overrides.pop("dataset_dir"))]
    return ["evaluate", "--bundle", str(plan.bundle), *named, *as_words(overrides)]


def read_plan(plan: Plan) -> str:
    """The parent run's id of an earlier start of the same plan in the same folder; empty if there was none.

    Raises:
        InputError: the folder holds another plan.
    """
    file = plan.output / PLAN
    if not file.exists():
        return ""
    try:
        saved = json.loads(file.read_text())
        before, run_id = saved["settings"], str(saved["run_id"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file}: not readable; give another --output") from None
    _refuse_if_changed(before, settings(plan), file, f"a {saved.get('kind', plan.kind)}")
    return run_id


def write_plan(plan: Plan, run_id: str) -> None:
    """Keep what was begun, and under which parent run."""
    _write({"kind": plan.kind, "settings": settings(plan), "run_id": run_id}, plan.output / PLAN)


def settings(plan: Plan) -> dict[str, Any]:
    """What must be the same when a plan is taken up again: everything that a score depends on."""
    return {
        "kind": plan.kind,
        "bundle": plan.bundle.name,
        "configs_sha256": configs_digest(plan),
        "manifest_sha256": read(plan.manifest).digest(),
        "variants": {v.name: {"overlays": list(v.overlays), "overrides": _lasting(v.overrides)} for v in plan.variants},
        "common": {"overlays": list(plan.common.overlays), "overrides": _lasting(plan.common.overrides)},
        "seeds": list(plan.seeds),
        "folds": list(plan.folds),
    }


def configs_digest(plan: Plan) -> str:
    """SHA-256 of the bundle's merged configs, comments left out."""
    trained = [
        bundles.settings(plan.bundle, "training", variant.after(plan.common).overlays) for variant in plan.variants
    ]
    merged = [*trained, *(bundles.settings(plan.bundle, workflow) for workflow in ("evaluating", "predicting"))]
    return hashlib.sha256(json.dumps(merged, sort_keys=True, default=str).encode()).hexdigest()


def record(trial: Trial, manifest_digest: str) -> None:
    """Write what a trial is started with into its folder, or compare it with what is there.

    Raises:
        InputError: the folder is of a trial with other settings.
    """
    file = trial.folder / RECORD
    now = {
        "title": trial.title,
        "overlays": list(trial.overlays),
        "training": _lasting(trial.training),
        "evaluating": _lasting(trial.evaluating),
        "manifest_sha256": manifest_digest,
    }
    if not file.exists():
        _write(now, file)
        return
    try:
        before = json.loads(file.read_text())
    except ValueError:
        raise InputError(f"{file}: not readable; remove its folder, or give another --output") from None
    _refuse_if_changed(before, now, file, "a trial")


def as_words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as words of a command that are read back as they are: a run id of digits stays text."""
    words = []
    for key, value in overrides.items():
        text = str(value)
        if bundles.parse_overrides([f"--{key}", text])[key] != value:
            text = repr(value)
        words += [f"--{key}", text]
    return words


def _child(run: Run, words: Sequence[str], what: str, ended: Callable[[], None]) -> None:
    try:
        code = run(words)
    finally:
        ended()
    if code == INTERRUPTED:
        raise KeyboardInterrupt(f"{what} was stopped")
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise DataError(f"{what} {how}; the reason stands above. Mend it and give the same command again to go on")


def _lasting(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if key not in (*MAY_CHANGE, "checkpoint")}


def _refuse_if_changed(before: Mapping[str, Any], now: Mapping[str, Any], file: Path, what: str) -> None:
    changed = differences(flattened(dict(before)), flattened(dict(now)))
    if changed:
        raise InputError(
            f"{file}: is of {what} with other settings ({'; '.join(changed[:3])}); give the same ones to go on with "
            "it, or another --output"
        )


def _write(content: Mapping[str, Any], file: Path) -> None:
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
