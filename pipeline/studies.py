"""A tree of DICOM files as studies: which series are volumes, which are channels of one case, and which are refused.

Patients and studies stand here under the identifiers of their headers; whoever writes something replaces them.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import regular
from pipeline.channel_rules import Channels, channel_rules
from pipeline.headers import Header, Refusal, below, called, is_segmentation, scan
from pipeline.progress import Progress, silent
from pipeline.study_channels import Unit, assigned

__all__ = ["Channels", "DicomCase", "Refusal", "Tree", "channel_rules", "find"]

PROJECTIONS = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "12.1", "12.2")
)
"""SOP classes of single images: CR, digital X-ray, mammography and intra-oral (for presentation and for processing),
angiography and fluoroscopy."""

CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""How the SOP classes of secondary captures begin: screens and scanned paper, whose values mean nothing."""

SCOUT = re.compile(r"\b(scout|locali[sz]er|topogram|scanogram)", re.IGNORECASE)
"""What series are called that are for planning alone, where ImageType does not say LOCALIZER."""


@dataclass(frozen=True)
class DicomCase:
    """One case: the series, or single images, that are its channels.

    Attributes:
        patient: PatientID, empty where the headers have none.
        study: StudyInstanceUID.
        images: path of each channel, relative to the tree: the innermost folder that holds all files of the series,
            or the file of a single image.
        series: SeriesInstanceUID of each channel, None for a single image.
        resampled: numbers of the channels, from 1, that lie on another grid than channel 0.
        reference: path of the reference, relative to the tree.
        headers: of each channel, in the order of its slices.
    """

    patient: str
    study: str
    images: tuple[str, ...]
    series: tuple[str | None, ...]
    resampled: tuple[int, ...] = ()
    reference: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[tuple[Header, ...], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Tree:
    """What a tree holds.

    Attributes:
        cases: in the order of their first files.
        refused: what is not used, and why.
        passed: what a file is that is no image -> the files, relative to the tree.
        segmentations: headers of the DICOM SEGs.
        series: how many series of images there are, used or not.
    """

    cases: list[DicomCase]
    refused: list[Refusal]
    passed: dict[str, list[str]]
    segmentations: list[Header]
    series: int


@dataclass
class _Study:
    """The usable series of one study, and the folders of all of its series."""

    units: list[Unit] = field(default_factory=list)
    homes: list[str] = field(default_factory=list)


def find(
    root: Path,
    rules: Channels | None = None,
    progress: Progress = silent,
    *,
    keywords: Sequence[str] = (),
) -> Tree:
    """Group the files of a tree to cases, and say of everything else why it is none.

    A series is what has one SeriesInstanceUID, in however many folders; two series of one folder are two. A damaged
    file makes its series unusable, since a volume without its last slice looks whole; one that does not say its series
    counts to the only series of its folder.

    Args:
        root: folder of any nesting.
        rules: which series of a study is which channel; None makes every series, or single image, a case by itself.
        progress: told about every file.
        keywords: DICOM keywords to read besides those that are needed here.

    Raises:
        InputError: there is no such folder, or a rule names no DICOM keyword.
    """
    asked = {keyword for rule in (rules or {}).values() for keyword in rule.attributes}
    found = scan(root, sorted(asked.union(keywords)), progress)
    series: dict[str, list[Header]] = defaultdict(list)
    for header in found.headers:
        if not is_segmentation(header):
            series[header.values["SeriesInstanceUID"]].append(header)
    refused, faulty = _with_series(found.refused, series, root)
    refused += (mixed := _mixed(series, root))
    faulty |= {refusal.series for refusal in mixed}
    studies: dict[tuple[str, str], _Study] = defaultdict(_Study)
    for uid, headers in series.items():
        study = studies[str(headers[0].get("PatientID", "")), headers[0].values["StudyInstanceUID"]]
        study.homes.append(_home(headers, root))
        study.units += [] if uid in faulty else _units(uid, headers, root, refused)
    cases: list[DicomCase] = []
    for (patient, uid), study in studies.items():
        chosen = assigned(study.units, rules) if rules else None
        if isinstance(chosen, Refusal):
            home = os.path.commonpath(study.homes) or "."
            said = f"the study in {called(home)}: {chosen.message}"
            refused.append(replace(chosen, file=home, message=said, patient=patient, study=uid))
            continue
        channels = [chosen] if chosen else [([unit], []) for unit in study.units]
        cases += [_case(patient, uid, *each) for each in channels]
    segmentations = [header for header in found.headers if is_segmentation(header)]
    lost = {refusal.series for refusal in found.refused if refusal.series} - series.keys()
    return Tree(cases, refused, found.passed, segmentations, len(series) + len(lost))


def _case(patient: str, study: str, units: Sequence[Unit], resampled: Sequence[int]) -> DicomCase:
    images, series = tuple(unit.image for unit in units), tuple(unit.series for unit in units)
    return DicomCase(patient, study, images, series, tuple(resampled), headers=tuple(unit.headers for unit in units))


def _home(headers: Sequence[Header], root: Path) -> str:
    """The innermost folder that holds all files, relative to the tree."""
    return os.path.commonpath({_folder(below(header.filename, root)) for header in headers}) or "."


def _folder(path: str) -> str:
    return path.rpartition(os.sep)[0]


def _with_series(
    refused: Sequence[Refusal], series: Mapping[str, Sequence[Header]], root: Path
) -> tuple[list[Refusal], set[str]]:
    """Refused files with the series that they take along, and these series."""
    homes: dict[str, set[str]] = defaultdict(set)
    for uid, headers in series.items():
        for header in headers:
            homes[_folder(below(header.filename, root))].add(uid)
    told = []
    for refusal in refused:
        there = homes[_folder(refusal.file)]
        uid = refusal.series or (next(iter(there)) if len(there) == 1 else "")
        others = len(series.get(uid, ()))
        more = f"; until then the other {others} files of its series are not used" if others else ""
        told.append(replace(refusal, series=uid, message=refusal.message + more))
    return told, {refusal.series for refusal in told}


def _mixed(series: Mapping[str, Sequence[Header]], root: Path) -> list[Refusal]:
    """Series of two patients or studies, and studies of two patients: whose they are is anybody's guess."""
    patients: dict[str, set[str]] = defaultdict(set)
    for headers in series.values():
        for header in headers:
            patients[header.values["StudyInstanceUID"]].add(str(header.get("PatientID", "")))
    refused = []
    for uid, headers in series.items():
        studies = {header.values["StudyInstanceUID"] for header in headers}
        home = _home(headers, root)
        if len(studies) > 1:
            said = f"{called(home)}: the files of one series name {len(studies)} studies: export it again"
            refused.append(Refusal("two studies", below(headers[0].filename, root), said, uid))
        elif len(patients[min(studies)]) > 1:
            count = len(patients[min(studies)])
            said = f"{called(home)}: the files of its study name {count} patients: correct their PatientID"
            refused.append(Refusal("two patients", below(headers[0].filename, root), said, uid))
    return refused


def _units(uid: str, headers: list[Header], root: Path, refused: list[Refusal]) -> list[Unit]:
    """A series as a volume, or as single images; what is neither is put to the refused."""
    secondary = _secondary(headers)
    home, first = _home(headers, root), below(headers[0].filename, root)
    if secondary:
        rule, said = secondary
        refused.append(Refusal(rule, first, f"{called(home)}: {said}", uid))
        return []
    if all(_kind(header) in PROJECTIONS for header in headers):
        single = [header for header in headers if header.get("NumberOfFrames", 1) == 1]
        for header in headers:
            if header not in single:
                said = f"{below(header.filename, root)} is multi-frame: export its frames as single images"
                refused.append(Refusal("multi-frame", below(header.filename, root), said, uid))
        return [Unit(below(header.filename, root), None, (header,)) for header in single]
    try:
        return [Unit(home, uid, tuple(regular.in_order(headers, called(home))))]
    except regular.Refused as error:
        file = below(error.file, root) if error.file else first
        refused.append(Refusal(error.rule, file, str(error), uid))
        return []


def _kind(header: Header) -> str:
    return str(header.get("SOPClassUID") or header.get("MediaStorageSOPClassUID", ""))


def _secondary(headers: Sequence[Header]) -> tuple[str, str] | None:
    """Rule and sentence for a series that was not acquired to be looked at as a volume."""
    if all(_kind(header).startswith(CAPTURES) for header in headers):
        return "secondary capture", "is a secondary capture (a screen, a scan of paper), whose values mean nothing"
    if all("LOCALIZER" in _image_type(header) for header in headers):
        return "localizer", "is a localizer by its ImageType, made to plan other series"
    if any("SCREEN SAVE" in _image_type(header) for header in headers):
        return "secondary capture", "is a screen capture by its ImageType, whose values mean nothing"
    described = str(headers[0].get("SeriesDescription", ""))
    if SCOUT.search(described):
        return "localizer", f"is a localizer by its description {described!r}, made to plan other series"
    return None


def _image_type(header: Header) -> tuple[str, ...]:
    value = header.get("ImageType", ())
    return tuple(part.upper() for part in ((value,) if isinstance(value, str) else value))
