"""Synthetic patients for a task in 3D: a hippocampus-like body in two parts, as NIfTI files or DICOM series with a SEG.

The body is curved, tapers, and lies beside a bright band and below a dark pocket, always on the same sides, so that no
flip goes unnoticed. Intensities have another scale and contrast in every patient, and blobs as bright as the body lie
around it, so that a threshold fails and a small 3D network succeeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline.dicom import read_series
from pipeline.errors import InputError
from pipeline.progress import Progress, silent
from pipeline.seg import write_segmentation
from pipeline.synthetic_series import write_series

SHAPE = (40, 56, 40)
"""Voxels of 1 mm along X (to the right), Y (to the front) and Z (to the head)."""

ANTERIOR, POSTERIOR = 1, 2
"""Label values of the two parts, as in the Medical Segmentation Decathlon's hippocampus."""

CLASS_NAMES = ("anterior", "posterior")

LENGTH_MM, HEAD_MM, TAIL_MM = 25.0, 6.0, 3.5
"""Of the body of an average patient: how long it is, and the half-widths of its two parts."""

DIVISION = 0.15
"""Where the parts meet, on a scale from -1 at the posterior end to 1 at the anterior one."""

ANTERIOR_EXCESS = 0.2
"""How much brighter the anterior part is than the posterior one, in units of the body's contrast."""

NOD_DEGREES = 12.0
"""Heads are turned about the axis through the ears by up to this, and the affine says so."""

KINDS = ("nifti", "dicom")


class Patient(NamedTuple):
    """One patient in RAS.

    Attributes:
        volume: (X, Y, Z) int16, 0 and above.
        label: (X, Y, Z) uint8 of 0, `ANTERIOR` and `POSTERIOR`.
        affine: (4, 4), index to mm.
    """

    volume: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def volume_patient(seed: int) -> Patient:
    """One patient; the same for the same seed."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.88, 1.12)
    centre = (np.array(SHAPE) - 1) / 2 + rng.uniform(-4, 4, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(float)
    x, y, z = (grid - centre[:, None, None, None]) / size
    label = _body(x, y, z, bend_mm=rng.uniform(4, 7), rise_mm=rng.uniform(2, 5))
    volume = _tissue(rng, label, x, z)
    scale, offset = np.exp(rng.uniform(np.log(60), np.log(600))), rng.uniform(0, 100)
    return Patient(np.clip(scale * volume + offset, 0, 32000).round().astype(np.int16), label, _affine(rng))


def write_volume_patients(
    folder: Path, *, patients: int, seed: int, kind: str = "nifti", progress: Progress = silent
) -> None:
    """Write synthetic patients, each stored along other axes.

    Args:
        folder: `nifti` writes `images/patient_001.nii.gz` and `labels/patient_001.nii.gz`, `dicom` a series of MR
            slices `patient_001/mr/*.dcm` and a reference `patient_001/seg.dcm`.
        patients: how many.
        seed: another seed, other patients.
        kind: one of `KINDS`.
        progress: told of each patient.

    Raises:
        InputError: no patients or another kind is asked for, or a folder of a series holds something.
    """
    if patients < 1 or kind not in KINDS:
        raise InputError(f"cannot make {patients} patients as {kind}: at least 1, as {' or '.join(KINDS)}")
    for number in progress(range(patients), patients, "patients"):
        patient = volume_patient(seed * 1000 + number)
        rng = np.random.default_rng([seed, number])
        write = _write_nifti if kind == "nifti" else _write_dicom
        write(_stored(patient, _axes(rng, right_handed=number % 2 == 0)), folder, f"patient_{number + 1:03d}")


def _body(x: np.ndarray, y: np.ndarray, z: np.ndarray, *, bend_mm: float, rise_mm: float) -> np.ndarray:
    """Labels of a body about the origin, (X, Y, Z) uint8; coordinates in mm."""
    along = y / (LENGTH_MM / 2)  # -1 at the posterior end, 1 at the anterior one
    across = x - bend_mm * (along**2 - 0.4)  # both ends bend to the right
    up = z + rise_mm * along  # the posterior end is higher
    half_mm = TAIL_MM + (HEAD_MM - TAIL_MM) / (1 + np.exp(-10 * (along - DIVISION)))  # the head is thicker
    inside = (across / half_mm) ** 2 + (up / (0.8 * half_mm)) ** 2 + along**6 < 1
    return np.where(inside, np.where(along > DIVISION, ANTERIOR, POSTERIOR), 0).astype(np.uint8)


def _tissue(rng: np.random.Generator, label: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Intensities of about 0 to 1.5, (X, Y, Z) float64: body, textured surroundings, band, pocket, light and noise."""
    contrast, body = rng.uniform(0.3, 0.5), label > 0
    grey = 0.7 + 0.06 * _smooth(rng, 2)
    blobs = (_smooth(rng, 2.5) > 1.8) & ~body  # as bright as the body
    volume = np.where(body | blobs, grey + contrast, grey) + np.where(label == ANTERIOR, ANTERIOR_EXCESS * contrast, 0)
    volume = np.where((x > 13) & ~body, 1.4 + 0.05 * _smooth(rng, 2), volume)  # a bright band on the right
    volume = np.where((z > 11 + 1.5 * _smooth(rng, 4)) & ~body, 0.15, volume)  # a dark pocket above
    light = 1 + 0.1 * _smooth(rng, 12)
    return gaussian_filter(volume * light, 0.6) + rng.uniform(0.03, 0.07) * rng.normal(size=SHAPE)


