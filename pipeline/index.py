"""A folder of images and labels becomes a manifest: patterns name patient, case and page; digests are taken."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import parse
from pydantic import ValidationError

from pipeline.digests import Decoded, all_decoded, joined
from pipeline.errors import InputError
from pipeline.manifest import PARTITIONS, PUBLIC, Case, Manifest, read, unit_name
from pipeline.patients import columns_of, fingerprint, identity, join, pseudonym, refuse_two_spellings, study_pseudonym
from pipeline.pictures import is_image, page_shapes, read_page
from pipeline.progress import Progress, silent
from pipeline.recipe import Recipe, composed
from pipeline.volumes import is_volume, read_volume, stem

FIELDS = ("patient", "study", "case", "page", "channel")
"""What a pattern may name; `{page}` and `{channel}` are numbers, the others stay inside one path component."""


_Fields = tuple[str, str, str, int | None]


@dataclass(frozen=True)
class _Page:
    """One page of one file, or the files of one case's channels, with what the path says about it."""

    who: str
    study: str
    case: str
    page: int | None
    path: str
    columns: dict[str, str | None]
    channel: int | None = None
    others: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of its channels."""
        return (self.path, *self.others)

    @property
    def fields(self) -> _Fields:
        """What image and label of one case share."""
        return self.who, self.study, self.case, self.page


def index(
    root: Path,
    recipe: Recipe,
    *,
    key: bytes | None = None,
    previous: Path | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Read a folder into a manifest.

    Args:
        root: folder that the paths in the manifest are relative to.
        recipe: what patient, study, case and page are, and what label values mean.
        key: pseudonym key; None keeps patient names as they are (public data only).
        previous: an earlier manifest of this dataset, whose partitions, split and texts are kept.
        progress: told about every file.

    Raises:
        InputError: nothing matches, an image has no label or two or other channels than the rest, classes are not
            declared.
        DataError: two patients differ in spelling alone.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    kept = earlier(previous, recipe)
    _require_listed(root, recipe)
    images = _joined(_find(root, recipe.image, recipe))
    labels = _by_fields(_find(root, recipe.label, recipe)) if recipe.label else {}
    if recipe.label:
        images = _pair(images, labels, recipe.image, recipe.label)
        _require_classes(root / next(iter(labels.values())), recipe.classes)
    if not recipe.patients_unknown:
        refuse_two_spellings({page.who for page in images})
    table = join(recipe.columns, root, recipe.patient_id) if recipe.columns else None
    files = sorted({path for p in images for path in p.paths} | set(labels.values()))
    digests = all_decoded(root, files, progress)
    _refuse_other_channels({p.path: sum(digests[path].channels for path in p.paths) for p in images})
    cases = []
    for page in images:
        told = page.columns | (columns_of(table, page.who, page.path) if table is not None else {})
        cases.append(_case(page, labels.get(page.fields), digests, key, told))
    channels = sum(digests[path].channels for path in images[0].paths)
    modality = _modality(images[0].path, channels, recipe.modality)
    return assembled(cases, recipe, modality, key=key, kept=kept, root=root)


def earlier(previous: Path | None, recipe: Recipe) -> Manifest | None:
    """An earlier manifest of the same dataset, None where there is none.

    Raises:
        InputError: it is of another dataset.
    """
    kept = read(previous) if previous and previous.exists() else None
    if kept and kept.name != recipe.name:
        raise InputError(f"{previous}: is the manifest of {kept.name!r}, not of {recipe.name!r}; choose another --out")
    return kept


def assembled(
    cases: list[Case],
    recipe: Recipe,
    modality: Mapping[str, str],
    *,
    key: bytes | None,
    kept: Manifest | None,
    root: Path,
) -> Manifest:
    """The manifest of cases; those that an earlier manifest knows keep their partition and columns.

    Raises:
        InputError: a case that had a partition is gone, or the manifest contradicts itself.
    """
    fields = _texts(recipe, kept) | {"modality": dict(modality)}
    fields["labels"] = {str(i): class_name for i, (class_name, _) in enumerate(recipe.classes)}
    fields["label_values"] = recipe.label_values()
    fields["spacing_mm"] = recipe.spacing_mm or fields.get("spacing_mm")
    fields["pseudonyms"] = PUBLIC if key is None else fingerprint(key)
    fields.setdefault("split", {"by": "image"} if recipe.patients_unknown else None)
    try:
        return Manifest(**(fields | _partitions(cases, kept)))
    except ValidationError as error:
        raise InputError(f"{root}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def is_readable(path: Path) -> bool:
    """Whether the file's name says picture or volume."""
    return is_image(path) or is_volume(path)


