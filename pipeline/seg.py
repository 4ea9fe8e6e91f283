"""DICOM SEG: label maps and probabilities on the grid of the series that they were drawn on, and back.

Arrays are ``(X, Y, Z)`` as in dicom.py.
"""

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

from pipeline.dicom import REFUSALS, Series, affine_ras, along_normal, odd_values_pass, save
from pipeline.errors import InputError

GRID_TOLERANCE_MM = 0.01
"""Two grids are one where no voxel is further apart: decimal strings in headers are rounded."""

BINARY, FRACTIONAL = hd.seg.SegmentationTypeValues.BINARY, hd.seg.SegmentationTypeValues.FRACTIONAL
"""The kinds of SEG that are written: label maps, and probabilities."""

SEGMENTATION_SERIES_NUMBER = 900
"""Behind the numbers that scanners give, so that a viewer lists the segmentation last."""

UTF8 = "ISO_IR 192"
"""Every SEG is written in UTF-8: any patient's name fits, whatever the source's character set."""


@odd_values_pass()
def write_segmentation(
    labels: NDArray[np.integer], series: Series, path: Path, *, class_names: Sequence[str], version: str
) -> None:
    """Write a label map as a BINARY DICOM SEG, the kind that every viewer reads, with one segment per class.

    A label map without a voxel set gives a valid SEG with every segment empty: "nothing was found" is a
    result. Otherwise empty frames are left out. The file appears whole or not at all. It carries the
    patient module of its source and belongs where the source came from, and nowhere else.

    Args:
        labels: ``(X, Y, Z)`` integers or booleans on the grid of `series.volume`; 0 is background, which
            is no segment.
        series: what the labels were drawn on.
        path: the file to write; its folder is made where it is missing.
        class_names: names of the classes 1, 2, ...; class ``i`` becomes segment number ``i``.
        version: of the software or model that made the labels.

    Raises:
        InputError: the labels have another shape than the volume, a value without a name, or no integers;
            or the header of the series holds values that a SEG may not carry.
    """
    _check_labels(labels, series, class_names)
    frames = labels.T.astype(np.min_scalar_type(len(class_names)))  # (X, Y, Z) -> (Z, Y, X)
    _write_seg(series.grid.with_array(frames), series, path, BINARY, class_names=class_names, version=version)


@odd_values_pass()
def write_probabilities(
    probabilities: NDArray[np.floating], series: Series, path: Path, *, class_names: Sequence[str], version: str
) -> None:
    """Write class probabilities as a FRACTIONAL DICOM SEG, one segment per class, in steps of 1/255.

    Args:
        probabilities: ``(classes, X, Y, Z)`` in [0, 1] on the grid of `series.volume`, background left out.
        series: what they were computed on.
        path: the file to write; its folder is made where it is missing.
        class_names: one name per class.
        version: of the software or model that made them.

    Raises:
        InputError: the shape does not fit the series and the names, or the header does not allow a SEG.
    """
    if probabilities.shape != (len(class_names), *series.volume.shape):
        raise InputError(
            f"{series.folder}: probabilities of shape {probabilities.shape} do not fit {len(class_names)} classes on "
            f"a volume of shape {series.volume.shape}"
        )
    frames = np.clip(probabilities.transpose(3, 2, 1, 0), 0, 1).astype(np.float32)  # (C, X, Y, Z) -> (Z, Y, X, C)
    grid = series.grid.with_array(
        frames, channels={hd.ChannelDescriptor("SegmentNumber"): list(range(1, len(class_names) + 1))}
    )
    _write_seg(grid, series, path, FRACTIONAL, class_names=class_names, version=version)