def _affine(rng: np.random.Generator) -> np.ndarray:
    """Voxels of 1 mm in RAS, the head nodding, somewhere in the scanner."""
    angle = np.radians(rng.uniform(-NOD_DEGREES, NOD_DEGREES))
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, 3] = rng.uniform(-60, 20, 3).round(2)
    return affine


def _axes(rng: np.random.Generator, *, right_handed: bool) -> np.ndarray:
    """One of the 48 ways to store a volume, as nibabel's orientation (3, 2)."""
    axes = np.stack([rng.permutation(3), rng.choice([-1, 1], 3)], axis=1)
    if (np.linalg.det(nib.orientations.inv_ornt_aff(axes, SHAPE)[:3, :3]) > 0) != right_handed:
        axes[0, 1] *= -1
    return axes


def _stored(patient: Patient, axes: np.ndarray) -> Patient:
    """The same patient with axes swapped and reversed."""
    turn = nib.orientations.apply_orientation
    affine = patient.affine @ nib.orientations.inv_ornt_aff(axes, patient.volume.shape)
    return Patient(turn(patient.volume, axes), turn(patient.label, axes), affine)


def _write_nifti(patient: Patient, folder: Path, name: str) -> None:
    for kind, array in (("images", patient.volume), ("labels", patient.label)):
        image = nib.nifti1.Nifti1Image(np.ascontiguousarray(array), patient.affine)
        image.header.set_xyzt_units("mm")
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(image, folder / kind / f"{name}.nii.gz")


def _write_dicom(patient: Patient, folder: Path, name: str) -> None:
    """A series, and its SEG; a left-handed volume is read with its slices reversed, and so is its label."""
    direction, place_mm = patient.affine[:3, :3], tuple(patient.affine[:3, 3])
    home = folder / name / "mr"
    write_series(
        patient.volume,
        home,
        spacing_mm=(1, 1, 1),
        patient_id=name.upper(),
        direction=direction,
        position_mm=place_mm,
        modality="MR",
    )
    along_normal = patient.label if np.linalg.det(direction) > 0 else patient.label[:, :, ::-1]
    write_segmentation(
        along_normal, read_series(home), folder / name / "seg.dcm", class_names=CLASS_NAMES, version="phantom"
    )


def _smooth(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Smooth noise of unit variance, (X, Y, Z)."""
    field = gaussian_filter(rng.normal(size=SHAPE), sigma)
    return field / field.std()
