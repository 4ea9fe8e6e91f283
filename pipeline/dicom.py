"""DICOM series: headers and pixels, at the right place in the patient.

Arrays here are ``(X, Y, Z)``: X along a row of the image (its columns), Y along a column (its rows), Z from
slice to slice along the normal of the image plane. An affine maps such an index to millimetres in RAS, as
nibabel and MONAI have it; DICOM itself counts in LPS.
"""

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
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom
from pydicom.uid import MediaStorageDirectoryStorage

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

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's first two patient axes point to the left and to the back; RAS has them to the right and front."""


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
