"""What weights were trained on, told in digests: patients and pixels are recognised again, and no name is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import DataError
from pipeline.manifest import BLANK, PUBLIC, Case, Manifest

LENGTH = 16
"""Hexadecimal digits of a digest in a list: two among 100 000 share them with a chance below 1 in 10^9."""

SEEN = {
    "training": "in the training partition of this checkpoint",
    "validation": "in the validation partition of this checkpoint, which chose its epoch",
}
"""The partitions that shape weights."""

WITH_PATIENTS = ("patient", "section")
"""What a split goes by where patients are known; elsewhere `patient` is the name of an image or of a cluster."""

SHOWN = 5
"""Cases that a refusal names."""

STARTED_FROM = "started_from"
"""In the record of a fine-tuned checkpoint: that of the weights it started from, and the `sha256` of their file."""

NONE, UNKNOWN = "none", "unknown"
UNSAID = "unknown: the checkpoint does not say what it was trained on"
STARTED_UNSAID = "unknown: the weights that the training started from do not say what they were trained on"
NO_PATIENTS = "unknown: which images are of one patient is not known"
NO_DIGESTS = "unknown: not every case has a digest of its pixels; `overtile index` takes them"
DIVIDED = "the same ones, as declared: the split by section divides a patient"
"""What a report says of an overlap."""


def training_record(manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint says about the cases that it is from: text and lists of digests, no name, no path.

    Args:
        manifest: of the training.

    Returns:
        `patients_sha256` and `pixels_sha256` of the split, `manifest_sha256`, `split_by`, `key` (the manifest's
        `pseudonyms`), and under `training` and `validation` the digests of their `patients` and `pixels`; a case
        without a digest of its pixels stands there as an empty text.
    """
    record: dict[str, Any] = {
        **manifest.split_digests(),
        "manifest_sha256": manifest.digest(),
        "split_by": _split_by(manifest),
        "key": manifest.pseudonyms,
    }
    for name in SEEN:
        cases = manifest.partition(name)
        record[name] = {
            "patients": sorted({_patient(case) for case in cases}),
            "pixels": sorted({_pixels(case) for case in cases}),
        }
    return record


def refuse_overlap(record: Mapping[str, Any] | None, manifest: Manifest, partition: str) -> dict[str, str]:
    """Refuse to score weights on cases that shaped them; say what is known about the others.

    Pixels are compared in any case. Patients are recognised inside one site's key only, and left where both splits go
    by section, which divides a patient by declaration.

    Args:
        record: from `training_record`, as `pipeline.checkpoint.training_of` reads it; None where there is none.
        manifest: of the cases to score.
        partition: of these cases. The validation partition may be scored with the weights whose epoch it chose.

    Returns:
        `overlap_with_training_patients` and `overlap_with_training_pixels`: `none`, or why it is not known.

    Raises:
        DataError: cases have pixels or patients that the weights have seen; names them.
    """
    cases = manifest.partition(partition)
    if record is None or not record.keys() >= SEEN.keys():
        return _texts(UNSAID, UNSAID)
    compare_patients = _comparable(record, manifest) and _splits(record, manifest) != {"section"}
    for name in ("training",) if partition == "validation" else SEEN:
        seen = _seen(cases, record, name, compare_patients=compare_patients)
        if seen:
            raise DataError(_refusal(seen, record, name, partition, len(cases)))
    said = _texts(_patients_text(cases, record, manifest), _pixels_text(cases, record))
    if (before := record.get(STARTED_FROM)) is None:
        return said
    earlier = refuse_overlap(before, manifest, partition)
    return {key: text if text != NONE else earlier[key].replace(UNSAID, STARTED_UNSAID) for key, text in said.items()}


def sentence(evaluation: Mapping[str, Any]) -> str:
    """What an evaluation's table says about the overlap, for people."""
    patients, pixels = (evaluation[f"overlap_with_training_{what}"] for what in ("patients", "pixels"))
    return f"overlap with the release's training patients: {patients}; with its training pixels: {pixels}"


def _texts(patients: str, pixels: str) -> dict[str, str]:
    return {"overlap_with_training_patients": patients, "overlap_with_training_pixels": pixels}


def _split_by(manifest: Manifest) -> str:
    return str((manifest.split or {}).get("by", "patient"))


def _patient(case: Case) -> str:
    """The digest that stands for a patient, since a public manifest's pseudonym may be a name."""
    return hashlib.sha256(case.patient.encode()).hexdigest()[:LENGTH]


def _pixels(case: Case) -> str:
    """The start of a digest, with the word before it that says what it is of."""
    kind, space, digest = (case.pixels or "").rpartition(" ")
    return kind + space + digest[:LENGTH]


def _splits(record: Mapping[str, Any], manifest: Manifest) -> set[str]:
    return {record["split_by"], _split_by(manifest)}


def _comparable(record: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether equal pseudonyms mean one patient, or one cluster: not where they name images or are of two keys."""
    keys, splits = {record["key"], manifest.pseudonyms} - {None}, _splits(record, manifest)
    return len(keys) < 2 and (splits <= {*WITH_PATIENTS} or splits == {"cluster"})


def _seen(cases: Sequence[Case], record: Mapping[str, Any], name: str, *, compare_patients: bool) -> dict[str, str]:
    """Case id -> what of it the weights have seen."""
    seen = {}
    for case in cases:
        blank = (case.pixels or BLANK).startswith(BLANK)
        if not blank and _pixels(case) in record[name]["pixels"]:
            seen[case.id] = "pixels"
        elif compare_patients and _patient(case) in record[name]["patients"]:
            seen[case.id] = "cluster" if record["split_by"] == "cluster" else "patient"
    return seen


def _refusal(seen: Mapping[str, str], record: Mapping[str, Any], name: str, partition: str, of: int) -> str:
    shown = ", ".join(f"{case} (its {what})" for case, what in list(seen.items())[:SHOWN])
    more = f" and {len(seen) - SHOWN} more" if len(seen) > SHOWN else ""
    namesakes = "; if other people have these public names, index them with a key"
    return (
        f"{len(seen)} of {of} cases to score were {SEEN[name]}: {shown}{more}; a score on them would be too good: "
        f"take them out of `{partition}`, or evaluate weights that have not seen them"
        + (namesakes if record["key"] == PUBLIC and "patient" in seen.values() else "")
    )


def _patients_text(cases: Sequence[Case], record: Mapping[str, Any], manifest: Manifest) -> str:
    """What is known after no case was refused: equal patients are left where a split by section declares them."""
    if not _splits(record, manifest) <= {*WITH_PATIENTS}:
        return NO_PATIENTS
    if _comparable(record, manifest) and any(_patient(case) in record["training"]["patients"] for case in cases):
        return DIVIDED
    return NONE if manifest.pseudonyms and record["key"] == manifest.pseudonyms else UNKNOWN


def _pixels_text(cases: Sequence[Case], record: Mapping[str, Any]) -> str:
    digests = {*record["training"]["pixels"], *map(_pixels, cases)}
    return NO_DIGESTS if "" in digests else NONE
