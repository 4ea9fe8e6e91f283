"""What is wrong with a dataset, said before a training believes it: files, labels, and the leaks that others find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.dicom import read_image, read_series
from pipeline.dicom_files import is_dicom
from pipeline.digests import file_digest, joined
from pipeline.duplicates import Sketch, planes, sketch
from pipeline.errors import DataError, InputError
from pipeline.leaks import by_section, declared_leaks, places
from pipeline.loading import GridError, LoadCased, NotFiniteError
from pipeline.lookalikes import lookalikes
from pipeline.manifest import Case, Finding, Manifest, as_item, folder_of, read, require_partitions, unit_name
from pipeline.orientation import Grid, different_grids
from pipeline.pictures import is_image, page_shapes
from pipeline.progress import Progress, silent
from pipeline.volumes import is_volume, read_geometry

BROKEN = ("missing file", "unreadable file", "missing page", "different grids", "NaN or infinity")
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
        found, sketches = _contents(manifest, root, _broken(findings), progress)
        broken = _broken([*findings, *found])
        known = {case: one for case, one in sketches.items() if case not in broken}
        findings += [*found, *lookalikes(manifest, root, known, picture, progress)]
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
    return [as_item(case, folder) for case in cases]


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
    """Missing files, unreadable headers, image and label of different shape or at different places."""
    known: dict[str, list[Grid] | Finding] = {}

    def grid(case: Case, path: str, series: str | None) -> Grid | Finding:
        key = f"{path} {series}"
        if key not in known:
            known[key] = _header(case.id, path, root, series)
        pages = known[key]
        if isinstance(pages, Finding):
            return Finding(pages.severity, pages.rule, case.id, pages.message)
        page = case.page or 0
        if page >= len(pages):
            message = f"{root / path}: has {len(pages)} pages, {case.id} names page {page}"
            return Finding("error", "missing page", case.id, message)
        return pages[page]

    findings = []
    for _, case in manifest.cases():
        uids = case.series if isinstance(case.series, list) else [case.series] * len(case.images)
        found = [grid(case, path, uid) for path, uid in zip(case.images, uids, strict=True)]
        if case.label and (is_image(Path(case.label)) or is_volume(Path(case.label))):  # decoding tells of a SEG
            found.append(grid(case, case.label, None))
        findings += [entry for entry in found if isinstance(entry, Finding)]
        if len(grids := [entry for entry in found if isinstance(entry, Grid)]) == len(found):
            findings += _misplaced(case, grids)
    return findings


def _misplaced(case: Case, grids: Sequence[Grid]) -> Iterator[Finding]:
    """Channels and a label that do not lie on the grid of channel 0."""
    first, *others = grids
    for number, other in enumerate(others, start=1):
        is_label = number == len(case.images)
        if len(first.shape) != len(other.shape) or (len(first.shape) == 2 and first.shape != other.shape):
            what = "label" if is_label else f"channel {number}"
            message = f"{case.id}: image is {_by(first.shape)}, {what} is {_by(other.shape)} pixels"
            yield Finding("error", "different shapes", case.id, message)
        elif (
            len(first.shape) == 3 and number not in (case.resampled or ()) and (wrong := different_grids(first, other))
        ):
            yield Finding("error", "different grids", case.id, f"{case.id}: {wrong}; export both again")


def _header(case_id: str, name: str, root: Path, series: str | None) -> list[Grid] | Finding:
    """Where a file's pages, or a volume, lie: (H, W) or (X, Y, Z) and an affine."""
    path = root / name
    if not path.exists():
        return Finding("error", "missing file", case_id, f"{path}: no such file")
    try:
        if path.is_dir():
            volume = read_series(path, series)
            return [Grid(name, volume.shape, volume.affine)]
        if is_volume(path):
            shape, affine, _ = read_geometry(path)
            return [Grid(name, shape, affine)]
        if not is_image(path) and is_dicom(path):
            return [Grid(name, read_image(path).pixels.shape, np.eye(4))]
        return [Grid(name, shape, np.eye(4)) for shape in page_shapes(path)]
    except InputError as error:
        return Finding("error", "unreadable file", case_id, str(error))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def _contents(
    manifest: Manifest, root: Path, broken: set[str], progress: Progress
) -> tuple[list[Finding], dict[str, Sketch | None]]:
    """Changed files; then every case decoded once, on all processors: its findings, and a sketch of its image."""
    cases = [case for _, case in manifest.cases() if case.id not in broken]
    changed = changed_files(cases, root, progress)
    findings = list(changed)
    present: set[int] = set()
    sketches: dict[str, Sketch | None] = {}
    alike: dict[tuple[int, int], list[Case]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda case: _decoded(case, root, manifest.label_values, len(manifest.modality)), cases)
        for case, seen in zip(cases, progress(results, len(cases), "cases"), strict=True):
            findings += seen.findings
            present |= seen.classes
            if seen.readable:
                sketches[case.id] = seen.sketch
            for pair in seen.twins:
                alike[pair].append(case)
    findings += _equal_channels(manifest, alike, len(cases))
    if broken or any(finding.rule in (*BROKEN, "unusable label") for finding in findings):
        return findings, sketches  # which classes there are, only whole labels tell
    for index, name in manifest.labels.items():
        if cases and any(case.label for case in cases) and int(index) not in present:
            message = f"class {index} ({name}) is declared, no label has it"
            findings.append(Finding("error", "class without a case", "-", message))
    return findings, sketches


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


