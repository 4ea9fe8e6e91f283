"""The command `index` on a tree of DICOM files: printing, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.terminal import progress as _progress
from pipeline.terminal import say as _print

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.recipe import Recipe


def is_tree(root: Path, fields: Mapping[str, Any]) -> bool:
    """Whether a folder is read by its DICOM headers: the recipe says so, or there is a DICOM file and no pattern."""
    from pipeline.headers import holds_dicom

    return fields.get("dicom") is not None or ("image" not in fields and holds_dicom(root))


def index(root: Path, plan: Recipe, out: Path, key: bytes | None) -> None:
    """Read a DICOM tree into a manifest, with a report beside it that is also written where nothing can be used."""
    from pipeline import manifest as manifests
    from pipeline.atomic import atomic
    from pipeline.dicom_index import manifest_of, survey
    from pipeline.dicom_report import in_words, path_of, report

    tree = survey(root, plan, _progress)
    manifest = None
    try:
        manifest = manifest_of(tree, root, plan, key=key, previous=out)
        manifests.write(manifest, out)
    finally:
        with atomic(path_of(out)) as temporary:
            told = report(tree, manifest, key)
            temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for line in in_words(tree, key):
            _print(line)
        _print(f"{tree.series} series found, {len(tree.refused)} refusals -> {path_of(out)}")
    cases = [case for _, case in manifest.cases()]
    labelled = sum(case.label is not None for case in cases)
    patients = len({case.patient for case in cases})
    _print(f"{len(cases)} cases of {patients} patients, {labelled} with a reference -> {out}")
