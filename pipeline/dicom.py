"""DICOM series: headers and pixels in, and synthetic ones out, at the right place in the patient.

Arrays here are ``(X, Y, Z)``: X along a row of the image (its columns), Y along a column (its rows), Z from
slice to slice along the normal of the image plane. An affine maps such an index to millimetres in RAS, as
nibabel and MONAI have it; DICOM itself counts in LPS.
"""

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from pipeline.atomic import atomic
from pipeline.errors import InputError

COMPANIONS = frozenset({"DOC", "FID", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SR"})
"""Modalities of objects that archives keep beside a series and that are not slices of it."""

GEOMETRY = ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "FrameOfReferenceUID")
"""What every slice of a volume must have, and have alike."""

ORIENTATION_TOLERANCE = 1e-4
"""Direction cosines may differ by rounding between slices: 1e-4 is 0.05 mm over a field of view of 500 mm."""

SAME_PLACE_MM = 1e-3
"""Two slices closer than this are one slice twice; no scanner reconstructs at a micrometre."""

SPACING_TOLERANCE = 0.01
"""A gap may differ from the mean gap by this fraction, highdicom's own default."""

DRIFT_TOLERANCE = 0.25
"""No slice may lie further than this fraction of a pixel from where the affine puts it.

highdicom alone accepts a tilt of 2.5 degrees, 13 mm over a scan of 300 mm.
"""

REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What pydicom and highdicom raise on a header or on pixels that they cannot take."""

ODD_VALUES = (
    r"Invalid value for VR ",  # a date with dots, an identifier with a leading zero
    r"The value length \(\d+\) exceeds ",  # an accession number of 20 characters
    r"The PN component length \(\d+\) exceeds ",
    r"The string .* is unlikely to represent the intended person name",  # a family name alone
)
"""How warnings begin about texts that hospitals store and DICOM does not allow."""

EMPTY_ALLOWED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip
"""Attributes that DICOM lets be empty but not absent (type 2); anonymisers remove them all the same."""

SYNTHETIC_DATE = "20000101"
"""The study date of every synthetic series: a fixed one keeps its files the same bit for bit."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's first two patient axes point to the left and to the back; RAS has them to the right and front."""

AXIAL = np.diag([-1.0, -1.0, 1.0])
"""Columns: X to the patient's left, Y to the back, Z to the head, as in an axial CT; in RAS."""


@contextmanager
def odd_values_pass() -> Iterator[None]:
    """Keep quiet about texts in headers that break DICOM's rules and change no voxel.

    pydicom quotes the value, which may be a patient's name, in a warning and in its log: neither may keep it.
    """

    def is_news(record: logging.LogRecord) -> bool:
        return not any(re.match(text, record.getMessage()) for text in ODD_VALUES)

    log = logging.getLogger("pydicom")
    log.addFilter(is_news)
    try:
        with warnings.catch_warnings():
            for text in ODD_VALUES:
                warnings.filterwarnings("ignore", message=text, category=UserWarning)
            yield
    finally:
        log.removeFilter(is_news)


@dataclass(frozen=True, eq=False)
class Series:
    """One series of single-frame slices as a volume, with what a segmentation of it needs.

    Attributes:
        volume: ``(X, Y, Z) float32``, rescaled: Hounsfield units in CT.
        affine: ``(4, 4) float64``, index ``(x, y, z, 1)`` -> mm in RAS.
        grid: highdicom's geometry of the same voxels, axes in its order ``(Z, Y, X)``, mm in LPS.
        sources: headers of the slices without pixels, in the order of Z.
        folder: where the series was read.
    """

    volume: NDArray[np.float32]
    affine: NDArray[np.float64]
    grid: hd.VolumeGeometry
    sources: tuple[Dataset, ...]
    folder: Path

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances between the centres of neighbouring voxels along X, Y and Z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def series_folders(folder: Path) -> list[Path]:
    """The folders under a folder that each hold one series: the innermost that holds all files of it.

    Files that are no slices (a DICOMDIR, a segmentation, a report, a text) do not count; a damaged one does, so that
    its folder is read and refused by name.
    """
    series: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path)):
        try:
            uid = _series_uid(path)
        except InputError:
            uid = str(path.parent)
        if uid is not None:
            series.setdefault(uid, []).append(path.parent)
    return sorted({Path(os.path.commonpath(homes)) for homes in series.values()})


