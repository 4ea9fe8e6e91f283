"""How a dataset's folder becomes a manifest: patterns, classes, patients and columns, as data in one YAML file."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.channel_rules import DicomRules
from pipeline.errors import InputError
from pipeline.labels import parse_raw
from pipeline.manifest import FOLD, Case

RESERVED = frozenset(Case.model_fields) | {FOLD}
"""What a case itself says, so that no column may be called so: a real name in `patient` would undo the pseudonym."""


def composed(text: str) -> str:
    """A text in one form of its characters (Unicode's NFKC): macOS takes an accented letter apart, Linux does not."""
    return unicodedata.normalize("NFKC", text)


class Columns(BaseModel):
    """A CSV table with one line per patient, and what of it the cases take over.

    `take` maps a name to a column of the table; `age/20` bands numbers, so that 67 becomes `60-79`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    patient: str
    take: dict[str, str] = Field(min_length=1)

    @field_validator("take")
    @classmethod
    def _no_field_of_a_case(cls, take: dict[str, str]) -> dict[str, str]:
        _refuse_reserved(take)
        return take


class Recipe(BaseModel):
    """What `pipeline.index.index` needs to know of a dataset.

    Args:
        name: of the dataset; `description`, `reference` and `licence` go into the manifest as they are.
        image: pattern with `{patient}`, `{study}`, `{case}` and `{page}`, relative to the dataset's folder.
        label: likewise; an image and a label belong together when the fields agree.
        classes: (name, raw values) in the order of the class indices; raw values as `pipeline.labels` says, several
            with commas between them. A mapping in YAML.
        patient: name of the only patient, where the pattern names none.
        patients_unknown: nobody knows which images are of one patient; each is taken for one.
        patient_id: regular expression that what `{patient}` found must match as a whole. Its group `patient`, else the
            whole match, is the patient, however it is spelt: case and punctuation do not count. Its group
            `study` is the study; other named groups become columns, which are not called as a field of a case.
        listed: text file, relative to the dataset's folder, whose lines begin with the name of a file without its
            suffix; files that it does not name are left out. None: all that the patterns match.
        modality: one name per channel.
        spacing_mm: height and width of a pixel; None keeps what an earlier manifest says, or unknown.
        columns: a table to join.
        public: patient names are public, so they are kept.
        downloads: where the files come from, for `pipeline.fetch`.
        dicom: the images are a tree of DICOM files, and there is no pattern `image`: patients, studies and series
            are those of the headers. `label` then is a pattern with `{patient}`, `{study}` and `{series}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    reference: str = ""
    licence: str = ""
    image: str
    label: str | None = None
    classes: list[tuple[str, str]] = []
    patient: str | None = None
    patients_unknown: bool = False
    patient_id: str | None = None
    listed: str | None = None
    modality: list[str] = []
    spacing_mm: list[float] | None = None
    columns: Columns | None = None
    public: bool = False
    downloads: list[dict[str, str]] = []
    dicom: DicomRules | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_pattern_for_dicom(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and fields.get("dicom") is not None:
            if fields.get("image"):
                raise ValueError("`image` is a pattern of file names, `dicom` reads headers: leave one of them out")
            return {**fields, "image": ""}
        return fields

    @field_validator("dicom")
    @classmethod
    def _no_field_of_a_case(cls, dicom: DicomRules | None) -> DicomRules | None:
        _refuse_reserved(dicom.columns if dicom else ())
        return dicom

    @field_validator("classes", mode="before")
    @classmethod
    def _as_pairs(cls, classes: Any) -> Any:
        pairs = list(classes.items()) if isinstance(classes, Mapping) else classes
        if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError("write classes as a mapping of names to raw values, one line each as in `background: 0`")
        return [(name, str(raw)) for name, raw in pairs]

    @field_validator("classes")
    @classmethod
    def _declared_once(cls, classes: list[tuple[str, str]]) -> list[tuple[str, str]]:
        values = [value for _, raw in classes for value in raw.split(",")]
        for what, entries in (("name", [name for name, _ in classes]), ("raw value", values)):
            if len(set(entries)) < len(entries):
                raise ValueError(f"two classes with the same {what}: {', '.join(entries)}")
        for value in values:
            parse_raw(value)
        return classes

    @field_validator("spacing_mm")
    @classmethod
    def _height_and_width(cls, spacing: list[float] | None) -> list[float] | None:
        if spacing is not None and not (len(spacing) == 2 and all(0 < mm < math.inf for mm in spacing)):
            raise ValueError("write height and width of a pixel in millimetres, two numbers above 0 as in [0.5, 0.5]")
        return spacing

    @field_validator("patient_id")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "").groupindex
        except re.error as error:
            raise ValueError(f"`patient_id` is no regular expression: {error}") from None
        _refuse_reserved(groups.keys() - {"patient", "study"})
        return pattern

    def listed_names(self, root: Path) -> set[str] | None:
        """File names without suffix that `listed` names, `composed`; None where there is no list.

        Raises:
            InputError: the list cannot be read.
        """
        if self.listed is None:
            return None
        path = root / self.listed
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable list of files ({error})") from None
        return {composed(words[0]) for words in lines if words and not words[0].startswith("#")}

    def label_values(self) -> dict[str, int]:
        """Declaration of raw values -> class index."""
        return {value: index for index, (_, raw) in enumerate(self.classes) for value in raw.split(",")}


def _refuse_reserved(columns: Iterable[str]) -> None:
    if taken := sorted(RESERVED.intersection(columns)):
        raise ValueError(
            f"a column may not be called {taken[0]!r}, which is a field of every case; choose another name"
        )


def recipe(fields: Mapping[str, Any], source: str = "") -> Recipe:
    """A recipe from its fields.

    Raises:
        InputError: a field is missing, unknown or wrong; `source` says where it stands.
    """
    try:
        return Recipe.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            said = f"is needed; say --{field}, or write it into a recipe"
        there = DicomRules.model_fields if first["loc"][:1] == ("dicom",) else Recipe.model_fields
        known = f"; there is {', '.join(there)}" if first["type"] == "extra_forbidden" else ""
        raise InputError(f"{source + ': ' if source else ''}field `{field}`: {said}{known}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields of a recipe file.

    Raises:
        InputError: it is missing or no YAML mapping.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML recipe: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: not a recipe; it must name at least `name` and `image`")
    return fields
