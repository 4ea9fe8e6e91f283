"""Where a retraining stands: its record on disk after every step, and a lock against a second process."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.atomic import atomic, make_folder
from pipeline.errors import InputError
from pipeline.failures import MAY_QUOTE, NAMES_A_FILE, without_paths
from pipeline.manifest import Case
from pipeline.retrain_record import FILE, Result, RetrainRecord, Step

LOCK = ".retrain.lock"

LOCK_SECONDS = 30.0
"""So long the lock is waited for: a retraining that was killed a moment ago may have a child that is still ending."""

TITLES = {
    "verify": (1, "verifying the release"),
    "index": (2, "indexing the studies"),
    "audit": (2, "auditing the data"),
    "split": (3, "dividing the patients"),
    "deployed": (4, "scoring the deployed model on validation"),
    "training": (5, "fine-tuning"),
    "validation": (6, "scoring the new model on validation"),
    "gate": (6, "the gate: both models on the sealed patients"),
    "release": (7, "making the release"),
    "aliases": (8, "telling MLflow who is champion and who is candidate"),
}
"""The steps as the record names them: number and words for the site's engineer."""

LAST = 8

Say = Callable[[str], None]
"""Tells the user one line."""


class Story:
    """The record of a retraining in its folder.

    Args:
        out: the folder.
        say: told what begins.

    Raises:
        InputError: the record cannot be read.
    """

    def __init__(self, out: Path, say: Say) -> None:
        self.out = out
        self.say = say
        self.cases: list[Case] = []
        self.record = RetrainRecord()
        if (out / FILE).exists():
            try:
                self.record = RetrainRecord.model_validate_json((out / FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError, ValidationError):
                raise InputError(f"{out / FILE}: not readable; restore it, or give another --out") from None

    @property
    def about(self) -> dict[str, Any]:
        """What a retraining must know of itself to go on, beside what a page is made of."""
        extra = self.record.__pydantic_extra__
        assert extra is not None
        return extra

    @property
    def ended(self) -> bool:
        """Whether there is a verdict; what was stopped goes on."""
        return self.record.result is not None and self.record.result.verdict != "stopped"

    def save(self) -> None:
        """Write the record."""
        with atomic(self.out / FILE) as temporary:
            temporary.write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def done(self, name: str) -> bool:
        """Whether a step is done."""
        step = self.record.steps.get(name)
        return step is not None and step.finished is not None

    def begun(self, name: str) -> bool:
        """Whether a step was begun, now or before."""
        return name in self.record.steps

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step: said, and written down when it begins and when it has ended; after an error it is not done.

        One that goes on where it was cut off keeps its start; one that is done again starts anew.
        """
        number, title = TITLES[name]
        self.say(f"{number} of {LAST}: {title}")
        before = self.record.steps.get(name)
        step = Step(started=before.started if before and before.finished is None else now())
        self.record.steps[name] = step
        self.save()
        yield
        step.finished = now()
        self.save()

    def end(self, result: Result) -> None:
        """Write down how it ended."""
        self.record.result = result
        self.save()

    def stop(self, error: BaseException) -> None:
        """Write down that it stopped, and why: the record names no file, the terminal did."""
        name, said = type(error).__name__, without_paths(error, self.cases)
        reason = said.removeprefix(f"{name}: ")
        if reason.endswith((NAMES_A_FILE, MAY_QUOTE)):
            step = next(reversed([name for name in self.record.steps if not self.done(name)]), None)
            at = f" while {TITLES[step][1]}" if step in TITLES else ""
            reason = f"It stopped{at}; {reason}."
        with suppress(OSError):  # say a full disk, which is what it stops for
            self.end(Result(verdict="stopped", reason=reason))


@contextmanager
def locked(out: Path, say: Say, seconds: float = LOCK_SECONDS) -> Iterator[int]:
    """Keep other retrainings out of a folder; children that inherit the descriptor keep it locked until they end.

    The kernel lets go when the last of them is gone, however it ended and in whichever container it ran.

    Raises:
        InputError: another retraining is at work there.
    """
    make_folder(out)
    with (out / LOCK).open("w") as file:
        deadline, told = time.monotonic() + seconds, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{out}: another retraining is at work there; wait for its end, or give another --out"
                    ) from None
                if not told:
                    say(f"{out}: another process is at work there; waiting up to {seconds:g} s for its end")
                    told = True
                time.sleep(0.5)
        yield file.fileno()


def now() -> datetime:
    """UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
