"""What the trainings of the benchmark are of: synthetic patients on disk, and the figures of a bundle that all share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from pipeline import bundle as bundles
from pipeline import manifest as manifests
from pipeline.index import index
from pipeline.phantom import CELL, MEMBRANE, write_em_patients
from pipeline.pictures import read_page
from pipeline.recipe import recipe
from pipeline.split import split_by_patient
from pipeline.volume_phantom import write_volume_patients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where all train."""

VALIDATION = 1 / 8
"""Share of the patients, and the same again is left out as a test."""

FLIP = 0.5
"""Probability of mirroring an axis where a bundle has no key for it."""


@dataclass(frozen=True)
class Task:
    """One kind of training; the figures come from the bundle's own train.yaml and inference.yaml.

    Attributes:
        bundle: that is trained.
        folder: of the data, written by `write`.
        patients: how many there are.
        repeats: patches of a case in an epoch.
        overrides: of the bundle's keys, for all contenders alike.
    """

    bundle: str
    folder: Path
    patients: int
    repeats: int
    overrides: Mapping[str, Any]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The bundle's keys: `patch`, `batch_size`, `width`, ..."""
        home = bundles.find(self.bundle)
        found = bundles.settings(home, "predicting") | bundles.settings(home, "training")
        deployed = {key: bundles.settings(home, "predicting")[key] for key in ("width", "depth", "class_names")}
        return {"flip": FLIP} | found | deployed | {"patches_per_case": self.repeats} | dict(self.overrides)

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.dims}D U-Net width {self.settings['width']}, {' x '.join(map(str, self.patch))}"

    @property
    def dims(self) -> int:
        """2 or 3."""
        return 2 if isinstance(bundles.settings(bundles.find(self.bundle), "training")["patch"], int) else 3

    @property
    def patch(self) -> tuple[int, ...]:
        """Pixels per axis."""
        size = self.settings["patch"]
        return (size,) * self.dims if isinstance(size, int) else tuple(size)

    @property
    def manifest(self) -> Path:
        """Of the data."""
        return self.folder / "data" / "manifest.json"

    @property
    def images_per_epoch(self) -> int:
        """Patches that the network learns from in an epoch."""
        return len(manifests.read(self.manifest).training) * self.repeats

    def files(self, partition: str) -> list[dict[str, str]]:
        """The cases as NIfTI files, image and label as class indices, for those who do not read our formats."""
        folder = self.folder / "nifti" / partition
        images = sorted(folder.glob("*_image.nii.gz"))
        return [{"image": str(path), "label": str(path).replace("_image", "_label")} for path in images]

    def write(self, size: int) -> None:
        """Write the data, of `size` pixels per side where it is of images."""
        home = self.folder / "data"
        if self.dims == 2:
            write_em_patients(home, patients=self.patients, sections=2, size=size, seed=1)
            files = {"image": "{patient}/image.tif", "label": "{patient}/label.tif"}
            how = {"name": "em", **files, "classes": [("cell", CELL), ("membrane", MEMBRANE)]}
        else:
            write_volume_patients(home, patients=self.patients, seed=1)
            files = {"image": "images/{patient}.nii.gz", "label": "labels/{patient}.nii.gz"}
            classes = [("background", 0), ("anterior", 1), ("posterior", 2)]
            how = {"name": "volumes", **files, "classes": classes, "modality": ["MR"]}
        shares = (1 - 2 * VALIDATION, VALIDATION, VALIDATION)
        manifest = split_by_patient(index(home, recipe(how)), shares, seed=1)
        manifests.write(manifest, self.manifest)
        for partition, cases in (("training", manifest.training), ("validation", manifest.validation)):
            target = self.folder / "nifti" / partition
            target.mkdir(parents=True)
            for case in cases:
                image, label = (self._array(home / file, case.page) for file in (case.image, case.label))
                label = label == MEMBRANE if self.dims == 2 else label
                _save(image.astype(np.float32), target / f"{case.id}_image.nii.gz")
                _save(label.astype(np.uint8), target / f"{case.id}_label.nii.gz")

    def _array(self, path: Path, page: int | None) -> np.ndarray:
        if self.dims == 2:
            return np.asarray(read_page(path, page))[0]
        return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def _save(array: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
