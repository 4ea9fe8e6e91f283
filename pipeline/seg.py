"""DICOM SEG: label maps and probabilities on the grid of what they were drawn on, and back.

Arrays are ``(X, Y, Z)`` for a series, as in dicom.py, and ``(H, W)`` for a single image. The identifiers of a SEG
follow from what is in it: the same answer of the same model to the same images has the same SOPInstanceUID, so it does
not flood an archive, and another answer has another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid

from pipeline.dicom import EMPTY_ALLOWED, REFUSALS, Series, affine_ras, along_normal, odd_values_pass, save
from pipeline.errors import InputError
from pipeline.terms import Code, Release, Segment

if TYPE_CHECKING:
    from pipeline.dicom import Picture

GRID_TOLERANCE_MM = 0.01
"""Two grids are one where no voxel is further apart: decimal strings in headers are rounded."""

KINDS = {
    "seg": hd.seg.SegmentationTypeValues.BINARY,
    "labelmap": hd.seg.SegmentationTypeValues.LABELMAP,
}
"""The kinds of SEG for a label map: BINARY, which every viewer reads, and LABELMAP, which is young and smaller."""

FRACTIONAL = hd.seg.SegmentationTypeValues.FRACTIONAL
"""The kind of SEG for probabilities."""

SEGMENTATION_SERIES_NUMBER = 900
"""Behind the numbers that scanners give, so that a viewer lists the segmentation last."""

UTF8 = "ISO_IR 192"
"""Every SEG is written in UTF-8: any patient's name fits, whatever the source's character set."""


def segmentation(
    labels: NDArray[np.integer],
    series: Series,
    *,
    segments: Sequence[Segment],
    release: Release,
    kind: str = "seg",
    further: Sequence[Dataset] = (),
) -> hd.seg.Segmentation:
    """Make a DICOM SEG of a label map, with one segment per class.

    A label map without a voxel set gives a valid SEG with every segment empty: "nothing was found" is a
    result. Otherwise empty frames are left out.

    Args:
        labels: ``(X, Y, Z)`` integers or booleans on the grid of `series.volume`; 0 is background, which
            is no segment.
        series: what the labels were drawn on.
        segments: class ``i`` is segment number ``i``, the first entry being number 1.
        release: of the model that drew them.
        kind: of `KINDS`.
        further: headers of the images of other series that were looked at too.

    Raises:
        InputError: the labels have another shape than the volume, a value without a name, or no integers;
            or the header of the series holds values that a SEG may not carry.
    """
    where = str(series.folder)
    _check_labels(labels, series.shape, len(segments), where)
    frames = np.asarray(labels).T.astype(np.min_scalar_type(len(segments)), copy=False)  # (X, Y, Z) -> (Z, Y, X)
    identity = _identity(labels, kind, segments, release, [*series.sources, *further])
    return _make(
        series.grid.with_array(frames), series.sources, where, KINDS[kind],
        segments=segments, release=release, identity=identity, further=further,
    )  # fmt: skip


def picture_segmentation(
    labels: NDArray[np.integer],
    picture: Picture,
    *,
    segments: Sequence[Segment],
    release: Release,
    kind: str = "seg",
) -> hd.seg.Segmentation:
    """Make a DICOM SEG of a label map of a single image (CR, DX), which has no place in a patient's space.

    It has no frame of reference and refers to the one image.

    Args:
        labels: ``(H, W)`` integers or booleans on the pixels of the image.
        picture: what they were drawn on.
        segments: as for `segmentation`.
        release: as for `segmentation`.
        kind: as for `segmentation`.

    Raises:
        InputError: as for `segmentation`.
    """
    _check_labels(labels, picture.pixels.shape, len(segments), str(picture.path))
    source = Dataset()
    source.update(picture.header)
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):  # some images have them, and no place in it
        if keyword in source:
            del source[keyword]
    for keyword in EMPTY_ALLOWED:
        source.setdefault(keyword, "")
    frame = np.asarray(labels)[None].astype(np.min_scalar_type(len(segments)), copy=False)
    about: dict[str, Any] = {"segments": segments, "release": release}
    identity = _identity(labels, kind, segments, release, [source])
    made = _make(frame, [source], str(picture.path), KINDS[kind], identity=identity, **about)
    made.PatientOrientation = source.get("PatientOrientation", "")  # type 2C where no plane orientation says it
    return made


@odd_values_pass()
def write_segmentation(
    labels: NDArray[np.integer], series: Series, path: Path, *, class_names: Sequence[str], version: str
) -> None:
    """Write a label map as a BINARY DICOM SEG whose segments have a name and no code.

    The file appears whole or not at all. It carries the patient module of its source and belongs where the source came
    from, and nowhere else.

    Args:
        labels: as for `segmentation`.
        series: as for `segmentation`.
        path: the file to write; its folder is made where it is missing.
        class_names: names of the classes 1, 2, ...; class ``i`` becomes segment number ``i``.
        version: of the software or model that made the labels.

    Raises:
        InputError: as for `segmentation`.
    """
    made_by = Release("Overtile", version)
    save(segmentation(labels, series, segments=[Segment(name) for name in class_names], release=made_by), path)


@odd_values_pass()
def write_probabilities(
    probabilities: NDArray[np.floating], series: Series, path: Path, *, segments: Sequence[Segment], release: Release
) -> None:
    """Write class probabilities as a FRACTIONAL DICOM SEG, one segment per class, in steps of 1/255.

    Args:
        probabilities: ``(classes, X, Y, Z)`` in [0, 1] on the grid of `series.volume`, background left out.
        series: what they were computed on.
        path: the file to write; its folder is made where it is missing.
        segments: one per class.
        release: of the model that computed them.

    Raises:
        InputError: the shape does not fit the series and the names, or the header does not allow a SEG.
    """
    if probabilities.shape != (len(segments), *series.shape):
        raise InputError(
            f"{series.folder}: probabilities of shape {probabilities.shape} do not fit {len(segments)} classes on "
            f"a volume of shape {series.shape}"
        )
    frames = np.clip(probabilities.transpose(3, 2, 1, 0), 0, 1).astype(np.float32)  # (C, X, Y, Z) -> (Z, Y, X, C)
    grid = series.grid.with_array(
        frames, channels={hd.ChannelDescriptor("SegmentNumber"): list(range(1, len(segments) + 1))}
    )
    identity = _identity(probabilities, "fractional", segments, release, series.sources)
    where = str(series.folder)
    save(_make(grid, series.sources, where, FRACTIONAL, segments=segments, release=release, identity=identity), path)


@odd_values_pass()
def _make(
    pixels: hd.Volume | NDArray[Any],
    sources: Sequence[Dataset],
    where: str,
    kind: hd.seg.SegmentationTypeValues,
    *,
    segments: Sequence[Segment],
    release: Release,
    identity: str,
    further: Sequence[Dataset] = (),
) -> hd.seg.Segmentation:
    array = pixels.array if isinstance(pixels, hd.Volume) else pixels
    try:
        made = hd.seg.Segmentation(
            source_images=sources,
            further_source_images=list(further) or None,
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=_describe(segments, release),
            series_instance_uid=_uid(identity, "series"),
            series_number=SEGMENTATION_SERIES_NUMBER,
            sop_instance_uid=_uid(identity, "instance"),
            instance_number=1,
            manufacturer="Overtile",
            manufacturer_model_name="Overtile",
            software_versions=version("overtile"),
            device_serial_number="none",  # must not be empty, and software has none
            omit_empty_frames=bool(array.max()),
            specific_character_set=UTF8,
            series_description="Overtile segmentation",
        )
    except REFUSALS as error:
        raise InputError(
            f"{where}: the header of this image does not allow a DICOM SEG ({error}): correct the "
            f"header, or write the label map as NIfTI"
        ) from error
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):  # highdicom draws it by lot
        item.DimensionOrganizationUID = _uid(identity, "dimension organization")
    return made


def _identity(
    values: NDArray[Any], kind: str, segments: Sequence[Segment], release: Release, sources: Sequence[Dataset]
) -> str:
    """Digest of all that makes one SEG another one: sources, model, kind, what segments mean, and every voxel."""
    digest = hashlib.sha256()
    shown = sorted(str(source.SOPInstanceUID) for source in sources), release, kind, list(segments), values.shape
    digest.update(repr(shown).encode())
    stored = np.dtype("<f4") if values.dtype.kind == "f" else np.dtype("<u2")
    for z in range(values.shape[-1]):  # slice by slice: a volume may be larger than memory
        digest.update(np.ascontiguousarray(values[..., z], dtype=stored).data)
    return digest.hexdigest()


def _uid(identity: str, role: str) -> UID:
    return generate_uid(entropy_srcs=[identity, role])


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


def _check_labels(labels: NDArray[np.integer], shape: tuple[int, ...], classes: int, where: str) -> None:
    if labels.shape != shape:
        raise InputError(
            f"{where}: labels of shape {labels.shape} do not lie on the volume of shape "
            f"{shape}: put them back on the grid of the input first"
        )
    if labels.dtype.kind not in "biu":
        raise InputError(f"{where}: labels must be integers, got {labels.dtype}: take the argmax")
    if not classes:
        raise InputError(f"{where}: a segmentation needs at least one class name besides background")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > classes:
        raise InputError(
            f"{where}: labels run from {low} to {high}, but names are given for 1 to {classes}: name every class"
        )


def _describe(segments: Sequence[Segment], release: Release) -> list[hd.seg.SegmentDescription]:
    """One automatic segment per class."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name=release.name,
        version=release.version,
        family=codes.DCM.ArtificialIntelligence,
        parameters={"sha256 of the weights": release.digest} if release.digest else None,
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label,
            segmented_property_category=_concept(segment.category),
            segmented_property_type=_concept(segment.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=_colour(segment.colour),
        )
        for number, segment in enumerate(segments, start=1)
    ]


def _concept(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _colour(colour: str | None) -> hd.color.CIELabColor | None:
    """Of #rrggbb."""
    return None if colour is None else hd.color.CIELabColor.from_rgb(*bytes.fromhex(colour[1:]))
