"""DICOM images in: series as volumes at the right place in the patient, and single projections.

Arrays here are ``(X, Y, Z)``: X along a row of the image (its columns), Y along a column (its rows), Z from
slice to slice along the normal of the image plane. An affine maps such an index to millimetres in RAS, as
nibabel and MONAI have it; DICOM itself counts in LPS.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from pipeline.atomic import atomic
from pipeline.dicom_files import (
    COMPANIONS,
    REFUSALS,
    find_series,
    odd_values_pass,
    read_header,
    without_copies,
)
from pipeline.dicom_pixels import presented, read_stack, read_values
from pipeline.regular import ORIENTATION_TOLERANCE, SPACING_TOLERANCE, Refused, in_order

Grid = TypeVar("Grid", hd.Volume, hd.VolumeGeometry)

EMPTY_ALLOWED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip
"""Attributes that DICOM lets be empty but not absent (type 2); anonymisers remove them all the same."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's first two patient axes point to the left and to the back; RAS has them to the right and front."""


@dataclass(frozen=True, eq=False)
class Series:
    """One series of single-frame slices as a volume, with what a segmentation of it needs.

    Attributes:
        affine: ``(4, 4) float64``, index ``(x, y, z, 1)`` -> mm in RAS.
        grid: highdicom's geometry of the same voxels, axes in its order ``(Z, Y, X)``, mm in LPS.
        sources: headers of the slices without pixels, in the order of Z.
        folder: where the series was read.
    """

    affine: NDArray[np.float64]
    grid: hd.VolumeGeometry
    sources: tuple[FileDataset, ...]
    folder: Path

    @cached_property
    def volume(self) -> NDArray[np.int16 | np.float32]:
        """``(X, Y, Z)``, rescaled: Hounsfield units in CT; read from the files when it is first asked for.

        int16 where these are whole numbers that fit, else float32; a view of an array that lies in a temporary file
        where it is large. Of the pixel transforms only the rescale (or modality look-up table) is applied; windows and
        inversions for display are not. Padding outside the scanner's circle keeps its value.

        Raises:
            Refused: pixels cannot be read, as `dicom_pixels.read_stack` says.
        """
        with odd_values_pass():
            return read_stack(self.sources).T  # (Z, Y, X) -> (X, Y, Z)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume, ``(X, Y, Z)``, known from the headers."""
        z, y, x = self.grid.spatial_shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances between the centres of neighbouring voxels along X, Y and Z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class Picture:
    """A single image: a projection (CR, DX, mammogram, ...) or one slice by itself.

    Attributes:
        pixels: ``(H, W) float32`` as shown to a reader, bright where the beam was stopped; rows as stored.
        spacing_mm: between the centres of neighbouring rows, and of neighbouring columns; None where it is unknown.
        header: without pixels.
        path: where it was read.
    """

    pixels: NDArray[np.float32]
    spacing_mm: tuple[float, float] | None
    header: FileDataset
    path: Path


@odd_values_pass()
def read_series(folder: Path, series_uid: str | None = None) -> Series:
    """Read one series under a folder as a volume, or refuse it.

    Z runs along the normal of the image plane (row direction x column direction), whatever the order of
    the files, so X, Y and Z are right-handed in the patient. Headers tell all this; pixels are read when the volume is
    first asked for.

    Args:
        folder: that holds the files, itself or in subfolders.
        series_uid: as for `find_series`.

    Raises:
        InputError: as `find_series`; as a `Refused` with rule and file where the slices are not one regular volume
            (`regular.in_order`).
    """
    unsorted = without_copies([read_header(path) for path in find_series(folder, series_uid)])
    headers = in_order(unsorted, str(folder))
    grid = _geometry(headers, folder)
    return Series(
        affine=affine_ras(grid), grid=grid, sources=tuple(_complete(header) for header in headers), folder=folder
    )


@odd_values_pass()
def read_image(path: Path) -> Picture:
    """Read a single image as a reader would see it: rescale and VOI look-up table or window applied, white on black.

    The pixel spacing is, as in DICOM PS3.3 10.7: PixelSpacing, which in a projection is calibrated to the patient;
    else ImagerPixelSpacing, which is at the detector, divided by the magnification where that is known; else
    NominalScannedPixelSpacing of a scanned film; else unknown.

    Raises:
        InputError: the file is not DICOM, damaged, multi-frame or in colour, or its pixels cannot be read.
    """
    header = read_header(path)
    if header.get("Modality") in COMPANIONS:
        raise Refused(f"{path} is no image but {header.Modality}: give a DICOM image", "no image", str(path))
    if header.get("NumberOfFrames") not in (None, 1):
        raise Refused(f"{path} is multi-frame: export its frames as single images", "multi-frame", str(path))
    pixels = presented(read_values(header), header)
    return Picture(pixels=pixels, spacing_mm=_spacing_mm(header), header=header, path=path)


def _spacing_mm(header: FileDataset) -> tuple[float, float] | None:
    magnification = float(header.get("EstimatedRadiographicMagnificationFactor") or 1)
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = [float(value) for value in header.get(keyword) or ()]
        if len(spacing) == 2 and min(spacing) > 0:
            divisor = magnification if keyword == "ImagerPixelSpacing" else 1
            return spacing[0] / divisor, spacing[1] / divisor
    return None


def _geometry(headers: Sequence[FileDataset], folder: Path) -> hd.VolumeGeometry:
    """The grid of sorted slices by highdicom, the last gate: what it refuses is refused."""
    try:
        spacing_mm, _ = hd.spatial.get_series_volume_positions(
            headers,
            rtol=SPACING_TOLERANCE,
            orientation_tol=ORIENTATION_TOLERANCE,
            perpendicular_tol=1.0,  # `in_order` bounds the lean in mm: angles between thin slices are rounding
        )
        if spacing_mm is None:
            raise ValueError("highdicom finds no even spacing")
        orientations = Counter(tuple(header.ImageOrientationPatient) for header in headers)
        grid = hd.VolumeGeometry.from_attributes(
            image_position=headers[-1].ImagePositionPatient,  # highdicom counts slices against the normal
            image_orientation=orientations.most_common(1)[0][0],
            rows=headers[0].Rows,
            columns=headers[0].Columns,
            pixel_spacing=headers[0].PixelSpacing,
            spacing_between_slices=spacing_mm,
            number_of_frames=len(headers),
            coordinate_system="PATIENT",
            frame_of_reference_uid=headers[0].FrameOfReferenceUID,
        )
    except REFUSALS as error:
        sentence = f"{folder} is not one regular volume ({error}): export the series again"
        raise Refused(sentence, "no regular volume", str(headers[0].filename)) from error
    return along_normal(grid)


def along_normal(volume: Grid) -> Grid:
    """The same voxels with slices along the normal; highdicom itself sorts them against it."""
    return volume.ensure_handedness(hd.AxisHandedness.LEFT_HANDED, flip_axis=0)  # of (Z, Y, X)


def affine_ras(volume: hd.Volume | hd.VolumeGeometry) -> NDArray[np.float64]:
    """Affine of the transposed array: ``(z, y, x)`` -> mm in LPS becomes ``(x, y, z)`` -> mm in RAS."""
    affine: NDArray[np.float64] = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    return affine


def _complete(header: FileDataset) -> FileDataset:
    """The header with the attributes that a SEG takes over, empty where they are absent."""
    for keyword in EMPTY_ALLOWED:
        if keyword not in header:
            setattr(header, keyword, "")
    return header


def save(dataset: Dataset, path: Path) -> None:
    """Write a DICOM file; it appears whole or not at all."""
    with atomic(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
