"""Synthetic DICOM series, CT or MR, one file per slice; arrays ``(X, Y, Z)``, directions and places in RAS."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from pipeline.dicom import LPS_TO_RAS
from pipeline.errors import InputError

SYNTHETIC_DATE = "20000101"
"""The study date of every synthetic series: a fixed one keeps its files the same bit for bit."""

RIGHT_ANGLE = 1e-4
"""Direction cosines may miss a right angle by rounding."""

AXIAL = np.diag([-1.0, -1.0, 1.0])
"""Columns: X to the patient's left, Y to the back, Z to the head, as in an axial CT; in RAS."""


class Kind(NamedTuple):
    """What series of one modality have in common."""

    sop_class: UID
    stored: type[np.int16] | type[np.uint16]
    attributes: dict[str, Any]


KINDS = {
    "CT": Kind(
        CTImageStorage,
        np.int16,
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "SeriesDescription": "Abdomen",
            "BodyPartExamined": "ABDOMEN",  # a part that has no left and right, so no side is asked for
            "KVP": 120,
            "WindowCenter": 40,
            "WindowWidth": 400,
        },
    ),
    "MR": Kind(
        MRImageStorage,
        np.uint16,
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
            "SeriesDescription": "T1 MPRAGE",
            "BodyPartExamined": "BRAIN",
            "ScanningSequence": ["GR", "IR"],
            "SequenceVariant": ["SP", "MP"],
            "ScanOptions": "",
            "MRAcquisitionType": "3D",
            "RepetitionTime": 2300,
            "EchoTime": 2.98,
            "InversionTime": 900,
            "EchoTrainLength": 1,
            "FlipAngle": 9,
            "MagneticFieldStrength": 3,
            "WindowCenter": 500,
            "WindowWidth": 1000,
        },
    ),
}
"""Stored type and ordinary attributes of each modality that can be written."""


