"""Which files of a folder are DICOM, and of which series; their headers."""

import filecmp
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom import FileDataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from pipeline.errors import InputError
from pipeline.regular import Refused

REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What pydicom and highdicom raise on a header or on pixels that they cannot take."""

COMPANIONS = frozenset({"DOC", "FID", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SR"})
"""Modalities of objects that archives keep beside a series and that are not slices of it."""

SERIES_TAGS = (Tag("Modality"), Tag("SeriesInstanceUID"))
"""What tells the series of a file; tags stand in ascending order, so the rest of the header is not read."""

PREAMBLE_END = b"DICM"
"""Bytes 128 to 131 of a DICOM file."""

SOP_CLASSES = b"1.2.840.10008.5.1.4.1.1."
"""How the UIDs of DICOM's own storage classes begin."""

ODD_VALUES = (
    r"Invalid value for VR ",  # a date with dots, an identifier with a leading zero
    r"The value length \(\d+\) exceeds ",  # an accession number of 20 characters
    r"The PN component length \(\d+\) exceeds ",
    r"The string .* is unlikely to represent the intended person name",  # a family name alone
)
"""How warnings begin about texts that hospitals store and DICOM does not allow."""


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


@odd_values_pass()
def find_series(folder: Path, series_uid: str | None = None) -> list[Path]:
    """Files of one image series under a folder, subfolders included, sorted by name.

    Only headers are read, and these once as long as no file changes: a folder may hold a hundred series. Files that
    are not DICOM are passed over, and so are a DICOMDIR and the objects that archives keep beside a series:
    segmentations, structure sets, reports.

    Args:
        folder: to look through.
        series_uid: the SeriesInstanceUID of the series that is meant; other series and damaged files beside it
            are then passed over too. None where the folder holds one series.

    Raises:
        InputError: there is no such folder, no such series in it, or, without a `series_uid`, more than one series
            or a damaged file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder that holds the files of one series")
    series, damaged = _scan(_listing(folder))
    if series_uid is not None:
        if series_uid not in series:
            raise Refused(f"{folder} holds no image of series {series_uid}: index the data again", "no slice")
        return list(series[series_uid])
    if damaged:
        raise Refused(str(damaged[0]), damaged[0].rule, damaged[0].file)
    if not series:
        raise InputError(f"{folder} holds no DICOM image: give the folder that holds the files of one series")
    if len(series) > 1:
        found = "; ".join(
            f"{uid} ({len(paths)} files, e.g. {paths[0].relative_to(folder)})" for uid, paths in series.items()
        )
        sentence = f"{folder} holds {len(series)} series, put each into a folder of its own: {found}"
        raise Refused(sentence, "two series", str(list(series.values())[1][0]))
    return list(next(iter(series.values())))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content: the name says nothing."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132).endswith(PREAMBLE_END) or lacks_preamble(path)


def lacks_preamble(path: Path) -> bool:
    """Whether a file begins with its first attribute, in group 2 or 8, and soon names a class of DICOM's objects."""
    with path.open("rb") as file:
        first = file.read(1024)
    return first[128:132] != PREAMBLE_END and first[:2] in (b"\x02\0", b"\x08\0") and SOP_CLASSES in first


def read_file(path: Path, **options: Any) -> FileDataset:
    """`pydicom.dcmread`, also of files without preamble."""
    bare = lacks_preamble(path)
    dataset = dcmread(path, force=bare, **options)
    if bare and "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def without_copies(headers: Sequence[FileDataset]) -> list[FileDataset]:
    """Headers but those of files that are another one byte for byte, as a disc leaves that was imported twice."""
    first: dict[str, FileDataset] = {}
    kept = []
    for header in headers:
        same = first.setdefault(str(header.get("SOPInstanceUID", "")), header)
        if same is header or not filecmp.cmp(str(same.filename), str(header.filename), shallow=False):
            kept.append(header)
    return kept


def read_header(path: Path) -> FileDataset:
    """All of a file but its pixels."""
    try:
        return read_file(path, stop_before_pixels=True)
    except InvalidDicomError:
        raise Refused(f"{path} is not a DICOM file: give a DICOM image", "not DICOM", str(path)) from None
    except (EOFError, *REFUSALS) as error:
        raise Refused(f"{path} is damaged ({error}): export it again or remove it", "damaged", str(path)) from error


def _listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """The files under a folder, sorted by name, with what changes when one of them does: size and time in ns."""
    return tuple(sorted(_files(str(folder))))


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:  # five times faster than Path.rglob, and a folder is listed for each series
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file():
                yield entry.path, entry.stat().st_size, entry.stat().st_mtime_ns


@lru_cache(maxsize=8)
def _scan(listing: tuple[tuple[str, int, int], ...]) -> tuple[dict[str, list[Path]], list[Refused]]:
    """The files of each series among those of a listing, and why some files cannot be read."""
    series: dict[str, list[Path]] = {}
    damaged = []
    for path in (Path(name) for name, _, _ in listing):
        try:
            uid = series_of(path)
        except Refused as refused:
            damaged.append(refused)
            continue
        if uid is not None:
            series.setdefault(uid, []).append(path)
    return series, damaged


def series_of(path: Path) -> str | None:
    """The series that a file is a slice of; None for a file that is no slice."""
    try:
        with path.open("rb") as file:
            header = read_partial(
                file,
                lambda tag, vr, length: tag > SERIES_TAGS[-1],
                specific_tags=list(SERIES_TAGS),
                force=lacks_preamble(path),
            )
    except InvalidDicomError:
        return None
    except (EOFError, *REFUSALS) as error:
        raise Refused(f"{path} is damaged ({error}): export it again or remove it", "damaged", str(path)) from error
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return None
    if header.get("Modality") in COMPANIONS:
        return None
    if not header.get("SeriesInstanceUID"):
        raise Refused(
            f"{path} names no series (cut short?): export it again or remove it", "missing attribute", str(path)
        )
    return str(header.SeriesInstanceUID)
