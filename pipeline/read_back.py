"""DICOM SEG read by pydicom for the attributes and numpy for the bits: a second opinion on what highdicom wrote.

Arrays are ``(X, Y, Z)`` and affines lead to mm in RAS, as in dicom.py. Shares no code with the writer, nor with the
reader in seg.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.dicom import LPS_TO_RAS, REFUSALS, odd_values_pass
from pipeline.errors import InputError
from pipeline.scratch import scratch

GRID_TOLERANCE = 0.01
"""Frames may lie this far, in voxels, from the places of one regular grid."""


@odd_values_pass()
def read_back(path: Path) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Read a BINARY or LABELMAP SEG with pydicom and numpy alone.

    Returns:
        ``(X, Y, Z)`` 0 or the segment number, Z from the first to the last slice that is stored, and the ``(4, 4)``
        affine to mm in RAS; to pixels for a SEG of a single image.

    Raises:
        InputError: it is no such file, its segments overlap, it is compressed, or its frames lie on no regular grid.
    """
    return label_map(read_dataset(path), path)


def read_dataset(path: Path) -> Dataset:
    """The attributes of a DICOM file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return dcmread(path)
    except (InvalidDicomError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read back ({error})") from None


def label_map(dataset: Dataset, path: Path) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """As `read_back`, of attributes that were read already; `path` is for the sentence."""
    try:
        if dataset.SegmentationType not in ("BINARY", "LABELMAP"):
            raise ValueError(f"{dataset.SegmentationType} is no label map")
        if dataset.file_meta.TransferSyntaxUID not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            raise ValueError("its pixels are compressed")
        affine, slices = _grid(dataset)
        kind = np.min_scalar_type(max(int(item.SegmentNumber) for item in dataset.SegmentSequence))
        labels = scratch((max(slices) + 1, dataset.Rows, dataset.Columns), kind)
        for z, number, frame in zip(slices, _segment_numbers(dataset), _frames(dataset), strict=True):
            if (labels[z][frame > 0] != 0).any():
                raise ValueError("its segments overlap")
            labels[z] += frame.astype(kind) * kind.type(number or 1)
    except REFUSALS as error:
        raise InputError(f"{path}: cannot be read back ({error})") from None
    return labels.T, affine  # (Z, Y, X) -> (X, Y, Z)


def _frames(dataset: Dataset) -> Iterator[NDArray[np.integer]]:
    """The pixels of each frame, (rows, columns): bits without a gap between frames, or numbers of 8 or 16 bits."""
    count, size = int(dataset.NumberOfFrames), int(dataset.Rows) * int(dataset.Columns)
    data = np.frombuffer(dataset.PixelData, np.uint8)
    for number in range(count):
        if dataset.BitsAllocated == 1:
            first, last = number * size, (number + 1) * size
            bits = np.unpackbits(data[first // 8 : -(-last // 8)], bitorder="little")
            pixels: NDArray[np.integer] = bits[first % 8 :][:size]
        else:
            kind = np.dtype({8: "u1", 16: "<u2"}[int(dataset.BitsAllocated)])
            pixels = data[number * size * kind.itemsize : (number + 1) * size * kind.itemsize].view(kind)
        yield pixels.reshape(dataset.Rows, dataset.Columns)


def _segment_numbers(dataset: Dataset) -> list[int | None]:
    """The segment that each frame shows; None where its pixels are segment numbers themselves."""
    if dataset.SegmentationType == "LABELMAP":
        return [None] * int(dataset.NumberOfFrames)
    groups = _groups(dataset, "SegmentIdentificationSequence")
    return [int(group.ReferencedSegmentNumber) for group in groups]


def _groups(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The item of a functional group for each frame: its own, or the one that all share."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    return [(frame if keyword in frame else shared)[keyword][0] for frame in dataset.PerFrameFunctionalGroupsSequence]


def _grid(dataset: Dataset) -> tuple[NDArray[np.float64], list[int]]:
    """The affine of the frames as a volume, and the slice that each frame is."""
    count = int(dataset.NumberOfFrames)
    shared, own = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence[0]
    if "PlaneOrientationSequence" not in shared and "PlaneOrientationSequence" not in own:
        return np.eye(4), [0] * count  # a single image, whose frames are its segments
    orientations = [np.array(g.ImageOrientationPatient, float) for g in _groups(dataset, "PlaneOrientationSequence")]
    measures = _groups(dataset, "PixelMeasuresSequence")
    if np.ptp(orientations, axis=0).max() > 0 or len({str(m) for m in measures}) > 1:
        raise ValueError("its frames differ in orientation or spacing")
    rows_mm, columns_mm = (float(value) for value in measures[0].PixelSpacing)  # between rows, between columns
    along_x, along_y = orientations[0][:3], orientations[0][3:]
    normal = np.cross(along_x, along_y)
    positions = np.array([g.ImagePositionPatient for g in _groups(dataset, "PlanePositionSequence")], float)  # LPS
    depths = positions @ normal
    first = positions[int(depths.argmin())]
    step_mm = float(measures[0].get("SpacingBetweenSlices") or measures[0].SliceThickness)
    slices = np.rint((depths - depths.min()) / step_mm).astype(int)
    apart_mm = np.linalg.norm(first + slices[:, None] * step_mm * normal - positions, axis=1)
    if apart_mm.max() > GRID_TOLERANCE * min(rows_mm, columns_mm, step_mm):
        raise ValueError(f"a frame lies {apart_mm.max():.3g} mm from its place on a regular grid")
    affine = np.eye(4)
    affine[:3] = np.column_stack([along_x * columns_mm, along_y * rows_mm, normal * step_mm, first])
    return LPS_TO_RAS @ affine, [int(z) for z in slices]