@odd_values_pass()
def find_series(folder: Path) -> list[Path]:
    """Files of the one image series under a folder, subfolders included, sorted by name.

    Only headers are read. Files that are not DICOM are passed over, and so are a DICOMDIR and the objects
    that archives keep beside a series: segmentations, structure sets, reports.

    Raises:
        InputError: there is no such folder, no DICOM image in it, more than one series, or a damaged file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder that holds the files of one series")
    series: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        uid = _series_uid(path)
        if uid is not None:
            series.setdefault(uid, []).append(path)
    if not series:
        raise InputError(f"{folder} holds no DICOM image: give the folder that holds the files of one series")
    if len(series) > 1:
        found = "; ".join(
            f"{uid} ({len(paths)} files, e.g. {paths[0].relative_to(folder)})" for uid, paths in series.items()
        )
        raise InputError(f"{folder} holds {len(series)} series, put each into a folder of its own: {found}")
    return next(iter(series.values()))


@odd_values_pass()
def read_series(folder: Path) -> Series:
    """Read the one series under a folder as a volume, or refuse it.

    Z runs along the normal of the image plane (row direction x column direction), whatever the order of
    the files, so X, Y and Z are right-handed in the patient. Of the pixel transforms only the rescale (or
    modality look-up table) is applied; windows and inversions for display are not.

    Raises:
        InputError: as `find_series`; or the slices are not one regular volume: a slice is missing or there
            twice, orientations, sizes or pixel spacings differ, the gantry was tilted; or there is only one
            slice; or the file is multi-frame, in colour, damaged or compressed in a way that cannot be read.
    """
    paths = find_series(folder)
    unsorted = [dcmread(path, stop_before_pixels=True) for path in paths]
    _check_alike(unsorted, folder)
    headers = _check_positions(unsorted, folder)
    volume = _read_volume(headers, folder)
    return Series(
        volume=volume.array.T,  # (Z, Y, X) -> (X, Y, Z)
        affine=affine_ras(volume),
        grid=volume.get_geometry(),
        sources=tuple(_complete(header) for header in headers),
        folder=folder,
    )


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


def _series_uid(path: Path) -> str | None:
    """The series that a file is a slice of; None for a file that is no slice."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"])
    except InvalidDicomError:
        return None
    except (EOFError, *REFUSALS) as error:
        raise InputError(f"{path} is damaged ({error}): export it again or remove it") from error
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return None
    if header.get("Modality") in COMPANIONS:
        return None
    if not header.get("SeriesInstanceUID"):
        raise InputError(f"{path} names no series (cut short?): export it again or remove it")
    return str(header.SeriesInstanceUID)


def _name(header: Dataset) -> str:
    return Path(str(header.filename)).name


def _check_alike(headers: Sequence[Dataset], folder: Path) -> None:
    """Refuse what cannot be slices of one volume, naming the file to look at."""
    for header in headers:
        if header.get("NumberOfFrames", 1) not in (None, 1):
            raise InputError(f"{folder}: {_name(header)} is multi-frame: convert it to one file per slice")
        for keyword in (*GEOMETRY, "ImagePositionPatient"):
            if header.get(keyword) in (None, ""):
                raise InputError(f"{folder}: {_name(header)} has no {keyword}: export the original images")
        for keyword in GEOMETRY:
            first, this = headers[0].get(keyword), header.get(keyword)
            tilt = keyword == "ImageOrientationPatient" and np.abs(np.subtract(first, this, dtype=float)).max()
            if first != this and not 0 < tilt <= ORIENTATION_TOLERANCE:
                raise InputError(
                    f"{folder}: slices differ in {keyword}, {_name(headers[0])} has {first}, {_name(header)} "
                    f"has {this}: keep only the slices of one volume (no localizer)"
                )


