"""What indexing a DICOM tree found, used, passed over and refused: as data beside the manifest, and in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.header_file import NOT_DICOM
from pipeline.headers import COPY, Refusal
from pipeline.manifest import Manifest
from pipeline.patients import pseudonym, study_pseudonym
from pipeline.studies import Tree

EXAMPLES = 3
"""Files named of those that were passed over for one reason: a disc may hold a thousand of them."""

LINES = 5
"""Refusals told in full on the terminal for one rule; all of them stand in the report."""

PLURALS = {
    NOT_DICOM: ("that is not DICOM", "that are not DICOM"),
    COPY: ("that is a copy of another", "that are copies of others"),
}
"""How a sentence calls files that were passed over; of the others it says the kind."""


def path_of(manifest: Path) -> Path:
    """Where the report of a manifest lies: beside it."""
    return manifest.with_name(f"{manifest.stem}_report.json")


def report(tree: Tree, manifest: Manifest | None, key: bytes | None) -> dict[str, Any]:
    """The report as JSON data; it stays at the site, as the manifest does, and names patients and studies likewise.

    Args:
        tree: as surveyed.
        manifest: made of it; None where nothing could be used.
        key: of the pseudonyms; None where names are public.
    """
    cases = [case for _, case in manifest.cases()] if manifest else []
    return {
        "series_found": tree.series,
        "cases": [case.model_dump(include={"id", "image", "series", "label"}, exclude_none=True) for case in cases],
        "passed_over": [
            {"what": kind, "files": len(files), "examples": files[:EXAMPLES]}
            for kind, files in sorted(tree.passed.items())
        ],
        "refused": [_refusal(refusal, key) for refusal in tree.refused],
    }


def _refusal(refusal: Refusal, key: bytes | None) -> dict[str, str]:
    told = {"rule": refusal.rule, "file": refusal.file, "sentence": refusal.message, "series": refusal.series}
    if refusal.patient:
        told["patient"] = refusal.patient if key is None else pseudonym(key, refusal.patient)
    if refusal.study:
        told["study"] = study_pseudonym(key, refusal.patient, refusal.study)
    return {name: value for name, value in told.items() if value}


def in_words(tree: Tree, key: bytes | None) -> Iterator[str]:
    """The same as lines for a terminal: what was passed over, then every refusal, many of one rule in short."""
    if tree.passed:
        kinds = ", ".join(_passed(kind, len(files)) for kind, files in sorted(tree.passed.items()))
        yield f"passed over: {kinds}"
    by_rule: dict[str, list[Refusal]] = defaultdict(list)
    for refusal in tree.refused:
        by_rule[refusal.rule].append(refusal)
    for rule, refusals in sorted(by_rule.items()):
        for refusal in refusals[:LINES]:
            named = _refusal(refusal, key)
            whose = (
                f" [patient {named['patient']}, study {named['study']}]" if {"patient", "study"} <= named.keys() else ""
            )
            yield f"refused ({rule}){whose}: {refusal.message}"
        if len(refusals) > LINES:
            yield f"refused ({rule}): and {len(refusals) - LINES} more"


def _passed(kind: str, count: int) -> str:
    files = "1 file" if count == 1 else f"{count} files"
    if kind in PLURALS:
        return f"{files} {PLURALS[kind][count > 1]}"
    return f"{count} {kind}"
