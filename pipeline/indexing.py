"""A dataset's folder becomes a manifest as its recipe says: files found by patterns, or DICOM by its headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.atomic import atomic
from pipeline.dicom_index import manifest_of
from pipeline.dicom_report import path_of, report
from pipeline.headers import holds_dicom
from pipeline.layouts import described
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.recipe import recipe as checked
from pipeline.studies import Tree


def planned(root: Path, fields: Mapping[str, Any], source: str = "") -> Recipe:
    """The recipe of a folder, completed by what the folder says of itself; its `dicom` is set where headers are read.

    Args:
        root: the dataset's folder.
        fields: of a recipe.
        source: where they stand, for a sentence.

    Raises:
        InputError: a field is missing, unknown or wrong.
    """
    fields = dict(fields)
    if "image" not in fields:
        fields = described(root, patients_named="patient_id" in fields) | fields
    return checked(({"dicom": {}} if _is_tree(root, fields) else {}) | fields, source)


def write_dicom(
    tree: Tree, root: Path, plan: Recipe, out: Path, *, key: bytes | None, previous: Path | None
) -> Manifest:
    """Write the manifest of a surveyed DICOM tree, with a report beside it also where nothing can be used.

    Args:
        tree: from `pipeline.dicom_index.survey`.
        root: its folder.
        plan: how it was surveyed.
        out: the manifest's file.
        key: of the pseudonyms; None where names are public.
        previous: an earlier manifest, whose partitions are kept.

    Raises:
        InputError, DataError: as of `pipeline.dicom_index.index_dicom`.
    """
    manifest = None
    try:
        manifest = manifest_of(tree, root, plan, key=key, previous=previous)
        manifests.write(manifest, out)
    finally:
        with atomic(path_of(out)) as temporary:
            told = report(tree, manifest, key)
            temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _is_tree(root: Path, fields: Mapping[str, Any]) -> bool:
    """Whether a folder is read by its DICOM headers: the recipe says so, or there is a DICOM file and no pattern."""
    return fields.get("dicom") is not None or ("image" not in fields and holds_dicom(root))
