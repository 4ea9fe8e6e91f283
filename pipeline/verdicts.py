"""An MLflow run in one line: what a reviewer may take from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VERDICT, NOTE = "verdict", "mlflow.note.content"
"""The tags of the verdict, and of the note, which MLflow shows as Markdown."""

PARTITION, WEIGHTS = "partition", "checkpoint_sha256"
"""The tags of the partition that a run reads, and of the digest of its weights: of those that a training leaves, and of
those that an evaluation scores."""

NETWORK = "network"
"""The method of an evaluation's table that is ours."""

BEGUN = "has begun; nothing to judge yet"
"""The verdict of a run that is being worked on, and of one that was killed outright and never looked at again."""

UNTESTED = "not tested"
"""The last part of a training's verdict until an evaluation of its weights ends."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Attributes:
        epoch: the last one that is complete.
        epochs: that were asked for.
        best: Dice of the validation; None before the first one.
        best_epoch: after which it was reached.
    """

    epoch: int
    epochs: int
    best: float | None = None
    best_epoch: int | None = None


def training_verdict(status: str, progress: Progress, failure: str = "", tested: str = UNTESTED) -> str:
    """A training in one line.

    Args:
        status: RUNNING, FINISHED, FAILED or KILLED.
        progress: how far it came.
        failure: why it ended before its time.
        tested: what is known of its test.
    """
    if status == "RUNNING":
        return f"training {BEGUN}"
    best = (
        "" if progress.best is None else f"best validation Dice {progress.best:.3f} after epoch {progress.best_epoch}"
    )
    if status == "FAILED":
        return _joined(f"failed after epoch {progress.epoch} of {progress.epochs}: {failure}", best)
    if status == "KILLED":
        return _joined(f"stopped after epoch {progress.epoch} of {progress.epochs}", best, tested)
    return _joined(f"trained {_many(progress.epoch, 'epoch')}", best or "never validated", tested)


def evaluation_verdict(table: Mapping[str, Any]) -> str:
    """An evaluation in one line: `test Dice 0.87 (0.85 to 0.90) on 40 patients`.

    Args:
        table: of evaluation.json.
    """
    return f"{table['partition']} {_dice_on(table)}"


def _dice_on(table: Mapping[str, Any]) -> str:
    summary = table["summary"][NETWORK]
    intervals = summary["interval_95"]["dice"]
    named = summary["dice"]
    figures = [
        (f"{name} " if len(named) > 1 else "") + figure(value, intervals.get(name), 2) for name, value in named.items()
    ]
    return f"Dice {', '.join(figures)} on {_many(len(table['patients']), table['unit'])}"


def pooled_verdict(table: Mapping[str, Any], folds: int) -> str:
    """A cross-validation in one line: `out of 5 folds: Dice 0.79 (0.76 to 0.82) on 110 patients`."""
    return f"out of {_many(folds, 'fold')}: {_dice_on(table)}"


def comparison_verdict(found: Mapping[str, Any]) -> str:
    """A comparison in one line: every later variant against the first, by Dice or else by the first measure shown.

    Args:
        found: of comparison.json.
    """
    names = [name for name in found["headline"] if name.startswith("dice_")] or found["headline"][:1]
    rows = [row for row in found["differences"] if row["measure"] in names]
    return "; ".join(_difference(row, found["unit"]) for row in rows) or "nothing to compare"


def _difference(row: Mapping[str, Any], unit: str) -> str:
    title = f"{row['first']} - {row['second']}, {row['measure']}"
    if row["mean"] is None:
        return f"{title}: not defined"
    interval = row["interval"]
    on = f"on {_many(row['patients'], unit)}"
    if interval is None:
        return f"{title}: {row['mean']:+.3f} {on}, no interval"
    silent = ", not told apart" if interval[0] <= 0 <= interval[1] else ""
    return f"{title}: {row['mean']:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f}) {on}{silent}"


def other_verdict(what: str, status: str, failure: str = "") -> str:
    """An evaluation or a comparison without a result, in one line."""
    said = {"RUNNING": f"{what} {BEGUN}", "FAILED": f"{what} failed: {failure}", "KILLED": f"{what} was stopped"}
    return said.get(status, f"{what} is finished")


def retold(verdict: str, tests: Sequence[str]) -> str:
    """A training's verdict with what its tests have said in the place of what was said of them before.

    Args:
        verdict: from `training_verdict`, or from here.
        tests: verdicts of evaluations.
    """
    parts = [part for part in verdict.split("; ") if part != UNTESTED and not part.startswith("test Dice")]
    return _joined(*parts, *(tests or [UNTESTED]))


def figure(value: float | None, interval: Sequence[float] | None = None, digits: int = 3, sign: str = "") -> str:
    """A mean with its interval, where there is one."""
    if value is None:
        return "not defined"
    form = f"{sign}.{digits}f"
    return format(value, form) + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")


def _joined(*parts: str) -> str:
    return "; ".join(dict.fromkeys(part for part in parts if part))


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