def write_series(
    volume: NDArray[np.number],
    folder: Path,
    *,
    spacing_mm: tuple[float, float, float],
    patient_id: str,
    direction: NDArray[np.floating] = AXIAL,
    position_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seed: int = 0,
    series: int = 1,
    modality: str = "CT",
    intercept_hu: int = -1024,
    attributes: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a volume as a synthetic series, one file per slice, the same bytes for the same arguments.

    The names of the files are not in the order of the slices, as on real discs; InstanceNumber is. Further habits
    of vendors are in `quirks`, and what breaks a series in `defects`.

    Args:
        volume: ``(X, Y, Z)`` whole numbers: Hounsfield units, that fit 16 bits after the intercept is taken off, for a
            CT; 0 to 65535 for an MR.
        folder: empty or not there yet.
        spacing_mm: between the centres of neighbouring voxels along X, Y and Z.
        patient_id: also the patient's family name.
        direction: ``(3, 3)``, its columns the unit vectors of X, Y and Z in RAS, at right angles. `read_series`
            gives the same volume back where they are right-handed, otherwise Z reversed, at the same place: slices
            are numbered along Z, so a left-handed one is a series that is numbered against its normal.
        position_mm: of voxel ``(0, 0, 0)`` in RAS.
        seed: another seed makes another study of the same patient, with a frame of reference of its own.
        series: another number makes another series of the same study, in its frame of reference.
        modality: one of `KINDS`.
        intercept_hu: what a stored value of 0 means in a CT (RescaleIntercept).
        attributes: further ones by DICOM keyword, the same in every slice; they win over those of `KINDS`.

    Returns:
        The files in the order of Z.

    Raises:
        InputError: the folder holds something, values do not fit, or directions are no unit vectors at right angles.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give a folder of its own to each series")
    if modality not in KINDS:
        raise InputError(f"no synthetic series of modality {modality}: take {' or '.join(KINDS)}")
    stored = _stored_values(volume, modality, intercept_hu)
    slices = stored.shape[2]
    directions, origin_mm = LPS_TO_RAS[:3, :3] @ direction, LPS_TO_RAS[:3, :3] @ position_mm  # now in LPS
    common = identity(patient_id, modality, seed=seed, series=series)
    _add_geometry(common, directions, np.array(spacing_mm, dtype=float))
    common.FrameOfReferenceUID, common.PositionReferenceIndicator = uid(patient_id, seed, "frame of reference"), ""
    common.SOPClassUID, common.BitsStored, common.HighBit = KINDS[modality].sop_class, 16, 15
    common.PixelRepresentation = int(stored.dtype.kind == "i")
    if modality == "CT":
        common.RescaleSlope, common.RescaleIntercept, common.RescaleType = 1, intercept_hu, "HU"
    for keyword, value in {**KINDS[modality].attributes, **(attributes or {})}.items():
        setattr(common, keyword, value)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.dcm" for number in (*range(1, slices, 2), *range(0, slices, 2))]
    for z in range(slices):
        dataset = Dataset(common)
        place_mm = origin_mm + z * spacing_mm[2] * directions[:, 2]
        dataset.ImagePositionPatient = [decimal(c) for c in place_mm]
        dataset.InstanceNumber = z + 1
        write(with_pixels(dataset, stored[:, :, z].T, uid(common.SeriesInstanceUID, z)), folder / names[z])
    return [folder / name for name in names]


def identity(patient_id: str, modality: str, *, seed: int, series: int) -> Dataset:
    """Patient, study and series of a synthetic object, from the same arguments always the same."""
    header = Dataset()
    header.PatientID, header.PatientName = patient_id, f"{patient_id}^"  # a caret: a family name alone
    header.PatientBirthDate = header.PatientSex = header.AccessionNumber = header.ReferringPhysicianName = ""
    header.StudyDate, header.StudyTime, header.StudyID = SYNTHETIC_DATE, "120000", str(seed)
    header.StudyInstanceUID = uid(patient_id, seed, "study")
    header.SeriesInstanceUID = uid(patient_id, seed, "series", series)
    header.SeriesNumber, header.Modality, header.Manufacturer = series, modality, "Overtile phantom"
    return header


def with_pixels(dataset: Dataset, pixels: NDArray[np.integer], instance: UID) -> Dataset:
    """A header completed with its pixels ``(rows, columns)`` of 16 bits, ready to be saved."""
    dataset.SOPInstanceUID = instance
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated = 1, 16
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """Write a file without waiting for the disc, as one does that can be made again."""
    dataset.save_as(path, enforce_file_format=True)


def uid(*parts: object) -> UID:
    """The same identifier for the same parts."""
    return generate_uid(entropy_srcs=[hashlib.sha256(repr(parts).encode()).hexdigest()])


def decimal(value: float | np.floating) -> str:
    """A number as the 16 characters that a decimal string holds; no negative zero."""
    return format_number_as_ds(float(value) + 0.0)


def _add_geometry(header: Dataset, directions: NDArray[np.floating], spacing_mm: NDArray[np.floating]) -> None:
    """Orientation and spacings of all slices; `directions` ``(3, 3)`` has X, Y, Z in LPS as columns."""
    upright = np.allclose(directions.T @ directions, np.eye(3), rtol=0, atol=RIGHT_ANGLE)
    if not upright or (spacing_mm <= 0).any():
        raise InputError("a series is an upright stack: give positive spacings and directions at right angles")
    header.ImageOrientationPatient = [decimal(c) for c in directions[:, :2].T.ravel()]
    header.PixelSpacing = [decimal(spacing_mm[1]), decimal(spacing_mm[0])]  # between rows, then columns
    header.SliceThickness = decimal(spacing_mm[2])
    header.PatientPosition, header.AcquisitionNumber = "HFS", 1


def _stored_values(volume: NDArray[np.number], modality: str, intercept_hu: int) -> NDArray[np.integer]:
    """``(X, Y, Z)`` in 16 bits as the pixels are stored, before the intercept."""
    if volume.ndim != 3:
        raise InputError(f"a series needs a volume of shape (X, Y, Z), got {volume.shape}")
    intercept, unit = (intercept_hu, " HU") if modality == "CT" else (0, "")
    values = np.asarray(volume, dtype=np.float64) - intercept
    limits = np.iinfo(KINDS[modality].stored)
    if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise InputError("a series stores whole numbers: round the volume first")
    if values.min() < limits.min or values.max() > limits.max:
        raise InputError(
            f"a series of {modality} with intercept {intercept} stores {limits.min + intercept} to "
            f"{limits.max + intercept}{unit}, got {volume.min()} to {volume.max()}: clip it first"
        )
    return values.astype(KINDS[modality].stored)
