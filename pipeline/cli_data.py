"""The commands `index`, `fetch`, `split` and `audit`: arguments and printing. All work is done elsewhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import cli_dicom
from pipeline.errors import DataError, InputError
from pipeline.terminal import console
from pipeline.terminal import progress as _progress
from pipeline.terminal import say as _print

if TYPE_CHECKING:
    from pipeline.manifest import Finding, Manifest
    from pipeline.recipe import Recipe

Folder = Annotated[Path | None, typer.Option(help="Folder of the manifest's paths; default: the manifest's own.")]


SEED = 1
"""Of the order in which patients are dealt, where nothing else is said."""

GAP = 1
"""Sections left out between two partitions, where nothing else is said."""


class SplitBy(StrEnum):
    """What is dealt to partitions as a whole."""

    patient = "patient"
    section = "section"
    cluster = "cluster"


def index(
    root: Annotated[Path, typer.Argument(help="Folder with the images.")],
    out: Annotated[Path, typer.Option(help="Manifest to write; an earlier one keeps its partitions.")],
    recipe: Annotated[Path | None, typer.Option(help="YAML file that says what the further options would.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset.")] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Pattern of the images, as '{patient}/{case}.tif' or '{case}_{channel}.nii.gz'."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Pattern of the labels, say '{patient}/{case}_mask.tif'.")] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="NAME=RAW of a class, class 0 first; RAW as 255, 128..255 or #ff0000; repeat."),
    ] = None,
    patient: Annotated[str | None, typer.Option(help="The only patient, where the pattern names none.")] = None,
    patients_unknown: Annotated[bool, typer.Option("--patients-unknown", help="Nobody knows the patients.")] = False,
    patient_id: Annotated[
        str | None, typer.Option(help="Regular expression of {patient}, with groups patient, study, COLUMN.")
    ] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Name of a channel; repeat.")] = None,
    spacing_mm: Annotated[
        tuple[float, float] | None, typer.Option(help="Height and width of a pixel, where it is known.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Pseudonym key; default: overtile.key beside the manifest.")] = None,
    public: Annotated[
        bool | None, typer.Option("--public/--no-public", help="Patient names are public: keep them; or as the recipe.")
    ] = None,
) -> None:
    """Read a folder into a manifest: patients, cases, digests."""
    from pipeline.indexing import planned
    from pipeline.patients import read_key
    from pipeline.recipe import read_recipe

    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    options = {
        "name": name,
        "image": image,
        "label": label,
        "classes": [_class(word) for word in classes or ()],
        "patient": patient,
        "patients_unknown": patients_unknown,
        "patient_id": patient_id,
        "modality": modality,
        "spacing_mm": spacing_mm,
    }
    given = {option: value for option, value in options.items() if value}
    given |= {} if public is None else {"public": public}
    fields = (read_recipe(recipe) if recipe else {}) | given
    plan = planned(root, fields, str(recipe or ""))
    if key and plan.public:
        raise InputError(
            "--key is for names that are not public, these are said to be: leave it out or say --no-public"
        )
    secret = None if plan.public else read_key(key or out.parent / "overtile.key")
    (_index_files if plan.dicom is None else cli_dicom.index)(root, plan, out, secret)


def _index_files(root: Path, plan: Recipe, out: Path, secret: bytes | None) -> None:
    """Pictures and volumes, as the patterns of a recipe find them."""
    from pipeline import index as indexing
    from pipeline import manifest as manifests
    from pipeline.unmatched import as_sentence, unmatched

    manifest = indexing.index(root, plan, key=secret, previous=out, progress=_progress)
    manifests.write(manifest, out)
    if left_out := unmatched(root, plan, manifest):
        _print(as_sentence(left_out, plan))
    cases = list(manifest.cases())
    patients = len({case.patient for _, case in cases})
    of = "of unknown patients" if plan.patients_unknown else f"of {patients} patients"
    _print(f"{len(cases)} cases {of}, {len(manifest.unassigned)} unassigned -> {out}")


def fetch(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a public dataset, say data_manifest/oxford_pet.yaml.")],
    folder: Annotated[Path, typer.Argument(help="Folder to download to; what is complete there stays.")],
) -> None:
    """Download a public dataset as its recipe says, verified and unpacked; complete files are not fetched again."""
    from pipeline import fetch as fetching
    from pipeline.recipe import read_recipe

    for path in fetching.fetch(recipe, folder, progress=_progress):
        _print(f"complete: {path}")
    out = folder / f"{read_recipe(recipe)['name']}.json"
    _print(f"next: {shlex.join(['overtile', 'index', str(folder), '--recipe', str(recipe), '--out', str(out)])}")


def split(
    manifest: Annotated[Path, typer.Argument(help="Manifest; its unassigned cases are dealt.")],
    fractions: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Of training, validation and test; they add up to 1. Default: 0.7 0.15 0.15."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another order of patients; default: 1.")] = None,
    by: Annotated[
        SplitBy, typer.Option(help="By patient; by section, or by cluster of near-duplicates, only with a reason.")
    ] = SplitBy.patient,
    folds: Annotated[int | None, typer.Option(help="Folds for a cross-validation instead of partitions.")] = None,
    stratify: Annotated[str | None, typer.Option(help="Column whose values every partition gets its share of.")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the patients outside a fold that validate; default: 0.125.")
    ] = None,
    gap: Annotated[
        int | None, typer.Option(help="With --by section: sections left out between two partitions; default: 1.")
    ] = None,
    because: Annotated[str, typer.Option(help="Why a split that is not by patient is right here.")] = "",
    dataset_dir: Folder = None,
) -> None:
    """Deal the cases to training, validation and test, or to folds: M.json#2 is then the second fold of M.json."""
    from pipeline import manifest as manifests
    from pipeline import tables
    from pipeline.split import FRACTIONS, VALIDATION, split_by_patient, split_by_section, split_into_folds

    _split_options(by, because, folds, stratify, fractions, validation, seed, gap)
    order = SEED if seed is None else seed
    before = manifests.read(manifest)
    whole = _grouped(before, dataset_dir or manifest.parent, because) if by is SplitBy.cluster else before
    if by is SplitBy.section:
        after = split_by_section(whole, fractions or FRACTIONS, GAP if gap is None else gap, because)
    elif folds is not None:
        share = VALIDATION if validation is None else validation
        after = split_into_folds(whole, folds, order, by=by.value, stratify=stratify, validation=share)
    else:
        after = split_by_patient(whole, fractions or FRACTIONS, order, by=by.value, stratify=stratify)
    manifests.write(after, manifest)
    dealt = sum(1 for _ in after.assigned()) - sum(1 for _ in before.assigned())
    unit = manifests.unit_name(after)
    console().print(tables.partitions(_counts(after), unit))
    what, place = ("section" if by is SplitBy.section else unit), ("fold" if folds else "partition")
    _print(f"{dealt} cases dealt by {what}; every earlier one kept its {place} -> {manifest}")


