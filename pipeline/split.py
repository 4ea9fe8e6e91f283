"""Partitions and folds that do not leak: by patient, or, only when told so and why, by section with a gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.dealing import deal, homes, in_order, strata
from pipeline.errors import InputError
from pipeline.manifest import FOLD, PARTITIONS, Case, Manifest, fold_of

FRACTIONS = (0.7, 0.15, 0.15)
"""Of the patients, for training, validation and test, where nothing else is said."""

VALIDATION = 0.125
"""Of the patients outside a fold's test partition, the share that is its validation partition."""


def split_by_patient(
    manifest: Manifest, fractions: Sequence[float], seed: int, *, by: str = "patient", stratify: str | None = None
) -> Manifest:
    """Deal the patients that have no partition yet; those that have one keep it, new cases of theirs included.

    Each new patient goes to the partition most in deficit (its fraction of all patients, less those it has), in an
    order that follows from `seed` and the patient alone.

    Args:
        manifest: cases under `unassigned` are dealt.
        fractions: of patients for training, validation and test; they add up to 1.
        seed: another seed, another order.
        by: "cluster" where `pipeline.grouping` put a cluster in the place of the patient.
        stratify: column of which every partition gets its share of each value.

    Raises:
        InputError: fractions are wrong, there are fewer patients than partitions, no such column, or the manifest is
            split otherwise.
        DataError: a patient's cases disagree in the column.
    """
    shares = _checked(fractions)
    origin = _origin(manifest, by)
    if folds := manifest.folds():
        raise InputError(f"this manifest is split into {folds} folds: say --folds {folds} to deal new patients")
    home = homes(manifest)
    stratum = strata(manifest, stratify)
    wanted = [name for name in PARTITIONS if shares[name] > 0]
    if len(stratum) < len(wanted):
        raise InputError(
            f"{len(stratum)} {origin['by']}s cannot fill {len(wanted)} partitions: add {origin['by']}s, "
            "or set a fraction to 0"
        )
    if not manifest.unassigned:
        return manifest
    home = deal(in_order(stratum.keys() - home.keys(), seed), home, shares, stratum)
    record = origin | {"seed": seed, "fractions": list(fractions)} | ({"stratify": stratify} if stratify else {})
    return _dealt(manifest, {case.id: home[case.patient] for _, case in manifest.cases()}, record)


def split_into_folds(
    manifest: Manifest,
    folds: int,
    seed: int,
    *,
    by: str = "patient",
    stratify: str | None = None,
    validation: float = VALIDATION,
) -> Manifest:
    """Deal the patients that have no fold yet to folds of equal size; those that have one keep it.

    The cases stay under `unassigned`, with their fold in a column: `pipeline.manifest.read("m.json#2")` makes
    partitions of it.

    Args:
        manifest: its cases without a fold are dealt.
        folds: how many.
        seed: another seed, another order.
        by: as for `split_by_patient`.
        stratify: column of which every fold gets its share of each value.
        validation: share of the patients outside a fold that is its validation partition; at least one patient.

    Raises:
        InputError: as `split_by_patient`; or the manifest has partitions, or folds that were dealt otherwise.
        DataError: a patient's cases disagree in the column.
    """
    origin = _origin(manifest, by)
    record = origin | {"folds": folds, "seed": seed, "stratify": stratify, "validation": validation}
    if manifest.folds():
        _same_folds(manifest.split or {}, record)
    elif any(name in PARTITIONS for name, _ in manifest.cases()):
        raise InputError("this manifest has partitions already: index it anew, to another file, to split it into folds")
    elif any(fold_of(case) is not None for case in manifest.unassigned):
        raise InputError(f"the cases have a column {FOLD!r} already: give it another name in the recipe")
    if folds < 2:
        raise InputError(f"--folds must be at least 2, got {folds}")
    if not 0 < validation < 1:
        raise InputError(f"--validation must be a share between 0 and 1, got {validation:g}")
    names = {f"fold {number}": number for number in range(1, folds + 1)}
    home, stratum = homes(manifest), strata(manifest, stratify)
    if all(fold_of(case) for case in manifest.unassigned) and manifest.folds():
        return manifest
    order = in_order(stratum.keys() - home.keys(), seed)
    home = deal(order, home, dict.fromkeys(names, 1 / folds), stratum)
    if len(stratum) < folds or len(home) - max(Counter(home.values()).values()) < 2:
        raise InputError(
            f"{len(stratum)} {origin['by']}s are too few for {folds} folds: every fold needs one to test, "
            f"and two others to train and to validate; add {origin['by']}s, or take another number of folds"
        )
    fields = manifest.model_dump(exclude_unset=True)
    rows = [row | {FOLD: names[home[row["patient"]]]} for row in fields["unassigned"]]
    return Manifest(**(fields | {"split": record, "unassigned": rows}))


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


def _origin(manifest: Manifest, by: str) -> dict[str, Any]:
    """How a record of a split begins: by what and, if it is said, why."""
    record = manifest.split or {}
    if "fold" in record:
        raise InputError(f"this is fold {record['fold']} of a manifest: split deals the whole one, without #")
    known = record.get("by", by)
    if known != by and not (known == "image" and by == "patient"):
        again = f"say --by {known} to deal new cases, or " if known != "image" else ""
        raise InputError(f"this manifest is split by {known}: {again}index it anew to split it by {by}")
    return {"by": known} | ({"because": record["because"]} if "because" in record else {})


def _same_folds(before: dict[str, Any], now: dict[str, Any]) -> None:
    words = ("folds", "seed", "stratify", "validation")
    if any(before.get(word) != now[word] for word in words):
        said = " ".join(f"--{word} {before[word]}" for word in words if before.get(word) is not None)
        raise InputError(f"this manifest is split with {said}: say the same to deal new patients, or index it anew")


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
