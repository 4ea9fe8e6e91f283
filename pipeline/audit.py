"""What is wrong with a dataset, said before a training believes it: files, labels, and the leaks that others find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, InputError
from pipeline.index import file_digest
from pipeline.labels import to_class_indices
from pipeline.leaks import by_section, declared_leaks, places
from pipeline.lookalikes import lookalikes
from pipeline.manifest import Case, Finding, Manifest, folder_of, read, require_partitions, unit_name
from pipeline.pictures import page_shapes, read_page
from pipeline.progress import Progress, silent

BROKEN = ("missing file", "unreadable file", "missing page")
"""Rules whose cases are not opened again."""

SHOWN = 5
"""Findings that an error message lists before it refers to `overtile audit`."""


def audit(
    manifest: Manifest,
    root: Path,
    *,
    thorough: bool = True,
    picture: Path | None = None,
    progress: Progress = silent,
) -> list[Finding]:
    """Check a dataset.

    The cheap part reads the manifest and headers: missing files, shapes, patients, studies and equal pixels in two
    partitions or folds. The thorough part decodes every case: changed and unreadable files, undeclared raw label
    values, NaN, constant images, classes that no case has, near-duplicates of two patients.

    Args:
        manifest: what to check.
        root: folder that the manifest's paths are relative to.
        thorough: also decode every case.
        picture: PNG to write near-duplicates to, side by side, if there are any; None writes none.
        progress: told about every case.

    Returns:
        Findings, errors first.
    """
    findings = [*declared_leaks(manifest), *_cases_to_use(manifest)]
    findings += _files(manifest, root)
    if thorough:
        findings += _contents(manifest, root, _broken(findings), progress)
        findings += lookalikes(manifest, root, _broken(findings), picture, progress)
    return sorted(findings, key=lambda finding: (finding.severity, finding.rule, finding.case))


def checked_cases(
    manifest_path: str | Path, root: str | Path | None, partition: str, class_names: Sequence[str], channels: int
) -> list[dict[str, Any]]:
    """The cases of a partition as MONAI items, after the cheap part of the audit.

    Args:
        manifest_path: the manifest.
        root: folder that its paths are relative to; None is the manifest's own folder.
        partition: `training`, `validation` or `test`.
        class_names: the classes that the network separates, class 0 first; the manifest must declare the same.
        channels: that the network takes.

    Returns:
        One dict per case with `id`, `patient`, absolute `image` and `label`, and `page` in a stack.

    Raises:
        DataError: the audit found errors, or the partition has no case.
    """
    manifest_path = Path(manifest_path)
    manifest = read(manifest_path)
    require_partitions(manifest, manifest_path)
    folder = Path(root) if root else folder_of(manifest_path)
    if not folder.is_dir():
        raise InputError(f"dataset folder {folder} does not exist; set `dataset_dir`")
    errors = [finding for finding in audit(manifest, folder, thorough=False) if finding.severity == "error"]
    if errors:
        lines = "".join(f"\n  {finding.rule}: {finding.message}" for finding in errors[:SHOWN])
        more = f"\n  and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise DataError(f"{manifest_path}: {len(errors)} errors; `overtile audit` lists them{lines}{more}")
    declared = [manifest.labels[str(index)] for index in range(len(manifest.labels))]
    if declared != list(class_names):
        raise DataError(
            f"{manifest_path}: declares the classes {', '.join(declared) or 'none'}; "
            f"this bundle separates {', '.join(class_names)}, in this order"
        )
    if len(manifest.modality) != channels:
        raise DataError(f"{manifest_path}: images of {len(manifest.modality)} channels, this bundle takes {channels}")
    cases = manifest.partition(partition)
    if not cases:
        raise DataError(f"{manifest_path}: no case in `{partition}`; `overtile split` deals unassigned patients")
    return [_item(case, folder) for case in cases]


def _item(case: Case, folder: Path) -> dict[str, Any]:
    item: dict[str, Any] = {"id": case.id, "patient": case.patient, "image": str(folder / case.image)}
    if case.label is not None:
        item["label"] = str(folder / case.label)
    if case.page is not None:
        item["page"] = case.page
    return item


def _broken(findings: Sequence[Finding]) -> set[str]:
    return {finding.case for finding in findings if finding.rule in BROKEN}


def _cases_to_use(manifest: Manifest) -> Iterator[Finding]:
    assigned = list(manifest.assigned())
    used = {case.id for _, case in assigned}
    rest = [case for _, case in manifest.cases() if case.id not in used]
    if rest and not by_section(manifest):
        place = places(manifest).removesuffix("s")
        message = f"{len(rest)} cases have no {place} and are not used; `overtile split` deals them"
        yield Finding("warning", "unassigned cases", rest[0].id, message)
    for name, case in assigned:
        if case.label is None:
            yield Finding("error", "no label", case.id, f"{case.id} in {name} has no label")


def _files(manifest: Manifest, root: Path) -> list[Finding]:
    """Missing files, unreadable headers, image and label of different shape."""
    shapes: dict[str, list[tuple[int, ...]] | Finding] = {}

    def shape(case: Case, path: str) -> tuple[int, ...] | Finding:
        if path not in shapes:
            shapes[path] = _header(case.id, root / path)
        pages = shapes[path]
        if isinstance(pages, Finding):
            return Finding(pages.severity, pages.rule, case.id, pages.message)
        page = case.page or 0
        if page >= len(pages):
            message = f"{root / path}: has {len(pages)} pages, {case.id} names page {page}"
            return Finding("error", "missing page", case.id, message)
        return pages[page]

    findings = []
    for _, case in manifest.cases():
        found = [shape(case, path) for path in (case.image, case.label) if path]
        findings += [entry for entry in found if isinstance(entry, Finding)]
        sizes = [entry for entry in found if not isinstance(entry, Finding)]
        if len(sizes) == 2 and sizes[0] != sizes[1]:
            message = f"{case.id}: image is {_by(sizes[0])}, label is {_by(sizes[1])} pixels"
            findings.append(Finding("error", "different shapes", case.id, message))
    return findings


def _header(case_id: str, path: Path) -> list[tuple[int, ...]] | Finding:
    if not path.is_file():
        return Finding("error", "missing file", case_id, f"{path}: no such file")
    try:
        return page_shapes(path)
    except InputError as error:
        return Finding("error", "unreadable file", case_id, str(error))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def _contents(manifest: Manifest, root: Path, broken: set[str], progress: Progress) -> list[Finding]:
    """Changed files; then every case decoded, on all processors."""
    cases = [case for _, case in manifest.cases() if case.id not in broken]
    changed = _changed_files(cases, root, progress)
    findings = list(changed)
    present: set[int] = set()
    alike: dict[tuple[int, int], list[Case]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda case: _decoded(case, root, manifest.label_values, len(manifest.modality)), cases)
        for case, (found, classes, twins) in zip(cases, progress(results, len(cases), "cases"), strict=True):
            findings += found
            present |= classes
            for pair in twins:
                alike[pair].append(case)
    findings += _equal_channels(manifest, alike, len(cases))
    for index, name in manifest.labels.items():
        if cases and any(case.label for case in cases) and int(index) not in present:
            message = f"class {index} ({name}) is declared, no label has it"
            findings.append(Finding("error", "class without a case", "-", message))
    return findings


def _equal_channels(manifest: Manifest, alike: Mapping[tuple[int, int], list[Case]], total: int) -> Iterator[Finding]:
    """Channels that are equal in some cases and not in others: a sequence that is missing there."""
    for (one, other), cases in alike.items():
        if len(cases) < total:
            names = f"{manifest.modality[str(one)]} and {manifest.modality[str(other)]}"
            whose = sorted({case.patient for case in cases})
            of = ", ".join(whose[:SHOWN]) + (", ..." if len(whose) > SHOWN else "")
            message = (
                f"the channels {names} are equal in {len(cases)} of {total} cases, of {unit_name(manifest)} {of}: "
                "a network that compares them may fail there"
            )
            yield Finding("warning", "equal channels", cases[0].id, message)


def _changed_files(cases: list[Case], root: Path, progress: Progress) -> Iterator[Finding]:
    recorded: dict[str, tuple[str, str]] = {}
    for case in cases:
        for path, sha in ((case.image, case.sha256), (case.label, case.label_sha256)):
            if path and sha:
                recorded.setdefault(path, (sha, case.id))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda path: file_digest(root / path), recorded)
        for path, digest in zip(recorded, progress(digests, len(recorded), "files"), strict=True):
            sha, case_id = recorded[path]
            if digest != sha:
                message = f"{root / path}: not the file that was indexed; index the folder again"
                yield Finding("error", "changed file", case_id, message)


def _decoded(
    case: Case, root: Path, label_values: dict[str, int], channels: int
) -> tuple[list[Finding], set[int], list[tuple[int, int]]]:
    """Findings on one decoded case, the classes that its label has, and the pairs of channels that are equal."""
    findings: list[Finding] = []
    twins: list[tuple[int, int]] = []

    def add(severity: Any, rule: str, message: str) -> None:
        findings.append(Finding(severity, rule, case.id, message))

    try:
        image = read_page(root / case.image, case.page)
        if image.shape[0] != channels:
            add("error", "different channels", f"{case.id}: {image.shape[0]} channels, the manifest names {channels}")
        if not np.isfinite(image).all():
            add("error", "NaN or infinity", f"{case.id}: {np.count_nonzero(~np.isfinite(image))} pixels are not finite")
        elif (image == image.flat[0]).all():
            add("warning", "constant image", f"{case.id}: every pixel is {image.flat[0]:g}")
        elif len(image) == channels:
            twins = [(i, j) for i, j in combinations(range(len(image)), 2) if (image[i] == image[j]).all()]
    except InputError as error:
        add("error", "unreadable file", str(error))
    classes: set[int] = set()
    try:
        if case.label:
            raw = read_page(root / case.label, case.page)
            classes = set(np.unique(to_class_indices(raw, label_values, case.id)).tolist())
    except DataError as error:
        add("error", "unusable label", str(error))
    except InputError as error:
        add("error", "unreadable file", str(error))
    return findings, classes, twins