def audit(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check.")],
    dataset_dir: Folder = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings here.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="PNG of near-duplicates; default: MANIFEST's name with _near_duplicates.png.")
    ] = None,
) -> None:
    """Check a dataset: files, shapes, label values, leaks. Exit code 1 if there are errors."""
    from dataclasses import asdict

    from pipeline import audit as auditing
    from pipeline.atomic import atomic
    from pipeline.manifest import read

    root = dataset_dir or manifest.parent
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; say --dataset-dir")
    picture = pairs or manifest.with_name(f"{manifest.stem}_near_duplicates.png")
    findings = auditing.audit(read(manifest), root, picture=picture, progress=_progress)
    if json_file:
        with atomic(json_file) as temporary:
            temporary.write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    print_findings(findings)
    errors = sum(finding.severity == "error" for finding in findings)
    _print(f"{errors} errors, {len(findings) - errors} warnings in {manifest}")
    if any(finding.rule.startswith("near-duplicate") for finding in findings):
        _print(f"near-duplicates side by side, the most alike first -> {picture}")
    if errors:
        raise typer.Exit(DataError.exit_code)


def _split_options(
    by: SplitBy,
    because: str,
    folds: int | None,
    stratify: str | None,
    fractions: tuple[float, float, float] | None,
    validation: float | None,
    seed: int | None,
    gap: int | None,
) -> None:
    """Refuse options that would do nothing beside the others."""
    if because and by is SplitBy.patient:
        raise InputError("--because goes with --by section or cluster: a split by patient needs no excuse")
    if by is SplitBy.section and (folds is not None or stratify):
        raise InputError("--by section takes neither --folds nor --stratify: sections are not dealt, they are cut")
    if by is SplitBy.section and seed is not None:
        raise InputError("--by section takes no --seed: sections are cut in their order, nothing is drawn")
    if by is not SplitBy.section and gap is not None:
        raise InputError("--gap goes with --by section: between patients there is none")
    if folds is None and validation is not None:
        raise InputError("--validation goes with --folds; for partitions say --fractions")
    if folds is not None and fractions is not None:
        raise InputError("--fractions are of partitions; with --folds say --validation")


def _grouped(manifest: Manifest, root: Path, because: str) -> Manifest:
    """The manifest with clusters of near-duplicates in the place of patients."""
    from pipeline.duplicates import clusters
    from pipeline.grouping import group_by_cluster, require_groupable

    require_groupable(manifest, because)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; say --dataset-dir")
    return group_by_cluster(manifest, clusters(manifest, root, _progress), because)


def _counts(manifest: Manifest) -> list[tuple[str, int, int]]:
    """Cases and patients of every partition or fold."""
    places = {name: [case for where, case in manifest.assigned() if where == name] for name in manifest.places()}
    if not manifest.folds():
        places["unassigned"] = manifest.unassigned
    return [(name, len(cases), len({case.patient for case in cases})) for name, cases in places.items()]


def _class(word: str) -> tuple[str, str]:
    name, equals, raw = word.rpartition("=")
    if not (name and equals and raw):
        raise InputError(f"--class {word!r}: write NAME=RAW VALUE, as in --class tumour=255")
    return name, raw


def print_findings(findings: Sequence[Finding]) -> None:
    """One line each, in columns; a message is never wrapped, so that it can be searched for."""
    from rich.markup import escape

    width = max((len(finding.rule) for finding in findings), default=0)
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        console().print(f"[{colour}]{finding.severity:<7}[/]  {finding.rule:<{width}}  {escape(finding.message)}")