def _texts(recipe: Recipe, kept: Manifest | None) -> dict[str, Any]:
    """What an earlier manifest says, and what the recipe says over it."""
    fields: dict[str, Any] = kept.model_dump(exclude_unset=True) if kept else {}
    texts = {name: getattr(recipe, name) for name in ("name", "description", "reference", "licence")}
    return fields | {name: text for name, text in texts.items() if text}


def _find(root: Path, pattern: str, recipe: Recipe) -> list[_Page]:
    """Every page of every file under `root` that a pattern matches, in the order of patient, study, case and page."""
    compiled = _compile(pattern)
    if "patient" not in compiled.named_fields and recipe.patient is None and not recipe.patients_unknown:
        raise InputError(
            f"the pattern {pattern!r} names no {{patient}}: add it, or say --patient NAME if all files are of one "
            "patient, or --patients-unknown if nobody knows"
        )
    listed = recipe.listed_names(root)
    pages: list[_Page] = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        wanted = is_readable(path) and (listed is None or composed(stem(path)) in listed)
        found = compiled.parse(composed(relative)) if wanted else None
        if found is None or any("/" in str(value) for value in found.named.values()):
            continue
        count = 1 if is_volume(path) else len(page_shapes(path))
        if "page" in found.named and count > 1:
            raise InputError(f"{relative}: is a stack, but the pattern {pattern!r} takes {{page}} from file names")
        numbers = [found.named.get("page")] if count == 1 else range(count)
        pages += [_page(found.named, number, relative, recipe) for number in numbers]
    if not pages:
        raise InputError(f"no file under {root} matches {pattern!r}; a path looks like {_example(root)}")
    return sorted(pages, key=lambda p: (p.who, p.study, p.case, p.page or 0))


def _require_listed(root: Path, recipe: Recipe) -> None:
    """Every name on the list must have a file: one that is misspelt would leave a case out."""
    there = {composed(stem(path)) for path in root.rglob("*") if is_readable(path)} if recipe.listed else set()
    missing = sorted((recipe.listed_names(root) or set()) - there)
    if missing:
        count = f" ({len(missing)} such names)" if len(missing) > 1 else ""
        raise InputError(
            f"{root / str(recipe.listed)}: names {missing[0]!r}, of which there is no image file{count}; restore the "
            "files or correct the list"
        )


def _page(named: Mapping[str, Any], number: int | None, path: str, recipe: Recipe) -> _Page:
    who, study, columns = identity(str(named.get("patient", recipe.patient or "")), recipe.patient_id)
    case = str(named.get("case", ""))
    if recipe.patients_unknown:
        who, case = case, ""
    return _Page(who, study or str(named.get("study", "")), case, number, path, dict(columns), named.get("channel"))


def _joined(pages: list[_Page]) -> list[_Page]:
    """The files of a case's channels as one, in the order of their numbers; every case must have the same."""
    cases: dict[_Fields, list[_Page]] = {}
    for p in pages:
        cases.setdefault(p.fields, []).append(p)
    if pages[0].channel is None:
        return pages
    expected = sorted({p.channel for p in pages if p.channel is not None})
    for parts in cases.values():
        parts.sort(key=lambda p: p.channel or 0)
        found = [p.channel for p in parts]
        if found != expected:
            raise InputError(f"{parts[0].path}: channels {found} of its case are there, other cases have {expected}")
    return [replace(first, others=tuple(p.path for p in rest)) for first, *rest in cases.values()]


def _by_fields(pages: list[_Page]) -> dict[_Fields, str]:
    """Patient, study, case and page -> path; two files of the same fields are refused."""
    paths: dict[_Fields, str] = {}
    for p in pages:
        other = paths.setdefault(p.fields, p.path)
        if other != p.path:
            raise InputError(f"{other} and {p.path}: two labels of the same patient, case and page")
    return paths


def _compile(pattern: str) -> parse.Parser:
    numbered = composed(pattern).replace("{page}", "{page:d}").replace("{channel}", "{channel:d}")
    try:
        compiled = parse.compile(numbered, case_sensitive=True)
    except (ValueError, KeyError) as error:
        raise InputError(f"the pattern {pattern!r} cannot be read: {error}") from None
    unknown = [field for field in compiled.named_fields if field not in FIELDS]
    if unknown or compiled.fixed_fields:
        raise InputError(
            f"the pattern {pattern!r} has {'an unnamed field' if not unknown else '{' + unknown[0] + '}'}: "
            f"use {', '.join('{' + field + '}' for field in FIELDS)}"
        )
    return compiled


def _example(root: Path) -> str:
    found = next((p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()), None)
    return repr(found) if found else "nothing: the folder is empty"


