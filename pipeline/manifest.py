"""The manifest: one JSON file that says what a dataset is, its cases, and which partition each case is in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.atomic import atomic
from pipeline.errors import InputError

PARTITIONS = ("training", "validation", "test")
"""The partitions that training and evaluation read, in the order in which they are dealt."""


class Case(BaseModel):
    """One image with its reference: a file, or one page of a TIFF stack.

    Columns that are not named here (age band, institution, ...) are kept as they are.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str = Field(min_length=1)
    patient: str = Field(min_length=1)
    image: str = Field(min_length=1)
    label: str | None = None
    page: int | None = Field(default=None, ge=0)
    sha256: str | None = None
    label_sha256: str | None = None
    pixels: str | None = None


class Manifest(BaseModel):
    """A dataset: the Medical Segmentation Decathlon's `dataset.json`, with patients, digests and partitions.

    `labels` maps a class index to its name, `label_values` a raw value in the label file to its class index;
    `spacing_mm` is null where it is unknown; `pseudonyms` says what the patients' names are: of which site's key
    (`key:` and its fingerprint), or public ones.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    description: str = ""
    reference: str = ""
    licence: str = ""
    release: str = ""
    modality: dict[str, str] = Field(min_length=1)
    labels: dict[str, str] = {}
    label_values: dict[str, int] = {}
    spacing_mm: list[float] | None = None
    pseudonyms: str | None = None
    split: dict[str, Any] | None = None
    training: list[Case] = []
    validation: list[Case] = []
    test: list[Case] = []
    unassigned: list[Case] = []

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if sorted(self.labels) != sorted(str(index) for index in range(len(self.labels))):
            raise ValueError(f"`labels` must name the classes 0, 1, ... without a hole, got {list(self.labels)}")
        for raw, index in self.label_values.items():
            if str(index) not in self.labels:
                raise ValueError(f"`label_values` maps {raw} to class {index}, which `labels` does not name")
            if not raw.lstrip("-").isdigit():
                raise ValueError(f"`label_values` has the raw value {raw!r}: write an integer")
        seen: set[str] = set()
        for _, case in self.cases():
            if case.id in seen:
                raise ValueError(f"case {case.id!r} stands twice: give every case an id of its own")
            seen.add(case.id)
        return self

    def partition(self, name: str) -> list[Case]:
        """The cases of `training`, `validation`, `test` or `unassigned`."""
        if name not in (*PARTITIONS, "unassigned"):
            raise InputError(f"no partition {name!r}: use one of {', '.join(PARTITIONS)}")
        return list(getattr(self, name))

    def cases(self) -> Iterator[tuple[str, Case]]:
        """Every case with the name of its partition, in file order."""
        for name in (*PARTITIONS, "unassigned"):
            for case in getattr(self, name):
                yield name, case

    def split_digests(self) -> dict[str, str]:
        """SHA-256 over who is where and over what is where, of the cases that have a partition.

        Returns:
            `patients_sha256`, over the sorted pairs of patient and partition, and `pixels_sha256`, over those of
            pixel digest and partition (of a case's id where it has no digest).
        """
        placed = [(case, name) for name, case in self.cases() if name in PARTITIONS]
        return {
            "patients_sha256": _digest({(case.patient, name) for case, name in placed}),
            "pixels_sha256": _digest({(case.pixels or case.id, name) for case, name in placed}),
        }

    def digest(self) -> str:
        """SHA-256 of the manifest as `write` writes it."""
        return hashlib.sha256(dumps(self).encode()).hexdigest()


@dataclass(frozen=True)
class Finding:
    """What the audit found: an error stops training and evaluation, a warning does not."""

    severity: Literal["error", "warning"]
    rule: str
    case: str
    message: str


def dumps(manifest: Manifest) -> str:
    """The manifest as JSON text with one case per line."""
    lines = []
    for key, value in manifest.model_dump(exclude_unset=True).items():
        if key in (*PARTITIONS, "unassigned"):
            rows = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in value)
            lines.append(f" {json.dumps(key)}: [\n  {rows}\n ]" if rows else f" {json.dumps(key)}: []")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _digest(pairs: set[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()


def read(path: str | Path) -> Manifest:
    """Read and validate a manifest.

    Raises:
        InputError: the file is missing or no JSON, or a field is wrong; names file, case and field.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such manifest; `overtile index` makes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable JSON manifest: {error}") from None
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_error(error, raw)}") from None


def write(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest atomically: the file is the old one or the new one, never half of one."""
    with atomic(Path(path)) as temporary:
        temporary.write_text(dumps(manifest), encoding="utf-8")


def _first_error(error: ValidationError, raw: object) -> str:
    """The first validation error as a sentence: partition, case and field, then what is wrong."""
    first = error.errors()[0]
    place: list[str] = []
    value: Any = raw
    for step in first["loc"]:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            value = None
        if isinstance(step, int):
            name = value.get("id") if isinstance(value, dict) else None
            place[-1] += f"[{step}]" + (f" (case {name!r})" if name else "")
        else:
            place.append(str(step))
    more = len(error.errors()) - 1
    tail = f" (and {more} more)" if more else ""
    where = f"field `{'.'.join(place)}`: " if place else ""
    return where + first["msg"].removeprefix("Value error, ") + tail
