"""A tree of DICOM files becomes a manifest: headers only, patients and studies under pseudonyms."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.channel_rules import COLUMNS, DicomRules
from pipeline.digests import file_digest
from pipeline.errors import DataError, InputError
from pipeline.headers import Refusal, below, called, representation
from pipeline.index import assembled, earlier
from pipeline.manifest import Case, Manifest
from pipeline.patients import (
    Identity,
    band,
    columns_of,
    identity,
    join,
    pseudonym,
    study_pseudonym,
    two_spellings,
    way_to_read,
)
from pipeline.progress import Progress, silent
from pipeline.recipe import Recipe
from pipeline.references import with_masks, with_segmentations
from pipeline.studies import DicomCase, Tree, find

INSTANCES = "instances "
"""How the `pixels` of a DICOM case begin: a digest of its SOPInstanceUIDs, for which no pixel has to be read."""

PRIVATE = frozenset({"PN", "DA", "DT", "TM", "UI", "LT", "ST", "UT"})
"""Value representations of names, dates, identifiers and free text: none becomes a column."""

IDENTIFIERS = (
    "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "MedicalRecordLocator",
    "PatientTelephoneNumbers", "PatientAddress", "DeviceSerialNumber",
)  # fmt: skip
"""Attributes that lead to a patient and look like any short text."""

NO_REFERENCE = "no reference"
"""The rule by which a case without a reference is refused, where classes are declared."""


def index_dicom(
    root: Path,
    recipe: Recipe,
    *,
    key: bytes | None = None,
    previous: Path | None = None,
    progress: Progress = silent,
) -> tuple[Manifest, Tree]:
    """Read a DICOM tree into a manifest.

    Args:
        root: folder that the paths in the manifest are relative to.
        recipe: with a section `dicom`.
        key: pseudonym key; None keeps the PatientIDs as they are (public data only).
        previous: an earlier manifest of this dataset, whose partitions, split and texts are kept.
        progress: told about every file.

    Returns:
        The manifest, and what was found, refused and passed over.

    Raises:
        InputError: the recipe does not fit the tree.
        DataError: nothing in the tree can be used, or two patients differ in spelling alone.
    """
    tree = survey(root, recipe, progress)
    return manifest_of(tree, root, recipe, key=key, previous=previous), tree


def survey(root: Path, recipe: Recipe, progress: Progress = silent) -> Tree:
    """The usable cases of a tree with their references, and all that is refused.

    Raises:
        InputError: the recipe does not fit the tree.
    """
    rules = recipe.dicom or DicomRules()
    for source in rules.columns.values():
        _require_harmless(source.partition("/")[0])
    tree = find(root, rules.channels or None, progress, keywords=sorted(rules.keywords))
    tree = _with_patients(tree, recipe)
    if recipe.label:
        return with_masks(tree, root, recipe.label)
    tree = with_segmentations(tree, root, rules.reference)
    return _labelled(tree) if recipe.classes else tree


def manifest_of(
    tree: Tree, root: Path, recipe: Recipe, *, key: bytes | None = None, previous: Path | None = None
) -> Manifest:
    """The manifest of a surveyed tree; arguments and errors as of `index_dicom`."""
    if not tree.cases:
        raise DataError(f"{root}: {_why_none(tree)}")
    kept = earlier(previous, recipe)
    recipe = recipe.model_copy(update={"classes": _classes(tree, root, recipe)})
    people = [_identity(case, recipe) for case in tree.cases]
    _refuse_two_spellings(people, tree.cases)
    rules = recipe.dicom or DicomRules()
    table = join(recipe.columns, root, recipe.patient_id) if recipe.columns else None
    cases = []
    for case, who in zip(tree.cases, people, strict=True):
        columns: dict[str, Any] = _columns(case, COLUMNS | rules.columns) | who.columns
        if recipe.columns and table is not None:
            if who.patient not in table:
                raise InputError(f"{called(case.images[0])}: its patient has no line in {recipe.columns.file}; add one")
            columns |= columns_of(table, who.patient, case.images[0])
        cases.append(_case(case, who, columns, root, key, alone=not rules.channels))
    return assembled(cases, recipe, _modality(tree, recipe), key=key, kept=kept, root=root)


def _require_harmless(keyword: str) -> None:
    if representation(keyword) in PRIVATE or keyword in IDENTIFIERS:
        raise InputError(f"`dicom`: {keyword} may lead to a patient and becomes no column; name another attribute")


def _why_none(tree: Tree) -> str:
    if not tree.refused:
        return "no DICOM image in this folder; give the folder that holds the files"
    return f"no series can be used, {len(tree.refused)} refusals; the first: {tree.refused[0].message}"


def _with_patients(tree: Tree, recipe: Recipe) -> Tree:
    """The tree with a name for every case's patient: a PatientID, else what the recipe says; refused without."""
    cases, refused = [], list(tree.refused)
    for case in tree.cases:
        patient = case.study if recipe.patients_unknown else case.patient or recipe.patient
        if patient:
            cases.append(replace(case, patient=patient))
        else:
            who = "say --patient NAME if all are of one, or --patients-unknown"
            said = f"{called(case.images[0])} has no PatientID: {who}"
            refused.append(Refusal("missing attribute", case.images[0], said, case.series[0] or "", case.study))
    return replace(tree, cases=cases, refused=refused)