def _pair(images: list[_Page], labels: Mapping[_Fields, str], image: str, label: str) -> list[_Page]:
    """The images without those that are labels themselves; every one must have its label."""
    label_paths = set(labels.values())
    images = [p for p in images if not label_paths.intersection(p.paths)]
    if not images:
        raise InputError(f"the patterns {image!r} and {label!r} match the same files")
    for p in images:
        if p.fields not in labels:
            page = "" if p.page is None else f", page {p.page}"
            raise InputError(f"{p.path}{page}: no label; the pattern {label!r} finds none with the same fields")
    keys = [p.fields for p in images]
    for lonely in sorted(labels.keys() - set(keys), key=str):
        page = "" if lonely[-1] is None else f", page {lonely[-1]}"
        raise InputError(f"{labels[lonely]}{page}: a label without an image; {image!r} finds none with the same fields")
    for twice in {k for k in keys if keys.count(k) > 1} if len(set(keys)) < len(keys) else ():
        raise InputError(f"patient {twice[0]!r}, case {twice[2]!r}: several images; name {{case}} in the pattern")
    return images


def _require_classes(example: Path, classes: Sequence[tuple[str, str]]) -> None:
    if len(classes) < 2:
        found = np.unique(_any_label(example))[:8]
        raise InputError(
            f"{example.name} holds the raw values {', '.join(f'{v:g}' for v in found)}: "
            "say what they mean, class 0 first, as in --class background=0 --class tumour=255"
        )


def _any_label(path: Path) -> np.ndarray:
    return read_volume(path)[0] if is_volume(path) else read_page(path, 0 if len(page_shapes(path)) > 1 else None)


def _refuse_other_channels(channels: Mapping[str, int]) -> None:
    """Refuse a grey photograph among coloured ones: a network takes one number of channels."""
    first, *others = channels
    strange = [path for path in others if channels[path] != channels[first]]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise InputError(
            f"{strange[0]}{more}: {channels[strange[0]]} channels, {first} has {channels[first]}; convert one of the"
            " two, or leave it out with a recipe's `listed`"
        )


def _case(
    page: _Page,
    label: str | None,
    digests: Mapping[str, Decoded],
    key: bytes | None,
    columns: Mapping[str, str | None],
) -> Case:
    who = page.who if key is None else pseudonym(key, page.who)
    what = page.case if key is None else hmac.new(key, page.case.encode(), "sha256").hexdigest()[:8]
    study = study_pseudonym(key, page.who, page.study) if page.study else ""
    parts = [who, study, what if page.case else "", "" if page.page is None else f"{page.page:03d}"]
    files = [digests[path] for path in page.paths]
    in_stack = len(files[0].pixels) > 1
    image = list(page.paths) if page.others else page.path
    fields: dict[str, Any] = {"id": "_".join(part for part in parts if part), "patient": who, "image": image}
    if study:
        fields["study"] = study
    if label:
        fields["label"] = label
    if in_stack:
        fields["page"] = page.page
    fields["sha256"] = joined([file.sha256 for file in files])
    if label:
        fields["label_sha256"] = digests[label].sha256
    number = page.page if in_stack and page.page is not None else 0
    fields["pixels"] = joined([file.pixels[number] for file in files])
    return Case(**(fields | dict(columns)))


def _modality(example: str, channels: int, modality: Sequence[str]) -> dict[str, str]:
    names = list(modality) or [f"channel {number}" for number in range(channels)]
    if len(names) != channels:
        raise InputError(f"{example} has {channels} channels, {len(names)} modalities were named: {', '.join(names)}")
    return {str(number): name for number, name in enumerate(names)}


def _partitions(cases: list[Case], kept: Manifest | None) -> dict[str, list[dict[str, Any]]]:
    """Known cases stay in their partition, and cluster, with their extra columns; new ones are `unassigned`."""
    before = {case.id: (name, case) for name, case in kept.cases()} if kept else {}
    found = {case.id for case in cases}
    lost = [case.id for _, case in kept.assigned() if case.id not in found] if kept else []
    if lost:
        raise InputError(
            f"{len(lost)} cases that have a partition were not found again, {lost[0]} first: a patient keeps its "
            "partition for good, so restore the files (and the pseudonym key), or take the cases out of the manifest"
        )
    partitions: dict[str, list[dict[str, Any]]] = {name: [] for name in (*PARTITIONS, "unassigned")}
    for case in cases:
        name, old = before.get(case.id, ("unassigned", None))
        fields = case.model_dump(exclude_unset=True)
        if kept and old:
            grouped = {"patient": old.patient} if unit_name(kept) == "cluster" else {}
            fields = (old.model_extra or {}) | fields | grouped
        partitions[name].append(fields)
    return partitions
