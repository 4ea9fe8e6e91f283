"""A site's studies before a retraining: found, refused with reasons, audited, and divided by patient."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import audit as auditing
from pipeline import bundle as bundles
from pipeline import manifest as manifests
from pipeline.atomic import atomic
from pipeline.dicom_index import survey
from pipeline.errors import DataError, InputError
from pipeline.failures import MAY_QUOTE, NAMES_A_FILE, without_paths
from pipeline.gate_rule import Rule
from pipeline.index import index as index_files
from pipeline.indexing import write_dicom
from pipeline.manifest import Finding, Manifest
from pipeline.patients import pseudonym, read_key, study_pseudonym
from pipeline.progress import Progress, silent
from pipeline.recipe import Recipe
from pipeline.retrain_plan import MANIFEST
from pipeline.retrain_record import Audit, Index, Partition, Refused, Split
from pipeline.split import split_by_patient
from pipeline.studies import Tree
from pipeline.unmatched import unmatched

KEY, PICTURE = "overtile.key", "near_duplicates.png"
"""Files of a retraining: the key of its pseudonyms, and near-duplicates side by side."""

SEALED = 0.25
"""Of the patients, the share that is sealed where that is more than the rule asks for, or where it cannot be met."""

SPARE = 0.1
"""So many more than the rule's minimum are sealed where there are patients enough: not every one has every class."""

MOST_SEALED = 0.5
"""Of the patients: half of them are left for training and validation."""

VALIDATION = 0.2
"""Of the patients that are not sealed, those that choose the epoch."""

LEAST_VALIDATION = 5
"""Patients that choose the epoch, at least, where that is no more than a third of those that are not sealed."""

SHOWN = 20
"""Findings of one kind that the record holds; the terminal has shown them all."""


def shares(patients: int, rule: Rule) -> tuple[float, float, float]:
    """Fractions for training, validation and sealed patients: enough sealed for the rule to decide, if half are left.

    Args:
        patients: how many there are.
        rule: of the gate.

    Example:
        >>> [round(share * 100) for share in shares(100, Rule())]
        [60, 15, 25]
        >>> [round(share * 50) for share in shares(50, Rule())]  # 22 of 50, 20 and a few that may lack a class
        [22, 6, 22]
        >>> [round(share * 12) for share in shares(12, Rule())]  # too few for this rule, however they are divided
        [6, 3, 3]
    """
    least = rule.minimum_patients
    spare = math.ceil(least * (1 + SPARE))
    enough = next((number for number in (spare, least) if number <= MOST_SEALED * patients), 0)
    sealed = max(SEALED, enough / patients)
    validation = max(VALIDATION * (1 - sealed), min(LEAST_VALIDATION / patients, (1 - sealed) / 3))
    return 1 - sealed - validation, validation, sealed


def pseudonym_key(plan: Recipe, out: Path, previous: Path | None) -> bytes | None:
    """The key of the pseudonyms, that of an earlier retraining where there is one; None where names are public.

    Raises:
        InputError: the earlier one has none, so its patients could not be known again.
    """
    if plan.public:
        return None
    if previous is not None and not (out / KEY).exists():
        if not (previous / KEY).is_file():
            raise InputError(f"{previous}: no {KEY} in it, so its patients cannot be known again; restore it")
        with atomic(out / KEY) as temporary:
            temporary.touch(mode=0o600)
            shutil.copyfile(previous / KEY, temporary)
    return read_key(out / KEY)


def index(
    root: Path, plan: Recipe, out: Path, *, key: bytes | None, previous: Path | None, progress: Progress = silent
) -> tuple[Manifest, Index]:
    """Read the studies into `manifest.json`, not divided yet but for the patients that had a partition before.

    Args:
        root: folder of the studies.
        plan: how they are read.
        out: folder of the retraining.
        key: of the pseudonyms, or None.
        previous: folder of the retraining before, or None.
        progress: told about every file.

    Returns:
        The manifest, and what was found and refused, by pseudonyms and counts.

    Raises:
        InputError, DataError: as of `pipeline.index` and `pipeline.dicom_index`.
    """
    before = previous / MANIFEST if previous else None
    if plan.dicom is None:
        manifest = index_files(root, plan, key=key, previous=before, progress=progress)
        manifests.write(manifest, out / MANIFEST)
        strangers = len(unmatched(root, plan, manifest))
        refused = [Refused(what=_many(strangers, "image file"), reason="matches no pattern")] if strangers else []
    else:
        tree = survey(root, plan, progress)
        refused = list(refusals(tree, key))
        manifest = write_dicom(tree, root, plan, out / MANIFEST, key=key, previous=before)
    cases = [case for _, case in manifest.cases()]
    return manifest, Index(cases=len(cases), patients=len({case.patient for case in cases}), refused=refused)


