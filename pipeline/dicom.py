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
from pipeline.regular import ORIENTATION_TOLERANCE, SPACING_TOLERANCE, in_order

COMPANIONS = frozenset({"DOC", "FID", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SR"})
"""Modalities of objects that archives keep beside a series and that are not slices of it."""

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
    headers = in_order(unsorted, str(folder))
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
