"""The way of a dataset's patients from what was found to the partitions, in counts: no name, no path."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.dicom_report import path_of
from pipeline.manifest import FOLD_MARK, PARTITIONS, Case, read, unit_name

FILE = "data.json"
"""What a run calls its flow."""


def flow(manifest_path: str | Path) -> dict[str, Any]:
    """Count what was found, refused, and dealt to each partition.

    Args:
        manifest_path: of a manifest, or of one fold of it. Where it was made of a DICOM tree, the report that `overtile
            index` left beside it says what was refused.

    Returns:
        `manifest` (its name), `unit` ("patient", or "cluster" or "image" where no patient is known), `split` (how it
        was dealt), `indexed`, and one entry per partition and `unassigned`, with `patients` and `cases` each. Of a
        DICOM tree also `found` (series), `refused` (rule -> how often) and `passed_over` (kind -> files).

    Raises:
        InputError: the manifest cannot be read.
    """
    path = Path(manifest_path)
    manifest = read(path)
    counts = {name: _counts(manifest.partition(name)) for name in (*PARTITIONS, "unassigned")}
    split = {key: value for key, value in (manifest.split or {}).items() if key in ("by", "seed", "fold", "folds")}
    return {
        "manifest": manifest.name,
        "unit": unit_name(manifest),
        "split": split,
        "indexed": _counts([case for _, case in manifest.cases()]),
        "partitions": counts,
    } | _refusals(path)


def _counts(cases: Sequence[Case]) -> dict[str, int]:
    return {"patients": len({case.patient for case in cases}), "cases": len(cases)}


def _refusals(manifest: Path) -> dict[str, Any]:
    """From the report of the index, if there is one that can be read; its rules are ours, its sentences name files."""
    try:
        told = json.loads(path_of(_file(manifest)).read_text(encoding="utf-8"))
        return {
            "found": {"series": int(told["series_found"])},
            "refused": dict(Counter(str(entry["rule"]) for entry in told["refused"])),
            "passed_over": {str(entry["what"]): int(entry["files"]) for entry in told["passed_over"]},
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _file(manifest: Path) -> Path:
    """The manifest's file, without the number of a fold."""
    if manifest.is_file():
        return manifest
    return manifest.with_name(manifest.name.replace("::", FOLD_MARK).rpartition(FOLD_MARK)[0] or manifest.name)
