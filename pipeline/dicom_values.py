"""The values of DICOM elements as plain texts and numbers, and what only pydicom can read."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pydicom import Dataset, config, dcmread
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword

from pipeline.dicom_bytes import Damaged

NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
"""Binary value representations and their struct codes."""

UNREADABLE = (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, TypeError, ValueError)
"""What pydicom raises at a file that it cannot take; its own errors are of these kinds."""

Wanted = dict[int, tuple[str, str]]
"""Tag -> keyword and value representation."""

CHARSET = 0x00080005
"""The element with the character set of the texts."""


@lru_cache(maxsize=16)
def wanted_of(keywords: tuple[str, ...]) -> Wanted:
    """What to look for in a file, by DICOM keywords."""
    tags = {keyword: tag_for_keyword(keyword) for keyword in keywords}
    return {tag: (keyword, dictionary_VR(tag)[:2]) for keyword, tag in tags.items() if tag is not None}


def values_of(raw: dict[int, bytes], wanted: Wanted) -> dict[str, Any]:
    """Raw values decoded; empty ones are left out."""
    charset = raw.get(CHARSET, b"")
    decoded = ((*wanted[tag], value) for tag, value in raw.items())
    values = {keyword: _decoded(vr, value, charset) for keyword, vr, value in decoded}
    return {keyword: value for keyword, value in values.items() if value is not None}


@lru_cache(maxsize=8192)  # most values are the same in all slices of a series: decoded, kept and sent once
def _decoded(vr: str, raw: bytes, charset: bytes) -> Any:
    """A value as text, number or a tuple of them; None where it is empty."""
    if code := NUMBERS.get(vr):
        width = struct.calcsize(code)
        values: list[Any] = [number for (number,) in struct.iter_unpack(f"<{code}", raw[: len(raw) // width * width])]
    else:
        text = _text(raw, charset).rstrip("\0 ")
        values = [text] if vr in ("LT", "ST", "UT") else [piece.strip(" ") for piece in text.split("\\")]
        values = values if any(values) else []
        if vr in ("DS", "IS"):
            values = [_number(vr, piece) for piece in values]
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def _number(vr: str, text: str) -> float | int | str:
    """A decimal string; what is no finite number stays a text, to be refused where the number is needed."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if vr == "IS" and number == int(number) else number


def _text(raw: bytes, charset: bytes) -> str:
    """Text in the file's character set; almost all of it is ASCII."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    with _quiet():
        return decode_bytes(raw, convert_encodings(charset.decode("ascii", "replace").strip("\0 ").split("\\")), {0x5C})


@contextmanager
def _quiet() -> Iterator[None]:
    """Let pydicom neither check nor quote values: they may be a patient's."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def by_pydicom(path: str, wanted: Wanted) -> dict[str, Any]:
    """The values of a big-endian or deflated file."""
    keywords = [keyword for keyword, _ in wanted.values()]
    try:
        with _quiet():
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=keywords)
            both = {keyword: dataset.get(keyword, dataset.file_meta.get(keyword)) for keyword in keywords}
            values = {keyword: _as_walked(value) for keyword, value in both.items() if value is not None}
    except UNREADABLE as error:
        raise Damaged(type(error).__name__) from None
    return {keyword: value for keyword, value in values.items() if value not in ("", ())}


def _as_walked(value: Any) -> Any:
    """A value of pydicom's as the walk would have decoded it."""
    if isinstance(value, str):
        return str(value).strip(" ")
    if isinstance(value, Iterable):
        return tuple(_as_walked(single) for single in value)
    return int(value) if isinstance(value, int) else float(value)


def segmentation(path: str) -> dict[str, Any]:
    """What a SEG segments, and the series (else the instances) that it was drawn on."""
    try:
        with _quiet():
            names = ["ReferencedSeriesSequence", "SegmentSequence", "SegmentationType"]
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=names)
            series = dataset.get("ReferencedSeriesSequence", ())
            instances = {uid for item in series for uid in _referenced(item)}
            if not instances:
                instances = set(_referenced(dcmread(path, stop_before_pixels=True)))
            segments = tuple((int(s.SegmentNumber), str(s.SegmentLabel)) for s in dataset.get("SegmentSequence", ()))
    except UNREADABLE as error:
        raise Damaged(f"its sequences cannot be read, {type(error).__name__}") from None
    return {
        "ReferencedSeries": tuple(str(item.get("SeriesInstanceUID", "")) for item in series),
        "ReferencedInstances": tuple(sorted(instances)),
        "Segments": segments,
        "SegmentLabel": tuple(label for _, label in segments),
        "SegmentationType": str(dataset.get("SegmentationType", "")),
    }


def _referenced(dataset: Dataset) -> Iterator[str]:
    """Every ReferencedSOPInstanceUID at any depth."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _referenced(item)
        elif element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)