def _write_seg(
    pixels: hd.Volume,
    series: Series,
    path: Path,
    kind: hd.seg.SegmentationTypeValues,
    *,
    class_names: Sequence[str],
    version: str,
) -> None:
    try:
        segmentation = hd.seg.Segmentation(
            source_images=series.sources,
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=_describe(class_names, version),
            series_instance_uid=hd.UID(),
            series_number=SEGMENTATION_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="Overtile",
            manufacturer_model_name="Overtile",
            software_versions=version,
            device_serial_number="none",  # must not be empty, and software has none
            omit_empty_frames=bool(pixels.array.any()),
            specific_character_set=UTF8,
            series_description="Overtile segmentation",
        )
    except REFUSALS as error:
        raise InputError(
            f"{series.folder}: the header of this series does not allow a DICOM SEG ({error}): correct the "
            f"header, or write the label map as NIfTI"
        ) from error
    save(segmentation, path)


@odd_values_pass()
def read_segmentation(path: Path, *, series: Series | None = None) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Read a DICOM SEG as a label map.

    Args:
        path: a BINARY or LABELMAP SEG whose segments do not overlap.
        series: put the labels on the grid of this series. A SEG usually leaves out slices without a voxel
            set, so without a series the map covers only the slices from the first to the last that is stored.

    Returns:
        ``(X, Y, Z)`` unsigned integers, 0 or the segment number, and the ``(4, 4)`` affine to mm in RAS.

    Raises:
        InputError: the file is not a DICOM SEG, its segments overlap, it is fractional, it is not a regular
            volume, or it lies on another grid than the series.
    """
    try:
        volume = hd.seg.segread(path).get_volume(combine_segments=True)
    except (InvalidDicomError, *REFUSALS) as error:
        raise InputError(f"{path} cannot be read as a label map: {error}") from error
    volume = along_normal(volume) if series is None else _onto(volume, series, path)
    return volume.array.T, affine_ras(volume)


def _onto(labels: hd.Volume, series: Series, path: Path) -> hd.Volume:
    """Labels padded to the grid of the series; refused where they would have to be resampled or cut off."""
    grid, advice = series.grid, "give the series that it was drawn on"
    if labels.frame_of_reference_uid != grid.frame_of_reference_uid:
        raise InputError(f"{path} has another frame of reference than {series.folder}: {advice}")
    try:
        whole = labels.match_geometry(grid, tol=GRID_TOLERANCE_MM)
    except REFUSALS as error:
        raise InputError(f"{path} lies on another grid than {series.folder}: {advice}") from error
    if np.count_nonzero(whole.array) < np.count_nonzero(labels.array):
        raise InputError(f"{path} reaches beyond the volume of {series.folder}: {advice}")
    # highdicom's match allows 8 degrees at this tolerance and leaves slices too many at the end
    apart_mm = np.abs(whole.affine - grid.affine) @ (*grid.spatial_shape, 1)
    if whole.spatial_shape != grid.spatial_shape or apart_mm.max() > GRID_TOLERANCE_MM:
        raise InputError(f"{path} lies on another grid than {series.folder}: {advice}")
    return whole


def _check_labels(labels: NDArray[np.integer], series: Series, class_names: Sequence[str]) -> None:
    if labels.shape != series.volume.shape:
        raise InputError(
            f"{series.folder}: labels of shape {labels.shape} do not lie on the volume of shape "
            f"{series.volume.shape}: put them back on the grid of the input first"
        )
    if labels.dtype.kind not in "biu":
        raise InputError(f"{series.folder}: labels must be integers, got {labels.dtype}: take the argmax")
    if not class_names:
        raise InputError(f"{series.folder}: a segmentation needs at least one class name besides background")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > len(class_names):
        raise InputError(
            f"{series.folder}: labels run from {low} to {high}, but names are given for 1 to "
            f"{len(class_names)}: name every class"
        )


def _describe(class_names: Sequence[str], version: str) -> list[hd.seg.SegmentDescription]:
    """One automatic segment per class; "tissue" is the code that fits any of them, the label says which."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Overtile", version=version, family=codes.DCM.ArtificialIntelligence
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(class_names, start=1)
    ]
