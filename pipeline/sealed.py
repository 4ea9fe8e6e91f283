"""The sealed patients of a site: every time they are opened is written down first, in `openings.jsonl`.

A test that is read again and again until a model passes proves nothing: of two unworthy models one may be let through
by chance twice as often as of one. So no retraining scores the sealed patients without a line here, and every line is
shown. (The audit has looked at every file before, without a model. Who gives the manifest to `overtile evaluate` is
not seen here.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from pipeline.atomic import atomic, make_folder
from pipeline.errors import InputError
from pipeline.retrain_record import FILE as RECORD
from pipeline.retrain_record import Opening

FILE = "openings.jsonl"
"""One opening a line, in the folder of the retraining; lines are only ever added."""


def digest(patients: Iterable[str]) -> str:
    """SHA-256 of the sealed patients' pseudonyms: tells one set from another and names nobody."""
    return hashlib.sha256("\n".join(sorted(set(patients))).encode()).hexdigest()


def openings(folder: Path) -> list[Opening]:
    """Every opening of the sealed patients, the oldest first; those carried over from earlier retrainings too.

    A last line without its end was being written when the power failed: it counts as nothing, since the patients are
    read only after their line is on the disk.

    Raises:
        InputError: another line cannot be read.
    """
    found = []
    for number, line in enumerate(_lines(folder / FILE), 1):
        try:
            found.append(Opening.model_validate_json(line))
        except ValidationError:
            raise InputError(
                f"{folder / FILE}: line {number} is no opening; the file was changed by hand, and how often the sealed "
                "patients were read is not known any more; restore it from a backup"
            ) from None
    return found


def opened(
    folder: Path,
    *,
    deployed_sha256: str,
    new_sha256: str,
    rule_sha256: str,
    patients: int,
    resumed: bool = False,
    sealed_sha256: str = "",
    now: datetime | None = None,
) -> Opening:
    """Write an opening down, to be called BEFORE anything of the sealed patients is read.

    Args:
        folder: of the retraining.
        deployed_sha256: of the deployed model's weights.
        new_sha256: of the new model's.
        rule_sha256: of the rule that will decide.
        patients: how many are sealed.
        resumed: the same comparison goes on after it was cut off.
        sealed_sha256: `digest` of the sealed patients.
        now: None: now.

    Raises:
        InputError: another rule was fixed when the retraining began, or the file cannot be read.
    """
    _refuse_another_rule(folder, rule_sha256)
    before = openings(folder)
    opening = Opening(
        opened_at=now or datetime.now(UTC),
        deployed_sha256=deployed_sha256,
        new_sha256=new_sha256,
        rule_sha256=rule_sha256,
        patients=patients,
        sealed_sha256=sealed_sha256,
        resumed=resumed,
    )
    if resumed and not any(_same(opening, earlier) for earlier in before):
        opening.resumed = False  # nothing to resume: it would be an opening that nobody counts
    _append(folder / FILE, [opening])
    return opening


def carried(previous: Path, folder: Path) -> list[Opening]:
    """Carry the openings of an earlier retraining over, those that it had carried itself too; done twice, done once.

    Args:
        previous: its folder.
        folder: of this retraining.

    Raises:
        InputError: there is no such folder, or its openings cannot be read.
    """
    if not previous.is_dir():
        raise InputError(f"{previous}: no such folder; --previous is the output folder of the retraining before")
    known = {(one.opened_at, one.new_sha256, one.rule_sha256) for one in openings(folder)}
    fresh = [
        one.model_copy(update={"previous": True})
        for one in openings(previous)
        if (one.opened_at, one.new_sha256, one.rule_sha256) not in known
    ]
    if fresh:
        _append(folder / FILE, fresh)
    return fresh


def comparisons(found: Sequence[Opening]) -> int:
    """How many different questions were put to the sealed patients: other models or another rule are another one."""
    return len({_question(one) for one in found})


def said(found: Sequence[Opening]) -> str:
    """How often the sealed patients were opened, in a sentence or two for the page."""
    times = comparisons(found)
    resumed = len(found) - times
    again = f" ({resumed} more to finish what was cut off)" if resumed else ""
    if times < 2:
        return f"These patients have been opened once{again}." if times else "These patients have not been opened."
    return (
        f"These patients have been opened {times} times{again}, each time for other models or another rule. The rule's "
        f"error holds for one opening: a model that is exactly the margin worse has been given {times} chances, and "
        f"at least one of {times} such models passes up to {times} times as often. Seal new patients when you can."
    )


def _question(opening: Opening) -> tuple[str, str, str]:
    return opening.deployed_sha256, opening.new_sha256, opening.rule_sha256


def _same(one: Opening, other: Opening) -> bool:
    return _question(one) == _question(other)


def _refuse_another_rule(folder: Path, rule_sha256: str) -> None:
    """The record says which rule was fixed; it is read from the disk, whatever the caller believes."""
    try:
        fixed = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("rule_sha256")
    except FileNotFoundError:
        return
    except (ValueError, AttributeError):
        raise InputError(
            f"{folder / RECORD}: cannot be read, so which rule was fixed is not known; restore it"
        ) from None
    if fixed and fixed != rule_sha256:
        raise InputError(
            f"{folder}: the rule fixed when this retraining began ({fixed[:12]}) is not the one that would decide now "
            f"({rule_sha256[:12]}); the sealed patients stay sealed. Give the first rule again, or start a new folder "
            "with --previous, so that both are counted"
        )


def _lines(file: Path) -> list[str]:
    """Whole lines; what stands behind the last line's end was cut off."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return []
    return text[: text.rfind(b"\n") + 1].decode(errors="replace").splitlines()


def _append(file: Path, lines: Sequence[Opening]) -> None:
    """Add lines and wait until they are on the disk; the rest of a line that was cut off goes."""
    make_folder(file.parent)
    whole = _lines(file)
    if file.exists() and file.stat().st_size != sum(len(line.encode()) + 1 for line in whole):
        with atomic(file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    with file.open("a", encoding="utf-8") as out:
        out.writelines(f"{line.model_dump_json()}\n" for line in lines)
        out.flush()
        os.fsync(out.fileno())
    descriptor = os.open(file.parent, os.O_RDONLY)  # else a new file's name may be lost with the power
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
