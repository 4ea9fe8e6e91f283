"""The header of one DICOM file as a light object: read, decoded and judged, an order of magnitude faster than pydicom.

What is rare (big-endian or deflated files, the sequences of segmentations) is left to pydicom.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID

from pipeline import dicom_bytes
from pipeline.dicom_bytes import Damaged
from pipeline.dicom_values import Wanted, by_pydicom, segmentation, values_of, wanted_of

KEYWORDS = (
    # of the file meta information, before the data set proper
    "MediaStorageSOPClassUID", "TransferSyntaxUID",
    # which file of which series of whom
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
    # what a series is
    "Modality", "ImageType", "SeriesDescription", "SeriesNumber", "InstanceNumber", "AcquisitionNumber",
    # where a slice lies
    "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "SliceThickness",
    # its pixels
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "PhotometricInterpretation",
)  # fmt: skip
"""What is read of every file, whatever else is wanted."""

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of DICOM SEG: Segmentation Storage and Label Map Segmentation Storage."""

DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, the table of contents of a disc."""

NOT_DICOM = "not DICOM"
"""What a file is that is passed over because it holds something else."""

NOT_LOOKED_FOR = -1
"""Where the pixels begin in a file that pydicom read."""


@dataclass(slots=True)
class Header:
    """What was read of one file: plain values by DICOM keyword, several values as a tuple.

    Attributes:
        filename: path of the file.
        values: keyword -> text, number or tuple of them; what is absent or empty in the file is left out. Of a SEG
            also `ReferencedSeries`, `ReferencedInstances` (UIDs), `Segments` ((number, label), ...), `SegmentLabel`.
        pixels_at: byte at which the pixels begin, or `NOT_LOOKED_FOR`.
    """

    filename: str
    values: dict[str, Any]
    pixels_at: int

    def get(self, keyword: str, default: Any = None) -> Any:
        """The value of an attribute, as `pydicom.Dataset.get` gives it."""
        return self.values.get(keyword, default)


@dataclass(frozen=True)
class Refusal:
    """A file or series that is not used although it holds an image.

    Attributes:
        rule: short words, the same for the same reason.
        file: path of the file at fault.
        message: what is wrong and what to do, without a patient's name or identifier.
        series: SeriesInstanceUID, empty where it is not known.
        study: StudyInstanceUID, where a study is refused as a whole.
        patient: PatientID, likewise.
    """

    rule: str
    file: str
    message: str
    series: str = ""
    study: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Passed:
    """A file that is no image and no segmentation, and what it is instead."""

    kind: str


def read(path: str, keywords: tuple[str, ...] = ()) -> Header | Refusal | Passed:
    """Read the header of one file; never raises for what a file holds.

    Args:
        path: any file.
        keywords: DICOM keywords to read besides `KEYWORDS`; not of sequences.

    Returns:
        The header of an image or of a DICOM SEG; or what else the file is; or why it cannot be used.
    """
    raw: dict[int, bytes] = {}
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return _read(dicom_bytes.Source(descriptor), path, wanted_of((*KEYWORDS, *keywords)), raw)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Refusal("unreadable file", path, f"cannot be opened ({error.strerror}): give the right to read it")
    except Damaged as error:
        series = _plain(raw, _SERIES)
        return Refusal("damaged file", path, f"is damaged or cut short ({error}): export it again or remove it", series)


def read_batch(keywords: tuple[str, ...], paths: list[str]) -> list[Header | Refusal | Passed]:
    """`read` for several files: the work of a process, which then imports this file and nothing heavier."""
    return [read(path, keywords) for path in paths]


def follow_parent() -> None:
    """Begin a process so: Ctrl-C goes to all of a terminal and the parent alone answers it; it ends when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _read(file: dicom_bytes.Source, path: str, wanted: Wanted, raw: dict[int, bytes]) -> Header | Refusal | Passed:
    """As `read`; `raw` is filled as far as the file can be read."""
    start = dicom_bytes.start(file)
    if start is None:
        if path.lower().endswith(".dcm") and not path.rpartition(os.sep)[2].startswith("."):
            raise Damaged("it is called .dcm and does not begin like a DICOM file")
        return Passed(NOT_DICOM)
    fault, pixels_at, length = None, None, 0
    try:
        pixels_at, length = dicom_bytes.walk(file, start, wanted, raw)
    except Damaged as error:
        fault = error
    kind = _plain(raw, _SOP_CLASS) or _plain(raw, _MEDIA_CLASS)
    rare = _plain(raw, dicom_bytes.SYNTAX) in dicom_bytes.LEFT_OUT
    if start == 0 and not kind:
        return Passed(NOT_DICOM)  # by chance it began like a DICOM file without preamble
    if other := _no_image(kind, fault is not None or rare or pixels_at is not None):
        return Passed(other)
    if fault or (pixels_at is None and not rare):
        raise fault or Damaged("it ends before its pixels, or has none")
    values = by_pydicom(path, wanted) if rare else values_of(raw, wanted)
    if kind in SEGMENTATIONS:
        values |= segmentation(path)
    elif not rare and length < _pixel_bytes(values):
        raise Damaged(f"{length} bytes of pixels, {_pixel_bytes(values)} are needed for its rows and columns")
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"):
        if keyword not in values:
            said = f"has no {keyword}: export the original file"
            return Refusal("missing attribute", path, said, str(values.get("SeriesInstanceUID", "")))
    return Header(path, values, NOT_LOOKED_FOR if pixels_at is None else pixels_at)


@lru_cache(maxsize=256)
def _no_image(kind: str, has_pixels: bool) -> str:
    """What an object is that is neither image nor SEG, by its SOP class's name in the standard; empty if it is one."""
    name = UID(kind).name
    if kind in SEGMENTATIONS:
        return ""
    if kind == DIRECTORY:
        return "DICOMDIR"
    if name == kind:
        return "" if has_pixels else "private object"
    is_image = "Image Storage" in name and not name.startswith("RT ")  # a portal image is part of a plan
    return "" if is_image else name.removesuffix(" Storage")


def _pixel_bytes(values: dict[str, Any]) -> int:
    """The bytes that uncompressed pixels need at least; 0 where that is not known."""
    if "422" in str(values.get("PhotometricInterpretation", "")):
        return 0  # two colours for every four pixels
    counts = [values.get(keyword, 0) for keyword in ("Rows", "Columns", "BitsAllocated")]
    more = [values.get(keyword, 1) for keyword in ("SamplesPerPixel", "NumberOfFrames")]
    return math.prod([*counts, *more]) // 8 if all(isinstance(number, int) for number in [*counts, *more]) else 0


def _tag(keyword: str) -> int:
    return tag_for_keyword(keyword) or 0


_MEDIA_CLASS, _SOP_CLASS, _SERIES = map(_tag, ("MediaStorageSOPClassUID", "SOPClassUID", "SeriesInstanceUID"))


def _plain(raw: dict[int, bytes], tag: int) -> str:
    return raw.get(tag, b"").decode("ascii", "replace").strip("\0 ")
