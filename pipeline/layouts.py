"""Datasets that describe themselves: a `dataset.json` as the Medical Segmentation Decathlon or nnU-Net writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

DESCRIPTION = "dataset.json"
"""The file, beside the folders `imagesTr` and `labelsTr`."""

CHANNEL = "_0000"
"""How nnU-Net ends the name of a case's first channel."""


def described(root: Path, *, patients_named: bool = False) -> dict[str, Any]:
    """The fields of a recipe that a dataset's own `dataset.json` gives.

    Its cases are of unknown patients unless a `patient_id` says how to read one out of a file's name.

    Args:
        root: the dataset's folder.
        patients_named: whether the files' names tell the patient.

    Returns:
        Fields of `pipeline.recipe.Recipe`; empty where there is no such file.

    Raises:
        InputError: the file cannot be read, or says something that is not there.
    """
    path = root / DESCRIPTION
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable description of a dataset: {error}") from None
    if not isinstance(told, dict) or not isinstance(told.get("labels"), dict):
        raise InputError(f"{path}: not a description of a dataset: it has no `labels`; say --image and --label instead")
    _require_files(root, told)
    ending = _ending(root, told)
    who = "patient" if patients_named else "case"
    channel = "_{channel}" if any(root.glob(f"imagesTr/*{CHANNEL}{ending}")) else ""
    modality = told.get("channel_names") or told.get("modality") or {}
    fields = {
        "name": told.get("name"),
        "description": told.get("description"),
        "reference": told.get("reference"),
        "licence": told.get("licence") or told.get("license"),
        "image": f"imagesTr/{{{who}}}{channel}{ending}",
        "label": f"labelsTr/{{{who}}}{ending}",
        "classes": _classes(told["labels"], path),
        "modality": [str(modality[key]) for key in sorted(modality, key=int)],
    }
    return {name: value for name, value in fields.items() if value}


def _classes(labels: Mapping[str, Any], path: Path) -> list[tuple[str, str]]:
    """(name, raw value) in their order; the Decathlon maps numbers to names, nnU-Net names to numbers."""
    pairs = [(value, key) if key.isdecimal() else (key, value) for key, value in labels.items()]
    numbers = [(str(name), str(value)) for name, value in pairs if str(value).isdecimal()]
    if len(numbers) < len(pairs):
        name = next(name for name, value in pairs if not str(value).isdecimal())
        raise InputError(
            f"{path}: the label {name!r} is no single number (a region?): declare classes with --class instead"
        )
    return sorted(numbers, key=lambda pair: int(pair[1]))


def _ending(root: Path, told: Mapping[str, Any]) -> str:
    """The suffix of its files: nnU-Net says it, the Decathlon's are `.nii.gz`."""
    ending = str(told.get("file_ending") or ".nii.gz")
    if not any(root.glob(f"imagesTr/*{ending}")):
        raise InputError(f"{root / DESCRIPTION}: no file imagesTr/*{ending} beside it; restore the images")
    return ending


def _require_files(root: Path, told: Mapping[str, Any]) -> None:
    """Every case that the Decathlon's list names must be there; nnU-Net gives their number."""
    listed = told.get("training")
    if isinstance(listed, list):
        for entry in listed:
            label = entry.get("label") if isinstance(entry, dict) else None
            if label and not (root / label).is_file():
                raise InputError(f"{root / DESCRIPTION}: names {label}, which is not there; restore it")
    expected, found = told.get("numTraining"), len(list(root.glob("labelsTr/[!.]*")))
    if isinstance(expected, int) and expected != found:
        raise InputError(
            f"{root / DESCRIPTION}: says {expected} training cases, labelsTr holds {found}; restore the files or "
            "correct the number"
        )
