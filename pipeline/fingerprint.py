"""What a dataset is like: sizes, spacings, intensities and classes of the cases that a training may look at."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import case_statistics as statistics
from pipeline import dicom
from pipeline.atomic import atomic
from pipeline.case_statistics import PERCENTILES, CaseStatistics, Intensities
from pipeline.errors import DataError, InputError
from pipeline.loading import LoadCased
from pipeline.manifest import Case, Manifest, as_item, folder_of, read, require_partitions
from pipeline.orientation import spacing_mm
from pipeline.pictures import is_image
from pipeline.progress import Progress, silent
from pipeline.seeding import seed_of

POOLED = 10_000_000
"""Foreground voxels of all cases together that are kept at most; every case gives as many (as in nnU-Net)."""

WORKERS = 4
"""Cases that are in memory at the same time, at most."""


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset is like: its cases in the manifest's order, and the foreground of all of them, per channel.

    `partition` says where the cases are from; it is `unassigned` where the manifest is not split. `foreground` is None
    where no case has any. `modality` is the DICOM modality that all cases say, None otherwise.
    """

    manifest: str
    manifest_sha256: str
    partition: str
    left_out: int
    channels: list[str]
    classes: list[str]
    modality: str | None
    foreground: list[Intensities] | None
    cases: list[CaseStatistics]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.cases[0].size)

    @property
    def sizes(self) -> np.ndarray:
        """(cases, axes) voxels."""
        return np.array([case.size for case in self.cases], float)

    @property
    def spacings_mm(self) -> np.ndarray:
        """(cases of known spacing, axes) mm."""
        known = [case.spacing_mm for case in self.cases if case.spacing_mm is not None]
        return np.array(known, float).reshape(len(known), self.spatial_dims)


def fingerprint(
    manifest_path: str | Path, root: str | Path | None = None, *, progress: Progress = silent
) -> Fingerprint:
    """Describe the cases of the training partition; those of validation and test are not opened.

    Args:
        manifest_path: the manifest, or one fold of it. Where it is not split at all, every case is described.
        root: folder that its paths are relative to; None is the manifest's own folder.
        progress: told about every case.

    Raises:
        InputError: the manifest, the folder or a file cannot be read; names the case.
        DataError: there is no case, image and label differ in size, or images stand beside volumes.
    """
    manifest = read(manifest_path)
    require_partitions(manifest, manifest_path)
    folder = Path(root) if root else folder_of(manifest_path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; say --dataset-dir")
    partition, cases = _to_read(manifest, manifest_path)
    reader = _Reader(manifest, folder, pooled=max(1, POOLED // len(cases)))
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        try:
            found = [*progress(pool.map(reader.describe, cases), len(cases), "fingerprint")]
        finally:
            pool.shutdown(cancel_futures=True)
    rows, samples = [row for row, _ in found], [sample for _, sample in found if sample is not None]
    if len({len(row.size) for row in rows}) > 1:
        raise DataError(f"{manifest_path}: images and volumes in one manifest; index them apart")
    return Fingerprint(
        manifest=manifest.name,
        manifest_sha256=manifest.digest(),
        partition=partition,
        left_out=len(manifest.unassigned) if partition == "training" else 0,
        channels=list(manifest.modality.values()),
        classes=reader.classes,
        modality=_modality(cases),
        foreground=[statistics.described(channel) for channel in np.concatenate(samples, axis=1)] if samples else None,
        cases=rows,
    )


def write(found: Fingerprint, path: Path, more: Mapping[str, Any]) -> None:
    """Write a fingerprint as JSON, one field and one case per line. It describes single cases, so it stays at the site.

    Args:
        found: the fingerprint.
        path: of the file.
        more: further fields, say the proposal.
    """
    fields: dict[str, Any] = asdict(found)
    rows = fields.pop("cases")
    for row, case in zip(rows, found.cases, strict=True):
        amounts = {name: case.amount(name) for name in case.voxels or {}}
        row["ml" if found.spatial_dims == 3 else "mm2"] = amounts
    whole = {**fields, "percentiles": PERCENTILES, **more}
    head = "".join(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in whole.items())
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with atomic(path) as temporary:
        temporary.write_text(f'{{\n{head} "cases": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def _to_read(manifest: Manifest, path: str | Path) -> tuple[str, list[Case]]:
    """The training partition, or all cases of a manifest that is not split."""
    if manifest.training:
        return "training", manifest.training
    if manifest.validation or manifest.test:
        raise DataError(f"{path}: no case in `training`; `overtile split` deals unassigned patients")
    if not manifest.unassigned:
        raise DataError(f"{path}: the manifest has no cases; `overtile index` finds them")
    return "unassigned", manifest.unassigned


def _modality(cases: Sequence[Case]) -> str | None:
    """The DICOM modality, where the manifest has it as a column and all cases agree."""
    said = {(case.model_extra or {}).get("Modality") for case in cases}
    only = said.pop() if len(said) == 1 else None
    return only if isinstance(only, str) else None


class _Reader:
    """Loads and describes cases, one at a time per thread."""

    def __init__(self, manifest: Manifest, folder: Path, pooled: int) -> None:
        self.manifest, self.folder, self.pooled = manifest, folder, pooled
        self.classes = [manifest.labels[str(index)] for index in range(len(manifest.labels))]
        self.load = LoadCased(("image", "label"), manifest.label_values, allow_missing_keys=True)

    def describe(self, case: Case) -> tuple[CaseStatistics, np.ndarray | None]:
        """The statistics of a case, and intensities of its foreground, (C, n)."""
        try:
            item = self.load(as_item(case, self.folder))
        except InputError as error:
            raise type(error)(f"case {case.id}: {error}") from None
        image = np.asarray(item["image"])
        label = np.asarray(item["label"])[0] if "label" in item else None
        self._check(case, image, label)
        draw = np.random.default_rng(seed_of("fingerprint", case.id))
        inside = None if label is None else statistics.foreground(image, label, draw)
        row = CaseStatistics(
            id=case.id,
            size=image.shape[1:],
            spacing_mm=self._spacing_mm(case, item["image"]),
            dtype=statistics.stored_dtype(self.folder / case.images[0], case.page or 0),
            intensities=[statistics.described(channel) for channel in statistics.sampled(image, draw)],
            foreground=None if inside is None else [statistics.described(channel) for channel in inside],
            voxels=None if label is None else statistics.counts(label, self.classes),
            parts=None if label is None else statistics.parts(label, self.classes),
        )
        return row, None if inside is None else inside[:, : self.pooled].copy()

    def _check(self, case: Case, image: np.ndarray, label: np.ndarray | None) -> None:
        """What the statistics take for granted."""
        if len(image) != len(self.manifest.modality):
            raise DataError(f"case {case.id}: {len(image)} channels, the manifest names {len(self.manifest.modality)}")
        if label is not None and label.shape != image.shape[1:]:
            of_image, of_label = (" x ".join(map(str, shape)) for shape in (image.shape[1:], label.shape))
            raise DataError(f"case {case.id}: image is {of_image}, label is {of_label}")

    def _spacing_mm(self, case: Case, image: Any) -> tuple[float, ...] | None:
        """What the file says, a volume or a single DICOM image; else what the manifest says."""
        if image.ndim == 4:
            return tuple(statistics.short(side) for side in spacing_mm(image.affine.numpy()))
        path = self.folder / case.images[0]
        said = (None if is_image(path) else dicom.read_image(path).spacing_mm) or self.manifest.spacing_mm
        return None if said is None else tuple(float(side) for side in said)