def _check_positions(headers: Sequence[Dataset], folder: Path) -> list[Dataset]:
    """The headers in the order of Z, or a refusal that says which slice is at fault."""
    if len(headers) < 2:
        raise InputError(f"{folder} holds one slice, which has no slice distance: give two or more")
    orientation = np.array(headers[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    headers = sorted(headers, key=lambda header: float(normal @ np.array(header.ImagePositionPatient, float)))
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=float)  # (Z, 3) mm in LPS
    gaps = np.diff(positions @ normal)
    twice, widest = int(gaps.argmin()), int(gaps.argmax())
    if gaps[twice] < SAME_PLACE_MM:
        raise InputError(
            f"{folder}: {_name(headers[twice])} and {_name(headers[twice + 1])} lie at the same place: "
            f"remove the copy, or split the series where it was scanned twice"
        )
    if not np.allclose(gaps, gaps.mean(), rtol=SPACING_TOLERANCE, atol=0):
        raise InputError(
            f"{folder}: {gaps[widest]:.2f} mm from {_name(headers[widest])} to {_name(headers[widest + 1])}, "
            f"but {np.median(gaps):.2f} mm between most slices: a slice is missing or of another scan, "
            f"export the whole series again"
        )
    expected = positions[0] + np.arange(len(headers))[:, None] * gaps.mean() * normal
    drift = np.linalg.norm(positions - expected, axis=1)
    if drift.max() > DRIFT_TOLERANCE * min(map(float, headers[0].PixelSpacing)):
        raise InputError(
            f"{folder}: {_name(headers[int(drift.argmax())])} lies {drift.max():.2f} mm from its place in "
            f"an upright stack (tilted gantry?): resample the series to an upright grid first"
        )
    return headers


def _read_volume(headers: Sequence[Dataset], folder: Path) -> hd.Volume:
    """Pixels ``(Z, Y, X) float32`` by highdicom, the last gate: what it refuses is refused."""
    try:
        volume = hd.get_volume_from_series(
            [dcmread(str(header.filename)) for header in headers],
            dtype=np.float32,
            apply_real_world_transform=False,
            apply_presentation_lut=False,
            rtol=SPACING_TOLERANCE,
            orientation_tol=ORIENTATION_TOLERANCE,
        )
    except REFUSALS as error:
        raise InputError(f"{folder} is not one readable volume ({error}): export the series again") from error
    if volume.array.ndim != 3:
        raise InputError(f"{folder} is in colour: give a series with one value per voxel")
    return along_normal(volume)


def along_normal(volume: hd.Volume) -> hd.Volume:
    """The same voxels with slices along the normal; highdicom itself sorts them against it."""
    return volume.ensure_handedness(hd.AxisHandedness.LEFT_HANDED, flip_axis=0)  # of (Z, Y, X)


def affine_ras(volume: hd.Volume) -> NDArray[np.float64]:
    """Affine of the transposed array: ``(z, y, x)`` -> mm in LPS becomes ``(x, y, z)`` -> mm in RAS."""
    affine: NDArray[np.float64] = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    return affine


def _complete(header: Dataset) -> Dataset:
    """The header with the attributes that a SEG takes over, empty where they are absent."""
    for keyword in EMPTY_ALLOWED:
        if keyword not in header:
            setattr(header, keyword, "")
    return header


def save(dataset: Dataset, path: Path) -> None:
    """Write a DICOM file; it appears whole or not at all."""
    with atomic(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


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
    upright = np.allclose(directions.T @ directions, np.eye(3), rtol=0, atol=ORIENTATION_TOLERANCE)
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
