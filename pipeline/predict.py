"""Cases through a bundle: label maps on the input's grid, in the input's format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import CommonKeys

from pipeline import dicom, orientation, seg
from pipeline.errors import DataError, InputError, user_error
from pipeline.labels import JPEG_SUFFIXES
from pipeline.loading import STORED_AFFINE
from pipeline.pictures import IMAGE_SUFFIXES, is_image, page_shapes, write_labels, write_probabilities

logger = logging.getLogger("pipeline.predict")

Transform = Callable[[dict[str, Any]], dict[str, Any]]
"""A MONAI dictionary transform."""


@dataclass(frozen=True)
class Job:
    """One input, a file or a folder with a DICOM series, and the file that its label map goes to."""

    source: Path
    target: Path


class Predictor:
    """Reads images, runs a network over them, writes label maps.

    Args:
        network: with its weights.
        preprocessing: from `{"image": path, "page": number or None}` to a channel-first `image`.
        inferer: MONAI inferer for (1, C, H, W[, D]).
        activation: on `pred`, from logits to probabilities, (classes, H, W[, D]).
        discretisation: on `pred`, from probabilities to class indices, (1, H, W[, D]).
        class_names: class 0, the background, first.
        spatial_dims: of the network; with 2, a volume is predicted slice by slice.
        device: to run on.
        source: an image file, a folder with a DICOM series, or a folder of such.
        output_dir: where the label maps go, under the names of their sources.
        match: glob that the files of a folder must match, say `*/image.tif`.
        probabilities: also write class probabilities.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Transform,
        inferer: Inferer,
        activation: Transform,
        discretisation: Transform,
        *,
        class_names: Sequence[str],
        spatial_dims: int,
        device: str,
        source: str,
        output_dir: str,
        match: str | None = None,
        probabilities: bool = False,
    ) -> None:
        self.network = network.to(device).eval()
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.activation = activation
        self.discretisation = discretisation
        self.class_names = list(class_names)
        self.spatial_dims = spatial_dims
        self.device = device
        self.source = source
        self.output_dir = output_dir
        self.match = match
        self.probabilities = probabilities

    def run(self) -> list[Path]:
        """Predict every input; a bad one is passed over, and told at the end.

        Returns:
            The label maps.

        Raises:
            DataError: some inputs could not be predicted; the others are written.
            InputError: there is no input, or the output would overwrite it.
        """
        if not self.source:
            raise InputError("no input: set `source` to an image, a DICOM folder or a folder of such")
        jobs = find_jobs(Path(self.source), Path(self.output_dir), self.match)
        failures: list[str] = []
        written: list[Path] = []
        for number, job in enumerate(jobs, start=1):
            try:
                self._predict(job)
                written.append(job.target)
                logger.info("%d/%d  %s -> %s", number, len(jobs), job.source, job.target)
            except Exception as error:  # MONAI wraps what a transform raises
                mistake = user_error(error)
                if mistake is None:
                    raise
                failures.append(str(mistake))
                logger.warning("%d/%d  passed over: %s", number, len(jobs), mistake)
        if failures:
            lines = "".join(f"\n  {failure}" for failure in failures)
            raise DataError(f"{len(failures)} of {len(jobs)} inputs could not be predicted:{lines}")
        return written

    def _predict(self, job: Job) -> None:
        if job.source.is_dir():
            self._predict_series(job)
            return
        pages = len(page_shapes(job.source))
        numbers: list[int | None] = list(range(pages)) if pages > 1 else [None]
        if not self.probabilities:
            write_labels((self._labels(self._page(job.source, n))[0] for n in numbers), job.target, job.source)
            return
        predicted = [self._page(job.source, number) for number in numbers]
        target = job.target.with_name(job.target.stem + "_probabilities.tif")
        write_probabilities((page.numpy() for page in predicted), target)
        write_labels((self._labels(page)[0] for page in predicted), job.target, job.source)

    def _predict_series(self, job: Job) -> None:
        volume = self._preprocessed(job.source, None)
        if self.spatial_dims == 3:
            probabilities = _as_stored(self._infer(volume[None])[0], volume)
        else:
            # (1, X, Y, Z) -> a batch of slices (Z, 1, Y, X), rows first as an image is stored -> (classes, X, Y, Z)
            slices = _as_stored(volume, volume).permute(3, 0, 2, 1).contiguous()
            probabilities = self._infer(slices).permute(1, 3, 2, 0)
        series = dicom.read_series(job.source)
        about: dict[str, Any] = {"class_names": self.class_names[1:], "version": version("overtile")}
        if self.probabilities:
            target = job.target.with_name(job.target.stem + "_probabilities.dcm")
            seg.write_probabilities(probabilities[1:].numpy(), series, target, **about)
        seg.write_segmentation(self._labels(probabilities)[0], series, job.target, **about)

    def _page(self, source: Path, number: int | None) -> torch.Tensor:
        """Probabilities of one image, (classes, H, W) float32 on the CPU."""
        return self._infer(self._preprocessed(source, number)[None])[0]

    def _preprocessed(self, source: Path, page: int | None) -> torch.Tensor:
        item = self.preprocessing({CommonKeys.IMAGE: str(source), "page": page})
        return torch.as_tensor(item[CommonKeys.IMAGE])

    def _infer(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> probabilities (N, classes, ...) float32 on the CPU."""
        channels = next(p.shape[1] for p in self.network.parameters() if p.ndim > 2)
        if batch.shape[1] != channels:
            raise InputError(f"the image has {batch.shape[1]} channels, the network was trained with {channels}")
        with torch.no_grad():
            logits = torch.Tensor(self.inferer(batch.to(self.device), self.network).float().cpu())
        return torch.stack(
            [torch.as_tensor(self.activation({CommonKeys.PRED: case})[CommonKeys.PRED]) for case in logits]
        )

    def _labels(self, probabilities: torch.Tensor) -> np.ndarray:
        """(classes, ...) -> (1, ...) uint8."""
        return (
            torch.as_tensor(self.discretisation({CommonKeys.PRED: probabilities})[CommonKeys.PRED])
            .numpy()
            .astype(np.uint8)
        )


def _as_stored(tensor: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """(..., X, Y, Z) on the grid of a loaded image -> along the axes of its file."""
    if not isinstance(image, MetaTensor):
        raise TypeError("a volume needs its affine to be taken back to its file: do not drop it in the preprocessing")
    array = torch.Tensor(tensor).numpy()
    back = orientation.as_stored(array, image.affine.numpy(), image.meta[STORED_AFFINE])
    return torch.as_tensor(np.ascontiguousarray(back))


def find_jobs(source: Path, output_dir: Path, match: str | None = None) -> list[Job]:
    """What there is to predict, and where each label map goes.

    Raises:
        InputError: there is nothing, or a label map would overwrite its source.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if source.is_file():
        jobs = [Job(source, output_dir / _label_name(Path(source.name)))]
    else:
        jobs = [Job(path, output_dir / name) for path, name in _inside(source, output_dir, match)]
    if not jobs:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{source}: nothing to predict; it holds no {kinds} file that matches and no DICOM series")
    inputs = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() in inputs:
            raise InputError(f"{job.target}: a label map would overwrite this image; choose another output folder")
        other = taken.setdefault(job.target.with_suffix(""), job.source)
        if other != job.source:
            raise InputError(f"{other} and {job.source}: their label maps would have one name; rename one of them")
    return jobs


def _inside(folder: Path, output_dir: Path, match: str | None) -> Iterator[tuple[Path, Path]]:
    """DICOM series and image files below a folder, with the path of their label map relative to the output."""
    earlier = output_dir.resolve() if output_dir.resolve() != folder.resolve() else None
    for home in dicom.series_folders(folder) if match is None else ():
        if earlier is None or earlier not in (home.resolve(), *home.resolve().parents):
            yield home, home.relative_to(folder).parent / f"{home.resolve().name}.dcm"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if earlier in path.resolve().parents or not path.is_file() or not is_image(path):
            continue
        if match is None or name.match(match):
            yield path, _label_name(name)


def _label_name(name: Path) -> Path:
    """Name of a file's label map: a JPEG would change its values, so it becomes a PNG."""
    return name.with_suffix(".png") if name.suffix.lower() in JPEG_SUFFIXES else name
