"""The manifest: one JSON file that says what a dataset is, its cases, and which partition each case is in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import labels
from pipeline.atomic import atomic
from pipeline.errors import InputError

PARTITIONS = ("training", "validation", "test")
"""The partitions that training and evaluation read, in the order in which they are dealt."""

FOLD = "fold"
"""The column with the number of a case's fold, counted from 1, where a manifest is split into folds."""

FOLD_MARK = "#"
"""Between a manifest's path and the number of one of its folds: `manifest.json#2`."""

MONAI_MARK = "::"
"""What MONAI makes of every `#` in a text of a config, paths included."""

BLANK = "blank"
"""How the `pixels` of an image begin that has one value everywhere: such images are equal and yet no copies."""

PUBLIC = "public names"
"""The `pseudonyms` of a manifest that keeps the patients' names."""


class Case(BaseModel):
    """One image with its reference: a file, one page of a TIFF stack, or one DICOM series of a folder.

    `patient` is what no split divides: a patient's pseudonym, or, where no patient is known, an image or a cluster.
    `study` is one examination of a patient. Several images are its channels, one file or folder each. `series` is the
    SeriesInstanceUID of each image that is a folder, `resampled` names the channels, from 1, that lie on another grid
    than channel 0 and are to be resampled to it.
    Columns that are not named here (age band, institution, ...) are kept as they are.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str = Field(min_length=1)
    patient: str = Field(min_length=1)
    study: str | None = None
    image: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=2)]
    label: str | None = None
    series: str | list[str] | None = None
    resampled: list[int] | None = None
    page: int | None = Field(default=None, ge=0)
    sha256: str | None = None
    label_sha256: str | None = None
    pixels: str | None = None

    @property
    def images(self) -> list[str]:
        """The paths of its image, one per file or folder."""
        return [self.image] if isinstance(self.image, str) else list(self.image)


class Manifest(BaseModel):
    """A dataset: the Medical Segmentation Decathlon's `dataset.json`, with patients, digests and partitions.

    `labels` maps a class index to its name, `label_values` raw values in the label file, written as
    `pipeline.labels` says, to their class index; `spacing_mm` is null where it is unknown; `pseudonyms` says what the
    patients' names are: made with a site's key (`key:` and its fingerprint), or public.
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
        labels.check(self.label_values)
        seen: set[str] = set()
        for _, case in self.cases():
            if case.id in seen:
                raise ValueError(f"case {case.id!r} stands twice: give every case an id of its own")
            seen.add(case.id)
            if case.label and case.label.lower().endswith(labels.JPEG_SUFFIXES):
                raise ValueError(
                    f"case {case.id!r}: {case.label} is a JPEG, which changes label values; use PNG or TIFF"
                )
        if self.folds():
            self._check_folds()
        return self

    def _check_folds(self) -> None:
        record = self.split or {}
        folds, validation = record["folds"], record.get("validation")
        if not isinstance(folds, int) or folds < 2:
            raise ValueError(f"`split` has {folds!r} folds: write a whole number from 2")
        if not isinstance(validation, float) or not 0 < validation < 1 or "seed" not in record:
            raise ValueError("`split` into folds must say a `seed`, and `validation`, a share between 0 and 1")
        for name, case in self.cases():
            number = fold_of(case)
            if name in PARTITIONS:
                raise ValueError(f"case {case.id!r} is in {name}, but the manifest is split into folds")
            if number is not None and (type(number) is not int or not 1 <= number <= folds):
                raise ValueError(f"case {case.id!r} has fold {number!r}: write a whole number from 1 to {folds}")

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

    def folds(self) -> int | None:
        """Into how many folds the manifest is split; None where it has partitions, as one fold of it has."""
        record = self.split or {}
        return None if "fold" in record else record.get("folds")

    def places(self) -> tuple[str, ...]:
        """Where a case can be: in a partition, or in `fold 1`, `fold 2`, ..."""
        folds = self.folds()
        return tuple(f"fold {number}" for number in range(1, folds + 1)) if folds else PARTITIONS

    def assigned(self) -> Iterator[tuple[str, Case]]:
        """Every case that has a place, one of `places()`, with its name."""
        for name, case in self.cases():
            if name in PARTITIONS:
                yield name, case
            elif self.folds() and fold_of(case):
                yield f"fold {fold_of(case)}", case

    def split_digests(self) -> dict[str, str]:
        """SHA-256 over who is where and over what is where, of the cases that have a partition.

        Returns:
            `patients_sha256`, over the sorted pairs of patient and partition, and `pixels_sha256`, over those of
            pixel digest and partition (of a case's id where it has no digest).
        """
        placed = [(case, name) for name, case in self.assigned()]
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
    """Read and validate a manifest, or one fold of it.

    Args:
        path: of the file; `manifest.json#2` is its second fold: the patients of fold 2 are in `test`, a share of the
            others in `validation`, the rest in `training`. A file whose own name has a `#` is taken as it is.

    Raises:
        InputError: the file is missing or no JSON, or a field is wrong; names file, case and field. Or there is no
            such fold.
    """
    file, number = _file_and_fold(Path(path))
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such manifest; `overtile index` makes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not a readable JSON manifest: {error}") from None
    try:
        manifest = Manifest.model_validate(raw)
        return manifest if number is None else one_fold(manifest, number)
    except ValidationError as error:
        raise InputError(f"{file}: {_first_error(error, raw)}") from None
    except InputError as error:
        raise InputError(f"{file}{FOLD_MARK}{number}: {error}") from None


