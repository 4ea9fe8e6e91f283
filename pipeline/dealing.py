"""Who goes where when patients are dealt: a share to every bin, of each stratum first, then of all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pipeline.errors import DataError, InputError
from pipeline.manifest import FOLD, Manifest, unit_name

TOLERANCE = 1e-9
"""Patients; what rounding makes of a share of a whole number is far less."""

MISSING = ""
"""The stratum of those whose column is empty."""


def in_order(patients: Collection[str], seed: object) -> list[str]:
    """Patients in an order that follows from `seed` and each of them alone, whoever else is there."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def deal(
    order: Sequence[str], home: Mapping[str, str], shares: Mapping[str, float], strata: Mapping[str, str]
) -> dict[str, str]:
    """Give every patient of `order` a bin; those that have one keep it.

    First every bin gets the whole patients of its share of each stratum. What is left of a stratum, less than one
    patient per bin, goes to different bins, to those most in deficit over all. A bin is not left empty where there
    are patients enough. With one stratum, this deals each patient to the bin most in deficit.

    Args:
        order: patients to deal.
        home: the bin of those that have one.
        shares: of all patients, by bin; they add up to 1.
        strata: the stratum of every patient.

    Returns:
        Patient -> bin, of all.
    """
    home = dict(home)
    sizes = Counter(strata[patient] for patient in {*home, *order})
    held = Counter((strata[patient], name) for patient, name in home.items())
    held_in_all = Counter(home.values())
    wanted = [name for name, share in shares.items() if share > 0]

    def lack(name: str, stratum: str) -> float:
        return shares[name] * sizes[stratum] - held[stratum, name]

    def lack_in_all(name: str) -> float:
        return shares[name] * sizes.total() - held_in_all[name]

    def place(patient: str, short: Sequence[str], *, by_stratum: bool) -> bool:
        empty = [name for name in wanted if not held_in_all[name]]
        candidates = empty if sizes.total() - len(home) <= len(empty) else short
        if not candidates:
            return False
        stratum = strata[patient]
        name = max(candidates, key=lambda name: (by_stratum * lack(name, stratum), lack_in_all(name)))
        home[patient] = name
        held[stratum, name] += 1
        held_in_all[name] += 1
        return True

    rest: dict[str, list[str]] = {}
    for patient in order:
        whole = [name for name in wanted if lack(name, strata[patient]) > 1 - TOLERANCE]
        if not place(patient, whole, by_stratum=True):
            rest.setdefault(strata[patient], []).append(patient)
    for stratum, patients in rest.items():
        for patient in patients:
            place(patient, [name for name in wanted if lack(name, stratum) > TOLERANCE], by_stratum=False)
    return home


def homes(manifest: Manifest) -> dict[str, str]:
    """The partition, or fold, of every patient that has one.

    Raises:
        InputError: a patient is in two.
    """
    home: dict[str, str] = {}
    for name, case in manifest.assigned():
        if home.setdefault(case.patient, name) != name:
            raise InputError(
                f"{unit_name(manifest)} {case.patient!r} is in {home[case.patient]} and in {name}: that is a leak, "
                "and which of the two is right is not for a program to say; correct the manifest"
            )
    return home


def strata(manifest: Manifest, column: str | None) -> dict[str, str]:
    """The stratum of every patient: what its cases say in `column`; one for all without a column.

    A case whose column is empty says nothing; patients of whom no case says anything are a stratum of their own.

    Raises:
        InputError: no case has the column.
        DataError: a patient's cases disagree.
    """
    found = dict.fromkeys((case.patient for _, case in manifest.cases()), MISSING)
    if column is None:
        return found
    known = {name for _, case in manifest.cases() for name in case.model_extra or {}} - {FOLD}
    if column not in known:
        raise InputError(f"no column {column!r} to stratify by; there is {', '.join(sorted(known)) or 'none'}")
    for _, case in manifest.cases():
        value = (case.model_extra or {}).get(column)
        said = MISSING if value is None else str(value)
        before = found[case.patient]
        if before != MISSING and said not in (MISSING, before):
            raise DataError(
                f"{unit_name(manifest)} {case.patient!r} has two values in {column!r}, {before!r} and {said!r}: "
                "correct them, or stratify by another column"
            )
        found[case.patient] = said or before
    return found
