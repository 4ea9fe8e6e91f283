"""Leaks that a manifest shows by itself: patients, studies, spellings, equal pixels, neighbouring sections."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from pipeline.errors import DataError
from pipeline.manifest import BLANK, PUBLIC, Case, Finding, Manifest, unit_name
from pipeline.patients import refuse_two_spellings

PSEUDONYM = r"P-[0-9a-f]{12}"
"""What `pipeline.patients.pseudonym` makes: two of them never differ by spelling alone."""


def declared_leaks(manifest: Manifest) -> Iterator[Finding]:
    """What stands in two partitions (or folds) and must not, by the names and digests of the manifest alone."""
    yield from _divided(manifest)
    yield from _spellings(manifest)
    yield from _equal_pixels(manifest)
    yield from _sections(manifest)


def by_section(manifest: Manifest) -> bool:
    """Whether a patient's sections may be in several partitions."""
    return (manifest.split or {}).get("by") == "section"


def places(manifest: Manifest) -> str:
    """What the manifest is split into: partitions or folds."""
    return "folds" if manifest.folds() else "partitions"


def _divided(manifest: Manifest) -> Iterator[Finding]:
    """Patients, or what stands for them, and studies in more than one place."""
    if by_section(manifest):
        return
    homes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, case in manifest.assigned():
        homes[unit_name(manifest), case.patient].add(name)
        if case.study:
            homes["study", case.study].add(name)
    for (what, which), names in homes.items():
        if len(names) > 1:
            message = f"{what} {which} is in {' and '.join(sorted(names))}"
            yield Finding("error", f"{what} in two {places(manifest)}", which, message)


def _spellings(manifest: Manifest) -> Iterator[Finding]:
    """Names of patients that differ in case, punctuation or leading zeros alone; pseudonyms are no names."""
    patients = {case.patient for _, case in manifest.cases()}
    if unit_name(manifest) != "patient" or manifest.pseudonyms not in (None, PUBLIC):
        return
    try:
        refuse_two_spellings({patient for patient in patients if not re.fullmatch(PSEUDONYM, patient)})
    except DataError as error:
        yield Finding("error", "one patient under two spellings?", "-", str(error))


def _equal_pixels(manifest: Manifest) -> Iterator[Finding]:
    seen: dict[str, list[tuple[str, Case]]] = defaultdict(list)
    for name, case in manifest.assigned():
        if case.pixels and not case.pixels.startswith(BLANK):
            seen[case.pixels].append((name, case))
    for twins in seen.values():
        (name, first), *others = twins
        for other_name, other in others:
            if other_name != name:
                message = f"{first.id} in {name} and {other.id} in {other_name} have the same pixels"
                yield Finding("error", f"equal pixels in two {places(manifest)}", other.id, message)
            else:
                message = f"{first.id} and {other.id}, both in {name}, have the same pixels"
                yield Finding("warning", "equal pixels", other.id, message)


def _sections(manifest: Manifest) -> Iterator[Finding]:
    """Where sections of one stack were split: those of two partitions must keep the declared gap."""
    if not by_section(manifest):
        return
    gap = int((manifest.split or {}).get("gap", 1))
    stacks: dict[str, list[tuple[int, str, Case]]] = defaultdict(list)
    for name, case in manifest.assigned():
        if case.page is not None:
            stacks[case.images[0]].append((case.page, name, case))
    for sections in stacks.values():
        ordered = sorted(sections, key=lambda section: section[0])
        for (page, name, _), (next_page, next_name, case) in pairwise(ordered):
            if name != next_name and next_page - page <= gap:
                message = f"sections {page} ({name}) and {next_page} ({next_name}) are nearer than the gap of {gap}"
                yield Finding("error", "no gap between partitions", case.id, message)
