"""What a segmentation says of its classes and of who drew it, in clinical codes: read from a bundle's metadata."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError

logger = logging.getLogger("pipeline.terms")

LONGEST = (16, 16, 64)
"""Characters that DICOM allows for the scheme, the value and the meaning of a code (SH, SH, LO)."""

LABEL = 64
"""Characters that DICOM allows for the label of a segment and for the name of an algorithm (LO)."""

COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
"""Red, green and blue in hexadecimal digits, as manifests write colours too."""

ENTRIES = ("label", "category", "type", "colour")
"""What may stand under a segment."""


class Code(NamedTuple):
    """A concept of a clinical terminology, say `("SCT", "39607008", "Lung")` of SNOMED CT."""

    scheme: str
    value: str
    meaning: str


TISSUE = Code("SCT", "85756007", "Tissue")
"""Fits a class of which nothing is said; the label then says which it is."""


@dataclass(frozen=True)
class Segment:
    """What a DICOM SEG says of one class: category and type as in CID 7150 and 7151 of DICOM PS3.16."""

    label: str
    category: Code = TISSUE
    type: Code = TISSUE
    colour: str | None = None


@dataclass(frozen=True)
class Release:
    """Which model drew it: name and version of a bundle, and a digest of its weights."""

    name: str
    version: str
    digest: str = ""


def problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the `segments` of a bundle's metadata, in sentences; nothing is looked up.

    They are class number, as text -> `label`, `category` and `type`, both [scheme, value, meaning], and, if one likes,
    `colour` as #rrggbb. A class without an entry is "Tissue".
    """
    segments = metadata.get("segments", {})
    if not isinstance(segments, Mapping):
        yield 'segments: must be class number -> entry, say {"1": {"label": ..., "category": [...], "type": [...]}}'
        return
    for number, entry in segments.items():
        if not (number.isdecimal() and int(number) > 0):
            yield f"segments: {number!r} is no class number; write 1 for the first class after the background"
        elif not isinstance(entry, Mapping):
            yield f"segments {number}: must have label, category and type, got {entry!r}"
        else:
            yield from (f"segments {number}: {problem}" for problem in _problems(entry))


def segments(metadata: Mapping[str, Any], class_names: Sequence[str], where: str) -> list[Segment]:
    """What a SEG says of each class but the background.

    An entry counts only while its class has the name that the metadata gives it: codes of a lung must not reach a class
    that somebody renamed.

    Args:
        metadata: of a bundle.
        class_names: class 0, the background, first.
        where: the file, for a sentence.

    Raises:
        InputError: the metadata's `segments` are wrong.
    """
    for problem in problems(metadata):
        raise InputError(f"{where}: {problem}")
    entries: Mapping[str, Any] = metadata.get("segments", {})
    described = _described_names(metadata)
    found = []
    for number, name in enumerate(class_names[1:], start=1):
        entry = entries.get(str(number))
        if entry is not None and described.get(str(number), name) != name:
            logger.warning("class %d is called %r here, so its codes in the metadata are left out", number, name)
            entry = None
        found.append(_segment(entry) if entry else Segment(name[:LABEL]))
    return found


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a bundle.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    try:
        metadata = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no readable metadata of a bundle ({error})") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: metadata of a bundle is a JSON object")
    return metadata


def release(metadata: Mapping[str, Any], checkpoint: Path | None) -> Release:
    """Name and version of a bundle, and the sha256 of its checkpoint's file."""
    digest = ""
    if checkpoint is not None:
        with checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    name, number = metadata.get("name", "Overtile"), metadata.get("version", version("overtile"))
    return Release(str(name)[:LABEL], str(number)[:LABEL], digest)


def _problems(entry: Mapping[str, Any]) -> Iterator[str]:
    for key in entry:
        if key not in ENTRIES:
            yield f"{key!r} is unknown; there are {', '.join(ENTRIES)}"
    label = entry.get("label")
    if not isinstance(label, str) or not 0 < len(label) <= LABEL:
        yield f"label must be a text of 1 to {LABEL} characters, got {label!r}"
    for key in ("category", "type"):
        if not _is_code(entry.get(key)):
            limits = "at most {}, {} and {} characters".format(*LONGEST)
            example = '["SCT", "39607008", "Lung"]'
            yield f"{key} must be [scheme, value, meaning], of {limits}, say {example}, got {entry.get(key)!r}"
    colour = entry.get("colour")
    if colour is not None and not (isinstance(colour, str) and COLOUR.fullmatch(colour)):
        yield f"colour must be written as #rrggbb, got {colour!r}"


def _is_code(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(LONGEST)
        and all(isinstance(part, str) and 0 < len(part) <= most for part, most in zip(value, LONGEST, strict=True))
    )


def _described_names(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    """The names of the classes in the metadata's own description of the network's output."""
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    names: Mapping[str, str] = outputs.get("pred", {}).get("channel_def", {})
    return names


def _segment(entry: Mapping[str, Any]) -> Segment:
    return Segment(entry["label"], Code(*entry["category"]), Code(*entry["type"]), entry.get("colour"))
