"""How DICOM input is answered: with a certified DICOM SEG, or with NIfTI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import CommonKeys

from pipeline import dicom, seg
from pipeline.certificate import write_certified
from pipeline.errors import InputError
from pipeline.jobs import OUTPUT_FORMATS, Job, beside
from pipeline.terms import read_metadata, release, segments
from pipeline.volumes import write_volume


class DicomAnswers:
    """Writes label maps of DICOM images, on the grid that is stored, with what the bundle's metadata says of them.

    Args:
        class_names: class 0, the background, first.
        channels: which series of a study is which channel, as in a recipe; None takes every series for a case.
        output_format: `seg` (BINARY; None means it too), `labelmap` or `nifti`.
        metadata: the bundle's metadata.json, which names the model and gives its classes clinical codes.
        checkpoint: the file of the weights, whose digest tells models apart.

    Raises:
        InputError: there is no such output format, or the metadata has wrong codes.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        channels: Mapping[str, Any] | None = None,
        output_format: str | None = None,
        metadata: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.channels = channels
        self.output_format = output_format or "seg"
        if self.output_format not in OUTPUT_FORMATS:
            raise InputError(f"no output_format {output_format!r}; there is {', '.join(OUTPUT_FORMATS)}")
        about = read_metadata(Path(metadata)) if metadata else {}
        self.segments = segments(about, class_names, str(metadata))
        self.release = release(about, Path(checkpoint) if checkpoint else None)

    def write_series(self, job: Job, labels: np.ndarray, probabilities: np.ndarray | None) -> bool:
        """Write the answer to the series of a case, on the grid of the first one.

        Args:
            job: whose `item` names the folders and the series.
            labels: (X, Y, Z) class indices.
            probabilities: (classes, X, Y, Z), or None.

        Returns:
            Whether something was written; False where this very answer was there.

        Raises:
            InputError: the header of the series does not allow a SEG.
            DataError: what was written was not read back as it should.
        """
        images = zip(job.item[CommonKeys.IMAGE], job.item["series"], strict=True)
        first, *others = [dicom.read_series(Path(folder), uid) for folder, uid in images]
        if self.output_format == "nifti":
            write_volumes(job.target, labels, probabilities, first.affine)
            return True
        about: dict[str, Any] = {"segments": self.segments, "release": self.release}
        if probabilities is not None:
            foreground = probabilities[1:] if len(probabilities) > 1 else probabilities  # a sigmoid has no background
            seg.write_probabilities(foreground, first, beside(job.target, "_probabilities.dcm"), **about)
        further = [source for other in others for source in other.sources]
        made = seg.segmentation(labels, first, kind=self.output_format, further=further, **about)
        return write_certified(made, job.target, labels=labels, affine=first.affine, names=self._names())

    def write_projection(self, job: Job, labels: np.ndarray) -> bool:
        """Write the answer, (H, W) class indices, to a single image, which has no place in the patient's space.

        Returns:
            As `write_series`.

        Raises:
            InputError: NIfTI was asked for; or as `write_series`.
            DataError: as `write_series`.
        """
        if self.output_format == "nifti":
            raise InputError(f"{job.source}: a single image has no place in a NIfTI file; say seg or labelmap")
        about: dict[str, Any] = {"segments": self.segments, "release": self.release, "kind": self.output_format}
        made = seg.picture_segmentation(labels, dicom.read_image(job.source), **about)
        return write_certified(made, job.target, labels=labels.T[..., None], affine=None, names=self._names())

    def _names(self) -> list[str]:
        return [segment.label for segment in self.segments]


def write_volumes(target: Path, labels: np.ndarray, probabilities: np.ndarray | None, affine: np.ndarray) -> None:
    """Write labels (X, Y, Z) and, beside them, probabilities (classes, X, Y, Z) as NIfTI, if there are any."""
    if probabilities is not None:
        write_volume(probabilities, affine, beside(target, "_probabilities.nii.gz"))
    write_volume(labels, affine, target)