def _labelled(tree: Tree) -> Tree:
    """The tree without the cases that have no reference, where the recipe declares classes."""
    refused = [
        Refusal(
            NO_REFERENCE,
            case.images[0],
            f"{called(case.images[0])}: no DICOM SEG was drawn on it, and the recipe declares classes",
            case.series[0] or "",
            case.study,
            case.patient,
        )
        for case in tree.cases
        if case.reference is None
    ]
    return replace(tree, cases=[case for case in tree.cases if case.reference], refused=[*tree.refused, *refused])


def _classes(tree: Tree, root: Path, recipe: Recipe) -> list[tuple[str, str]]:
    """The declared classes, else those that all segmentations name alike; none without references."""
    used = {case.reference for case in tree.cases if case.reference}
    if recipe.classes or not used:
        return recipe.classes
    if recipe.label:
        raise InputError(
            f"{min(used)}: say what its raw values mean, class 0 first, as in --class background=0 --class tumour=1"
        )
    named = {seg.get("Segments", ()) for seg in tree.segmentations if below(seg.filename, root) in used}
    told = [", ".join(f"{number} {label}" for number, label in segments) for segments in sorted(named)]
    labels = [label for segments in named for _, label in segments]
    if len(named) > 1 or len(set(labels)) < len(labels):
        raise InputError(
            f"the segmentations name segments of their own ({'; '.join(told[:3])}): say which number is which class, "
            "as in --class background=0 --class tumour=1"
        )
    return [("background", "0"), *((label, str(number)) for segments in named for number, label in segments)]


def _identity(case: DicomCase, recipe: Recipe) -> Identity:
    """Who the patient is by the recipe's `patient_id`; no sentence says the name."""
    try:
        return identity(case.patient, None if recipe.patients_unknown else recipe.patient_id)
    except InputError:
        where = called(case.images[0])
        raise InputError(
            f"{where}: its PatientID does not match `patient_id` {recipe.patient_id!r}; correct it"
        ) from None


def _refuse_two_spellings(people: Sequence[Identity], cases: Sequence[DicomCase]) -> None:
    """As `patients.refuse_two_spellings`, but the sentence names files, not patients."""
    if pair := two_spellings({who.patient for who in people}):
        one, two = (next(c.images[0] for c, who in zip(cases, people, strict=True) if who.patient == p) for p in pair)
        raise DataError(
            f"the PatientIDs of {one} and {two} differ only in spelling: if they are one patient, a split would divide "
            f"them; declare with `patient_id` how a PatientID is read ({way_to_read(*pair)}), or correct one of them"
        )


def _columns(case: DicomCase, sources: dict[str, str]) -> dict[str, str]:
    """What the headers tell of a case, in capitals and in bands; what they do not tell is left out."""
    columns = {}
    for name, source in sources.items():
        keyword, _, width = source.partition("/")
        value = case.headers[0][0].get(keyword)
        text = "" if value is None or isinstance(value, tuple) else str(value).strip().upper()
        if text and width:
            text = _banded(text, int(width), case)
        if text:
            columns[name] = text
    return columns


def _banded(text: str, width: int, case: DicomCase) -> str:
    """A number, or an age as `042Y`, in bands; ages in months, weeks and days are in the first band."""
    number = text.removesuffix("Y") if text[-1] not in "MWD" else "0"
    try:
        return band(number, width)
    except ValueError:
        return ""


def _case(
    case: DicomCase, who: Identity, columns: dict[str, Any], root: Path, key: bytes | None, *, alone: bool
) -> Case:
    """The case as the manifest has it; `alone` where each series is a case, which then has its own part of the id."""
    study = study_pseudonym(key, who.patient, who.study or case.study)
    first = case.headers[0][0]
    uid = case.series[0] or first.values["SOPInstanceUID"]
    patient = who.patient if key is None else pseudonym(key, who.patient)
    parts = [patient, study, *([study_pseudonym(key, who.patient, uid)] if alone else [])]
    several = len(case.images) > 1
    fields: dict[str, Any] = {"id": "_".join(parts), "patient": patient, "study": study}
    fields["image"] = list(case.images) if several else case.images[0]
    if case.series[0]:
        fields["series"] = list(case.series) if several else case.series[0]
    if case.resampled:
        fields["resampled"] = list(case.resampled)
    if case.reference:
        fields |= {"label": case.reference, "label_sha256": file_digest(root / case.reference)}
    instances = sorted(header.values["SOPInstanceUID"] for channel in case.headers for header in channel)
    fields["pixels"] = INSTANCES + hashlib.sha256("\n".join(instances).encode()).hexdigest()
    return Case(**(fields | columns))


def _modality(tree: Tree, recipe: Recipe) -> dict[str, str]:
    """A name for each channel: of its rule, of the recipe, or the modality."""
    rules = recipe.dicom or DicomRules()
    modalities = sorted({str(case.headers[0][0].get("Modality", "unknown")) for case in tree.cases})
    names = list(rules.channels) or recipe.modality or [" or ".join(modalities)]
    if len(names) != len(tree.cases[0].images):
        raise InputError(f"cases have 1 channel, {len(names)} modalities were named: {', '.join(names)}")
    return {str(number): name for number, name in enumerate(names)}
