"""Partitions that do not leak: by patient, or, only when told so and why, by section with a gap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pipeline.errors import InputError
from pipeline.manifest import PARTITIONS, Case, Manifest


def split_by_patient(manifest: Manifest, fractions: Sequence[float], seed: int) -> Manifest:
    """Deal the patients that have no partition yet; those that have one keep it, new cases of theirs included.

    Each new patient goes to the partition most in deficit (its fraction of all patients, less those it has), in an
    order that follows from `seed` and the patient alone.

    Args:
        manifest: cases under `unassigned` are dealt.
        fractions: of patients for training, validation and test; they add up to 1.
        seed: another seed, another order.

    Raises:
        InputError: fractions are wrong, there are fewer patients than partitions, or the manifest was split by section.
    """
    shares = _checked(fractions)
    if manifest.split and manifest.split.get("by") != "patient":
        raise InputError(f"this manifest is split by {manifest.split['by']}: index it anew to split it by patient")
    home: dict[str, str] = {}
    for name, case in manifest.cases():
        if name in PARTITIONS and home.setdefault(case.patient, name) != name:
            raise InputError(
                f"patient {case.patient!r} is in {home[case.patient]} and in {name}: that is a leak, "
                "and which of the two is right is not for a program to say; correct the manifest"
            )
    patients = {case.patient for _, case in manifest.cases()}
    wanted = [name for name in PARTITIONS if shares[name] > 0]
    if len(patients) < len(wanted):
        raise InputError(
            f"{len(patients)} patients cannot fill {len(wanted)} partitions: add patients, or set a fraction to 0"
        )
    new = sorted(patients - home.keys(), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    held = {name: sum(1 for place in home.values() if place == name) for name in PARTITIONS}
    for left, patient in zip(range(len(new), 0, -1), new, strict=True):
        empty = [name for name in wanted if held[name] == 0]
        choice = max(
            empty if left <= len(empty) else wanted, key=lambda name: shares[name] * len(patients) - held[name]
        )
        home[patient] = choice
        held[choice] += 1
    if not manifest.unassigned:
        return manifest
    record = {"by": "patient", "seed": seed, "fractions": list(fractions)}
    return _dealt(manifest, {case.id: home[case.patient] for _, case in manifest.cases()}, record)


def split_by_section(manifest: Manifest, fractions: Sequence[float], gap: int, because: str) -> Manifest:
    """Cut every patient's run of sections into contiguous blocks for training, validation and test, in this order.

    Neighbouring sections look alike, so `gap` sections between two blocks stay unassigned. A patient whose
    sections have partitions already keeps them.

    Raises:
        InputError: no reason is given, sections have no page numbers, or there are too few of them.
    """
    shares = _checked(fractions)
    if not because.strip():
        raise InputError('a split inside a patient leaks unless there is a reason for it: say --because "..."')
    if gap < 1:
        raise InputError(f"--gap must be at least 1 section, got {gap}: neighbouring sections look alike")
    if manifest.split and manifest.split.get("by") != "section":
        raise InputError(f"this manifest is split by {manifest.split['by']}: index it anew to split it by section")
    place = {case.id: name for name, case in manifest.cases()}
    settled = {case.patient for name, case in manifest.cases() if name in PARTITIONS}
    for patient in sorted({case.patient for case in manifest.unassigned} - settled):
        sections = [case for case in manifest.unassigned if case.patient == patient]
        place |= _blocks(patient, sections, shares, gap)
    if all(place[case.id] == "unassigned" for case in manifest.unassigned):
        return manifest
    record = {"by": "section", "fractions": list(fractions), "gap": gap, "because": because}
    return _dealt(manifest, place, record)


def _checked(fractions: Sequence[float]) -> dict[str, float]:
    if len(fractions) != len(PARTITIONS) or not min(fractions) >= 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise InputError(
            f"fractions must be three numbers for {', '.join(PARTITIONS)} that add up to 1, "
            f"got {' '.join(f'{fraction:g}' for fraction in fractions)}"
        )
    if fractions[0] == 0:
        raise InputError("the training partition needs a fraction above 0")
    return dict(zip(PARTITIONS, fractions, strict=True))


def _blocks(patient: str, sections: list[Case], shares: dict[str, float], gap: int) -> dict[str, str]:
    """Case id -> partition for one patient's sections."""
    if any(case.page is None for case in sections):
        raise InputError(f"patient {patient!r}: cases without a page cannot be split by section")
    if len({case.image for case in sections}) > 1:
        raise InputError(f"patient {patient!r}: has several stacks; a split by section takes one stack per patient")
    ordered = [case.id for case in sorted(sections, key=lambda case: case.page or 0)]
    wanted = [name for name in PARTITIONS if shares[name] > 0]
    free = len(ordered) - gap * (len(wanted) - 1)
    if free < len(wanted):
        raise InputError(
            f"patient {patient!r}: {len(ordered)} sections are too few for {len(wanted)} blocks with gaps of {gap}"
        )
    sizes = {name: max(1, round(shares[name] * free)) for name in wanted}
    sizes[wanted[0]] += free - sum(sizes.values())
    while sizes[wanted[0]] < 1:  # every block was rounded up
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] -= 1
        sizes[wanted[0]] += 1
    place: dict[str, str] = {}
    start = 0
    for name in wanted:
        place |= dict.fromkeys(ordered[start : start + sizes[name]], name)
        start += sizes[name] + gap
    return place


def _dealt(manifest: Manifest, place: dict[str, str], record: dict[str, Any]) -> Manifest:
    fields = manifest.model_dump(exclude_unset=True)
    fields["split"] = record
    names = (*PARTITIONS, "unassigned")
    rows = [case for _, case in manifest.cases()]
    fields |= {name: [case.model_dump(exclude_unset=True) for case in rows if place[case.id] == name] for name in names}
    return Manifest(**fields)