def refusals(tree: Tree, key: bytes | None) -> Iterator[Refused]:
    """What a DICOM tree's index left out: studies by pseudonym with the rule, the rest by number."""
    told: Counter[tuple[str, str]] = Counter()
    for refusal in tree.refused:
        who = pseudonym(key, refusal.patient) if key and refusal.patient else refusal.patient
        study = study_pseudonym(key, refusal.patient, refusal.study) if refusal.study else ""
        named = f"patient {who}, study {study}" if who and study else "study of unknown patient"
        told[named, refusal.rule] += 1
    for (named, rule), times in told.items():
        yield Refused(what=named if times == 1 else f"{named}: {times} series", reason=rule)
    for kind, files in sorted(tree.passed.items()):
        yield Refused(what=_many(len(files), "file"), reason=kind)


def require_labels(manifest: Manifest) -> None:
    """Refuse studies without references, which nothing can be learnt from.

    Raises:
        InputError: no case has one, or some have none.
    """
    without = {case.patient for _, case in manifest.cases() if case.label is None}
    if without:
        of = len({case.patient for _, case in manifest.cases()})
        raise InputError(
            f"{len(without)} of {of} patients have images without a reference, {min(without)} first; a retraining "
            "learns from references: say in the recipe where they are (`label`, `dicom: reference`), or take those out"
        )


def require_distinct(manifest: Manifest) -> None:
    """Refuse one image under the names of two patients: it would count twice, and one of the two is somebody else.

    Raises:
        DataError: names the first two.
    """
    seen: dict[str, manifests.Case] = {}
    for _, case in manifest.cases():
        if case.pixels and not case.pixels.startswith(manifests.BLANK):
            first = seen.setdefault(case.pixels, case)
            if first.patient != case.patient:
                raise DataError(
                    f"{first.id} and {case.id} have the same pixels and are of two patients, {first.patient} and "
                    f"{case.patient}; take the one out that is not this patient's, or correct the patient"
                )


def audit(manifest: Manifest, root: Path, out: Path, progress: Progress = silent) -> tuple[Audit, Sequence[Finding]]:
    """Check the data, every case decoded.

    Returns:
        What the record says of it, by pseudonyms; and the findings, whose sentences may name files.
    """
    findings = auditing.audit(manifest, root, picture=out / PICTURE, progress=progress)
    known = [case for _, case in manifest.cases()]
    told: dict[str, list[str]] = {"error": [], "warning": []}
    for finding in findings:
        told[finding.severity].append(_anonymous(finding, known))
    return Audit(errors=_first(told["error"]), warnings=_first(told["warning"])), findings


def split(manifest: Manifest, rule: Rule, *, fractions: Sequence[float] | None, seed: int) -> Manifest:
    """Divide the patients into training, validation and the sealed ones; those that have a place keep it.

    Args:
        manifest: with new patients under `unassigned`.
        rule: of the gate.
        fractions: None: `shares`.
        seed: of the order.

    Raises:
        InputError: there are too few patients, or the fractions are wrong.
    """
    patients = len({case.patient for _, case in manifest.cases()})
    return split_by_patient(manifest, fractions or shares(patients, rule), seed)


def told_split(manifest: Manifest) -> Split:
    """How many are in each part."""
    parts = {}
    for name in manifests.PARTITIONS:
        cases = manifest.partition(name)
        parts[name] = Partition(patients=len({case.patient for case in cases}), cases=len(cases))
    return Split(training=parts["training"], validation=parts["validation"], sealed=parts["test"])


def require_unchanged(cases: Sequence[manifests.Case], root: Path) -> None:
    """Refuse files that are not those that were indexed, since both models are to meet the same ones.

    Raises:
        DataError: a file was changed, or is not there any more. DICOM series have no digest of their files.
    """
    try:
        changed = next(auditing.changed_files(cases, root), None)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: is not there any more; put it back") from None
    if changed is not None:
        raise DataError(
            f"{changed.message.partition(';')[0]}; put it back, or start again in another --out with --previous"
        )


def require_fit(manifest: Path, root: Path, bundle: Path) -> None:
    """Refuse data that the release's network is not for: other classes, other channels.

    Raises:
        DataError: says what differs.
    """
    known: Mapping[str, Any] = bundles.settings(bundle, "training")
    for partition in ("training", "validation"):
        auditing.checked_cases(manifest, root, partition, known["class_names"], known["in_channels"])


def _anonymous(finding: Finding, cases: Sequence[manifests.Case]) -> str:
    said = without_paths(InputError(finding.message), cases).removeprefix("InputError: ")
    if said.endswith((NAMES_A_FILE, MAY_QUOTE)) or said.startswith(finding.case):
        return f"{finding.rule}: {finding.case if finding.case in said or finding.case != '-' else said}"
    return f"{finding.rule}: {said}"


def _first(sentences: Sequence[str]) -> list[str]:
    more = len(sentences) - SHOWN
    return [*sentences[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
