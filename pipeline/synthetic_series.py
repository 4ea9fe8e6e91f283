"""Synthetic DICOM series, written as `dicom.read_series` reads them: arrays ``(X, Y, Z)``, directions in RAS."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from pipeline.dicom import LPS_TO_RAS, save
from pipeline.errors import InputError

SYNTHETIC_DATE = "20000101"
"""The study date of every synthetic series: a fixed one keeps its files the same bit for bit."""

RIGHT_ANGLE = 1e-4
"""Direction cosines may miss a right angle by rounding."""

AXIAL = np.diag([-1.0, -1.0, 1.0])
"""Columns: X to the patient's left, Y to the back, Z to the head, as in an axial CT; in RAS."""


def write_series(
    volume_hu: NDArray[np.number],
    folder: Path,
    *,
    spacing_mm: tuple[float, float, float],
    patient_id: str,
    direction: NDArray[np.floating] = AXIAL,
    position_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seed: int = 0,
    intercept_hu: int = -1024,
) -> list[Path]:
    """Write a volume as a synthetic CT series, one file per slice, the same bytes for the same arguments.

    The names of the files are not in the order of the slices, as on real discs.

    Args:
        volume_hu: ``(X, Y, Z)`` whole Hounsfield units, that fit 16 bits after the intercept is taken off.
        folder: empty or not there yet.
        spacing_mm: between the centres of neighbouring voxels along X, Y and Z.
        patient_id: also the patient's family name.
        direction: ``(3, 3)``, its columns the unit vectors of X, Y and Z in RAS, at right angles. `read_series`
            gives the same volume back where they are right-handed, otherwise Z reversed, at the same place.
        position_mm: of voxel ``(0, 0, 0)`` in RAS.
        seed: another seed makes another study and series of the same patient.
        intercept_hu: what a stored value of 0 means (RescaleIntercept).

    Returns:
        The files in the order of Z.

    Raises:
        InputError: the folder holds something, values do not fit, or directions are no unit vectors at right angles.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give a folder of its own to each series")
    stored = _stored_values(volume_hu, intercept_hu)
    slices = stored.shape[2]
    directions, origin_mm = LPS_TO_RAS[:3, :3] @ direction, LPS_TO_RAS[:3, :3] @ position_mm  # now in LPS
    common = _synthetic_header(directions, np.array(spacing_mm, dtype=float), patient_id, seed)
    common.RescaleSlope, common.RescaleIntercept, common.RescaleType = 1, intercept_hu, "HU"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.dcm" for number in (*range(1, slices, 2), *range(0, slices, 2))]
    for z in range(slices):
        place_mm = origin_mm + z * spacing_mm[2] * directions[:, 2]
        save(_synthetic_slice(common, stored[:, :, z], z=z, position_mm=place_mm), folder / names[z])
    return [folder / name for name in names]


def _stored_values(volume_hu: NDArray[np.number], intercept_hu: int) -> NDArray[np.int16]:
    """``(X, Y, Z) int16`` as the pixels are stored, before the intercept."""
    if volume_hu.ndim != 3:
        raise InputError(f"a series needs a volume of shape (X, Y, Z), got {volume_hu.shape}")
    values = np.asarray(volume_hu, dtype=np.float64) - intercept_hu
    limits = np.iinfo(np.int16)
    if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise InputError("a CT series stores whole Hounsfield units: round the volume first")
    if values.min() < limits.min or values.max() > limits.max:
        raise InputError(
            f"a CT series with intercept {intercept_hu} stores {limits.min + intercept_hu} to "
            f"{limits.max + intercept_hu} HU, got {volume_hu.min()} to {volume_hu.max()}: clip it first"
        )
    return values.astype(np.int16)


def _synthetic_header(
    directions: NDArray[np.floating], spacing_mm: NDArray[np.floating], patient_id: str, seed: int
) -> Dataset:
    """What all slices of a synthetic CT series share; `directions` ``(3, 3)`` has X, Y, Z in LPS as columns."""
    upright = np.allclose(directions.T @ directions, np.eye(3), rtol=0, atol=RIGHT_ANGLE)
    if not upright or (spacing_mm <= 0).any():
        raise InputError("a series is an upright stack: give positive spacings and directions at right angles")
    header = Dataset()
    header.PatientID, header.PatientName = patient_id, f"{patient_id}^"  # a caret: a family name alone
    header.PatientBirthDate = header.PatientSex = header.AccessionNumber = ""
    header.ReferringPhysicianName = header.PositionReferenceIndicator = ""
    header.StudyDate, header.StudyTime, header.StudyID = SYNTHETIC_DATE, "120000", str(seed)
    header.StudyInstanceUID = _uid(patient_id, seed, "study")
    header.SeriesInstanceUID = _uid(patient_id, seed, "series")
    header.FrameOfReferenceUID = _uid(patient_id, seed, "frame of reference")
    header.SOPClassUID, header.Modality = CTImageStorage, "CT"
    header.SeriesNumber = header.AcquisitionNumber = 1
    header.Manufacturer, header.PatientPosition, header.KVP = "Overtile phantom", "HFS", 120
    header.BodyPartExamined = "ABDOMEN"  # a part that has no left and right, so no side is asked for
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.ImageOrientationPatient = [_decimal(c) for c in directions[:, :2].T.ravel()]
    header.PixelSpacing = [_decimal(spacing_mm[1]), _decimal(spacing_mm[0])]  # between rows, then columns
    header.SliceThickness = _decimal(spacing_mm[2])
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    return header


def _synthetic_slice(
    common: Dataset, pixels: NDArray[np.int16], *, z: int, position_mm: NDArray[np.floating]
) -> Dataset:
    """One file of the series: `pixels` ``(X, Y)``, `position_mm` of its first pixel in LPS."""
    dataset = Dataset(common)
    dataset.SOPInstanceUID = _uid(common.SeriesInstanceUID, z)
    dataset.InstanceNumber = z + 1
    dataset.ImagePositionPatient = [_decimal(c) for c in position_mm]
    dataset.Columns, dataset.Rows = pixels.shape
    dataset.PixelData = pixels.T.astype("<i2").tobytes()  # (X, Y) -> (Y, X), row by row
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _uid(*parts: object) -> UID:
    """The same identifier for the same parts."""
    return generate_uid(entropy_srcs=[hashlib.sha256(repr(parts).encode()).hexdigest()])


def _decimal(value: float | np.floating) -> str:
    """A number as the 16 characters that a decimal string holds; no negative zero."""
    return format_number_as_ds(float(value) + 0.0)