def one_fold(manifest: Manifest, number: int) -> Manifest:
    """The manifest with partitions instead of folds: fold `number` is the test partition.

    Of the other patients, `split.validation` (a share, at least one patient) go to `validation`, in an order that
    follows from seed, fold and patient alone, so that a new patient moves few others. Cases without a fold, which are
    newer than the split, stay unassigned.

    Raises:
        InputError: the manifest is not split into folds, or not into that many.
    """
    folds = manifest.folds()
    record = manifest.split or {}
    if not folds:
        raise InputError("this manifest is not split into folds; `overtile split --folds 5` does it")
    if not 1 <= number <= folds:
        raise InputError(f"there is no fold {number}, only {folds} folds")
    others = sorted({case.patient for case in manifest.unassigned if fold_of(case) not in (None, number)})
    others.sort(key=lambda patient: hashlib.sha256(f"{record['seed']}:{number}:{patient}".encode()).digest())
    count = max(1, round(record["validation"] * len(others)))
    held_out = set(others[: min(count, len(others) - 1)])
    rows: dict[str, list[Case]] = {name: [] for name in (*PARTITIONS, "unassigned")}
    for case in manifest.unassigned:
        fold = fold_of(case)
        seen = "validation" if case.patient in held_out else "training"
        rows["unassigned" if fold is None else "test" if fold == number else seen].append(case)
    return manifest.model_copy(update={**rows, "split": record | {"fold": number}})


def as_item(case: Case, root: Path) -> dict[str, Any]:
    """A case as MONAI takes it, with absolute paths: what `pipeline.loading.LoadCased` loads."""
    files = [str(root / path) for path in case.images]
    item: dict[str, Any] = {"id": case.id, "patient": case.patient, "image": files if len(files) > 1 else files[0]}
    if case.label is not None:
        item["label"] = str(root / case.label)
    more = {"page": case.page, "series": case.series, "resampled": case.resampled}
    return item | {key: value for key, value in more.items() if value is not None}


def fold_of(case: Case) -> int | None:
    """The fold of a case, None where it has none."""
    return (case.model_extra or {}).get(FOLD)


def unit_name(manifest: Manifest) -> str:
    """What `case.patient` is, and what no split divides: "cluster" or "image" where the manifest says so."""
    by = (manifest.split or {}).get("by")
    return by if by in ("cluster", "image") else "patient"


def require_partitions(manifest: Manifest, path: str | Path) -> None:
    """Say what to give instead, where partitions are wanted of a manifest that is split into folds.

    Raises:
        InputError: it is.
    """
    if folds := manifest.folds():
        raise InputError(
            f"{path}: this manifest is split into {folds} folds: "
            f"give {path}{FOLD_MARK}1 ... {path}{FOLD_MARK}{folds}, or `overtile crossvalidate`"
        )


def write(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest atomically: the file is the old one or the new one, never half of one."""
    with atomic(Path(path)) as temporary:
        temporary.write_text(dumps(manifest), encoding="utf-8")


def folder_of(path: str | Path) -> Path:
    """The folder of a manifest, whose paths are relative to it, also where MONAI has rewritten the `#` of its name."""
    return _file_and_fold(Path(path))[0].parent


def _file_and_fold(path: Path) -> tuple[Path, int | None]:
    """The file of a path, and the fold that the path names after its last `#`, if it names one.

    A path that is there as it is given is taken so; else as it was before MONAI rewrote every `#` of it.
    """
    written = Path(str(path).replace(MONAI_MARK, FOLD_MARK))
    for whole in (path, written):
        if whole.is_file():
            return whole, None
    name, mark, fold = written.name.rpartition(FOLD_MARK)
    if not (mark and name):
        return path, None
    if not (fold.isascii() and fold.isdigit()):
        raise InputError(f"{path}: {fold!r} is no number of a fold; write {path.with_name(name)}{FOLD_MARK}1")
    as_given = path.with_name(name)
    return as_given if as_given.is_file() else written.with_name(name), int(fold)


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
