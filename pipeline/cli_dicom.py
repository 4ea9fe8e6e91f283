"""The command `index` on a tree of DICOM files: printing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.terminal import progress as _progress
from pipeline.terminal import say as _print

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def index(root: Path, plan: Recipe, out: Path, key: bytes | None) -> None:
    """Read a DICOM tree into a manifest, with a report beside it that is also written where nothing can be used."""
    from pipeline.dicom_index import survey
    from pipeline.dicom_report import in_words, path_of
    from pipeline.indexing import write_dicom

    tree = survey(root, plan, _progress)
    try:
        manifest = write_dicom(tree, root, plan, out, key=key, previous=out)
    finally:
        for line in in_words(tree, key):
            _print(line)
        _print(f"{tree.series} series found, {len(tree.refused)} refusals -> {path_of(out)}")
    cases = [case for _, case in manifest.cases()]
    labelled = sum(case.label is not None for case in cases)
    patients = len({case.patient for case in cases})
    _print(f"{len(cases)} cases of {patients} patients, {labelled} with a reference -> {out}")
