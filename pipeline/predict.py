"""Cases through a bundle: label maps on the input's grid, in the input's format; DICOM is answered with DICOM SEG."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import CommonKeys

from pipeline import orientation, processes
from pipeline.answered import Answered, settings_digest, source_digest
from pipeline.answers import DicomAnswers, write_volumes
from pipeline.configuration import running_config
from pipeline.errors import DataError, InputError, user_error
from pipeline.inferers import tile_inferer
from pipeline.jobs import Found, Job, beside, find_jobs
from pipeline.loading import STORED_AFFINE, STORED_SHAPE
from pipeline.pictures import page_shapes, write_labels, write_probabilities
from pipeline.progress import logged
from pipeline.scratch import scratch

logger = logging.getLogger("pipeline.predict")

Transform = Callable[[dict[str, Any]], dict[str, Any]]
"""A MONAI dictionary transform."""

WHOLE_ANSWER_GB = 1.0
"""From this size on it is said that an inferer that cannot go tile by tile holds the answer as a whole."""


class Predictor:
    """Reads images, runs a network over them, writes label maps.

    Where the inferer can, a volume goes through the network tile by tile, and each tile's answer becomes class indices
    at once: neither the logits nor the probabilities of a whole volume are ever in memory. So `activation` and
    `discretisation` must treat every voxel alone.

    Args:
        network: with its weights.
        preprocessing: from what `LoadCased` takes to a channel-first `image`.
        inferer: MONAI inferer for (1, C, H, W[, D]).
        activation: on `pred`, from logits to probabilities, (classes, H, W[, D]).
        discretisation: on `pred`, from probabilities to class indices, (1, H, W[, D]).
        class_names: class 0, the background, first.
        spatial_dims: of the network; with 2, a volume is predicted slice by slice.
        device: to run on.
        source: an image file, or a folder of image files and DICOM series of any nesting.
        output_dir: where the label maps go, under the names of their sources.
        match: glob that the files of a folder must match, say `*/image.tif`.
        probabilities: also write class probabilities.
        dicom: which series are channels of one case, and how DICOM is answered.
        resume: keep a journal of what is answered, and pass over what it has: see `pipeline.answered`.
    """

    def __init__(  # noqa: PLR0913 - one for each key of a bundle's config
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
        dicom: DicomAnswers | None = None,
        resume: bool = False,
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
        self.dicom = dicom or DicomAnswers(self.class_names)
        self.resume = resume
        self.config = running_config()

    def run(self) -> list[Path]:
        """Predict every input; a bad one is passed over, and told at the end.

        Several processes of torchrun take the inputs one by one, each the next that none has; the first one tells all
        that could not be predicted.

        Returns:
            The label maps, of this process's inputs.

        Raises:
            DataError: some inputs could not be predicted; the others are written.
            InputError: there is no input, or the output would overwrite it.
        """
        if not self.source:
            raise InputError("no input: set `source` to an image, a DICOM folder or a folder of such")
        if processes.launched():
            processes.join("cpu", timeout=processes.ARCHIVE_TIMEOUT)
        try:
            return self._run()
        except Exception as error:
            reason = processes.told(error)
            if reason is error:
                raise
            raise reason from error

    def _run(self) -> list[Path]:
        found = processes.from_first(self._found() if processes.is_first() else None)
        assert found is not None
        answered = Answered(Path(self.output_dir), self._settings()) if self.resume else None
        failures: list[tuple[int, str]] = []
        written: list[Path] = []
        for number, job in processes.dealt(found.jobs):
            place = f"{number + 1}/{len(found.jobs)}"
            try:
                news = self._answered(job, answered)
                written.append(job.target)
                logger.info("%s  %s -> %s%s", place, job.source, job.target, "" if news else "  (already there)")
            except Exception as error:  # MONAI wraps what a transform raises
                mistake = user_error(error)
                if mistake is None:
                    raise
                failures.append((number, str(mistake)))
                logger.warning("%s  passed over: %s", place, mistake)
        every = sorted(failure for share in processes.gathered(failures) for failure in share)
        told = [*found.refused, *(sentence for _, sentence in every)]
        if told and processes.is_first():
            lines = "".join(f"\n  {sentence}" for sentence in told)
            everything = len(found.jobs) + len(found.refused)
            raise DataError(f"{len(told)} of {everything} inputs could not be predicted:{lines}")
        return written

    def _found(self) -> Found:
        """What there is to predict; what of it makes no case is told."""
        found = find_jobs(
            Path(self.source), Path(self.output_dir), self.match,
            channels=self.dicom.channels, output_format=self.dicom.output_format, progress=logged,
        )  # fmt: skip
        for sentence in found.aside:
            logger.info("left aside: %s", sentence)
        for refusal in found.refused:
            logger.warning("passed over: %s", refusal)
        return found

    def _settings(self) -> str:
        dicom = (self.dicom.output_format, self.dicom.segments, self.dicom.release)
        return settings_digest(self.network, self.config, torch.device(self.device).type, self.probabilities, *dicom)

    def _answered(self, job: Job, answered: Answered | None) -> bool:
        """Write the answer to one input; False if it was there already."""
        if answered is None:
            return self._predict(job)
        if answered.has(job):
            return False
        source = source_digest(job)
        news = self._predict(job)
        answered.note(job, source)
        return news

    def _predict(self, job: Job) -> bool:
        """Write the answer to one input; False if it was there already."""
        if job.kind == "picture":
            return self._predict_pages(job)
        image = self._preprocessed(job)
        if job.kind == "projection":
            if self.probabilities:
                raise InputError(f"{job.source}: of a single DICOM image no probabilities are written; save it as TIFF")
            return self.dicom.write_projection(job, self._answer(self._checked(image, 2, job)[None])[0][0])
        labels, probabilities = self._volume(image, job)
        if job.kind == "series":
            return self.dicom.write_series(job, labels, probabilities)
        write_volumes(job.target, labels, probabilities, np.asarray(image.meta[STORED_AFFINE]))
        return True

    def _predict_pages(self, job: Job) -> bool:
        """The pages of a TIFF stack one after the other, or one picture."""
        pages = len(page_shapes(job.source))
        numbers: list[int | None] = list(range(pages)) if pages > 1 else [None]
        if not self.probabilities:
            write_labels((self._page(job, number)[0] for number in numbers), job.target, job.source)
            return True
        predicted = [self._page(job, number) for number in numbers]
        write_probabilities(
            (likely for _, likely in predicted if likely is not None), beside(job.target, "_probabilities.tif")
        )
        write_labels((page[0] for page in predicted), job.target, job.source)
        return True

    def _page(self, job: Job, number: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels (H, W) and, if they are wanted, probabilities (classes, H, W) of one image."""
        labels, probabilities = self._answer(self._checked(self._preprocessed(job, page=number), 2, job)[None])
        return labels[0], None if probabilities is None else probabilities[0]

    def _preprocessed(self, job: Job, page: int | None = None) -> Any:
        return self.preprocessing({**job.item, "page": page})[CommonKeys.IMAGE]

    def _volume(self, image: Any, job: Job) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels (X, Y, Z) and, if wanted, probabilities (classes, X, Y, Z) along the axes of the file."""
        self._checked(image, 3, job)
        if not isinstance(image, MetaTensor) or STORED_AFFINE not in image.meta:
            raise TypeError("a volume needs its affine to be taken back to its file: do not drop it in preprocessing")
        affine, stored_affine = image.affine.numpy(), np.asarray(image.meta[STORED_AFFINE])
        if self.spatial_dims == 3:
            found, likely = self._answer(image[None])
            labels = orientation.as_stored(found[0], affine, stored_affine)
            probabilities = None if likely is None else orientation.as_stored(likely[0], affine, stored_affine)
        else:
            labels, probabilities = self._slices(
                orientation.as_stored(torch.Tensor(image).numpy(), affine, stored_affine)
            )
        if labels.shape != tuple(image.meta[STORED_SHAPE]):
            raise TypeError("a volume must keep its voxels in preprocessing: let the inferer resample and come back")
        return labels, probabilities

    def _slices(self, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(C, X, Y, Z) -> labels and probabilities slice by slice, each with rows first as an image is stored."""
        labels = _slices_first(volume.shape[1:], np.uint8)
        probabilities = None
        for z in logged(range(volume.shape[3]), volume.shape[3], "slices"):
            image = torch.as_tensor(np.ascontiguousarray(volume[..., z].transpose(0, 2, 1)))  # (C, Y, X)
            answer, likely = self._answer(image[None], quiet=True)
            labels[..., z] = answer[0].T
            if likely is not None:
                if probabilities is None:
                    probabilities = _slices_first((likely.shape[1], *volume.shape[1:]), np.float32)
                probabilities[..., z] = likely[0].transpose(0, 2, 1)
        return labels, probabilities

    def _checked(self, image: Any, dims: int, job: Job) -> Any:
        """The image, if the network can take it."""
        channels = next(p.shape[1] for p in self.network.parameters() if p.ndim > 2)
        if image.shape[0] != channels:
            raise InputError(
                f"{job.source}: the image has {image.shape[0]} channels, the network was trained with {channels}"
            )
        if dims < self.spatial_dims:
            raise InputError(f"{job.source}: this is an image, the network was trained with volumes")
        return image

    @torch.no_grad()
    def _answer(self, batch: torch.Tensor, *, quiet: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """(N, C, ...) -> class indices (N, ...) uint8 and, if wanted, probabilities (N, classes, ...) float32."""
        make = _slices_first if batch.ndim == 5 else scratch
        labels = make((len(batch), *batch.shape[2:]), np.uint8)
        probabilities: np.ndarray | None = None
        for (images, *pixels), logits in self._parts(batch, quiet):
            likely = torch.as_tensor(self.activation({CommonKeys.PRED: logits[0].float()})[CommonKeys.PRED])
            chosen = torch.as_tensor(self.discretisation({CommonKeys.PRED: likely})[CommonKeys.PRED])
            labels[images, *pixels] = torch.Tensor(chosen).cpu().numpy()
            if self.probabilities:
                if probabilities is None:
                    probabilities = make((len(batch), len(likely), *batch.shape[2:]), np.float32)
                probabilities[images, :, *pixels] = torch.Tensor(likely).cpu().numpy()
        return labels, probabilities

    def _parts(self, batch: torch.Tensor, quiet: bool) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Which pixels of which image, and the logits there, (1, classes, ...)."""
        tiles = tile_inferer(self.inferer)
        if tiles is None:
            self._say_if_large(batch)
            everywhere = [slice(None)] * (batch.ndim - 2)
            for n, logits in enumerate(torch.Tensor(self.inferer(batch.to(self.device), self.network))):
                yield (slice(n, n + 1), *everywhere), logits[None]
            return
        plan = tiles.plan(tuple(batch.shape), self.network)
        parts = tiles.each(batch, self.network)
        yield from parts if quiet else logged(parts, plan.tiles * len(batch), "tiles")

    def _say_if_large(self, batch: torch.Tensor) -> None:
        gigabytes = 4e-9 * len(self.class_names) * len(batch) * math.prod(batch.shape[2:])
        if gigabytes >= WHOLE_ANSWER_GB:
            logger.warning(
                "%s cannot go tile by tile here, so the whole answer, %.1f GB, is held in memory several times",
                type(self.inferer).__name__, gigabytes,
            )  # fmt: skip


def _slices_first(shape: Sequence[int], kind: Any) -> np.ndarray:
    """An array whose last axis varies slowest in memory, as DICOM SEG and NIfTI store the slices of a volume."""
    return scratch(tuple(shape)[::-1], kind).T