def changed_files(cases: Sequence[Case], root: Path, progress: Progress = silent) -> Iterator[Finding]:
    """Files that are not those that were indexed, by their digests; DICOM series have none."""
    recorded: dict[tuple[str, ...], tuple[str, str]] = {}
    for case in cases:
        for paths, sha in ((tuple(case.images), case.sha256), ((case.label or "",), case.label_sha256)):
            if sha:
                recorded.setdefault(paths, (sha, case.id))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda paths: joined([file_digest(root / path) for path in paths]), recorded)
        for paths, digest in zip(recorded, progress(digests, len(recorded), "files"), strict=True):
            sha, case_id = recorded[paths]
            if digest != sha:
                files = "not the file that was indexed" if len(paths) == 1 else "not the files that were indexed"
                yield Finding("error", "changed file", case_id, f"{root / paths[0]}: {files}; index the folder again")


def _rule(error: Exception) -> str:
    """The rule that a case breaks which cannot be loaded."""
    names: dict[type[Exception], str] = {NotFiniteError: "NaN or infinity", GridError: "different grids"}
    return names.get(type(error), "unreadable file")


@dataclass
class _Seen:
    """A decoded case: its label's classes, the pairs of channels that are equal, a sketch of a readable image."""

    findings: list[Finding] = field(default_factory=list)
    classes: set[int] = field(default_factory=set)
    twins: list[tuple[int, int]] = field(default_factory=list)
    readable: bool = False
    sketch: Sketch | None = None


def _decoded(case: Case, root: Path, label_values: dict[str, int], channels: int) -> _Seen:
    seen = _Seen()

    def add(severity: Any, rule: str, message: str) -> None:
        seen.findings.append(Finding(severity, rule, case.id, message))

    item = as_item(case, root)
    try:
        item = LoadCased("image")(item)
        image = torch.as_tensor(item["image"]).numpy()
        seen.readable, seen.sketch = True, sketch(planes(image))
        if image.shape[0] != channels:
            add("error", "different channels", f"{case.id}: {image.shape[0]} channels, the manifest names {channels}")
        if (image == image.flat[0]).all():
            add("warning", "constant image", f"{case.id}: every pixel is {image.flat[0]:g}")
        elif len(image) == channels:
            seen.twins = [(i, j) for i, j in combinations(range(len(image)), 2) if (image[i] == image[j]).all()]
    except (InputError, DataError) as error:
        add("error", _rule(error), f"{case.id}: {error}")
    try:
        if case.label:
            label = LoadCased("label", label_values)(item)["label"]
            seen.classes = set(np.unique(torch.as_tensor(label).numpy()).tolist())
    except (InputError, DataError) as error:
        add("error", "unusable label" if type(error) is DataError else _rule(error), f"{case.id}: {error}")
    return seen
