"""What weights were trained on, told in digests: patients and pixels are recognised again, and no name is kept."""

from __future__ import annotations

import hashlib
from typing import Any

from pipeline.manifest import Manifest

LENGTH = 16
"""Hexadecimal digits of a digest in a list: two of 100 000 cases are taken for one with a chance of 1 in 10^9."""

SEEN = ("training", "validation")
"""The partitions that shape weights: one teaches them, the other chooses their epoch."""


def training_record(manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint says about the cases that it is from: text and lists of digests, no name, no path.

    Args:
        manifest: of the training.

    Returns:
        `patients_sha256` and `pixels_sha256` of the split, `manifest_sha256`, `split_by`, `key` (whose pseudonyms
        they are, or None), and under `training` and `validation` the digests of their `patients` and `pixels`.
    """
    record: dict[str, Any] = {
        **manifest.split_digests(),
        "manifest_sha256": manifest.digest(),
        "split_by": (manifest.split or {}).get("by", "patient"),
        "key": manifest.pseudonyms,
    }
    for name in SEEN:
        cases = manifest.partition(name)
        record[name] = {
            "patients": sorted({shortened(case.patient) for case in cases}),
            "pixels": sorted({case.pixels[:LENGTH] for case in cases if case.pixels}),
        }
    return record


def shortened(patient: str) -> str:
    """The digest that stands for a patient: a public manifest's pseudonym may be a name."""
    return hashlib.sha256(patient.encode()).hexdigest()[:LENGTH]
