"""What there is to predict in a file or a folder, and where each answer goes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai.utils import CommonKeys

from pipeline import studies
from pipeline.certificate import certificate_path
from pipeline.dicom_files import is_dicom
from pipeline.errors import InputError
from pipeline.labels import JPEG_SUFFIXES
from pipeline.pictures import IMAGE_SUFFIXES, is_image
from pipeline.progress import Progress, silent
from pipeline.volumes import VOLUME_SUFFIXES, is_volume
from pipeline.volumes import stem as volume_stem

OUTPUT_FORMATS = {"seg": ".dcm", "labelmap": ".dcm", "nifti": ".nii.gz"}
"""How DICOM input may be answered, and the suffix of the answer; `seg` and `labelmap` are both DICOM SEG."""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Endings that are no part of a DICOM file's name; many such files are called by a UID, whose dots are."""

ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Formats of a header and a file of voxels -> the same format in one file."""

PLANNING = ("localizer", "secondary capture")
"""Rules by which a series is left aside without anything being wrong: most studies hold one that is no case."""

SHORTEST_TAIL = 4
"""Digits of a series' UID that tell it from the others of its folder, if they do."""


@dataclass(frozen=True)
class Job:
    """One case and the file that its label map goes to.

    Attributes:
        source: the image file, the folder of a DICOM series, or the folder above its several series.
        target: the file to write.
        kind: of the source: `picture` (TIFF, PNG, JPEG), `volume` (NIfTI, NRRD, MetaImage), DICOM `series` or
            `projection` (a single DICOM image).
        item: what `LoadCased` takes, without the page.
    """

    source: Path
    target: Path
    kind: Literal["picture", "volume", "series", "projection"]
    item: Mapping[Any, Any]


@dataclass(frozen=True)
class Found:
    """The jobs, and what of a DICOM tree makes none, each a sentence with its rule: refused, or aside by nature."""

    jobs: tuple[Job, ...]
    refused: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()


def find_jobs(
    source: Path,
    output_dir: Path,
    match: str | None = None,
    *,
    channels: Mapping[str, Any] | None = None,
    output_format: str = "seg",
    progress: Progress = silent,
) -> Found:
    """What there is to predict, and where each label map goes.

    Args:
        source: an image file, or a folder of files and DICOM series of any nesting.
        output_dir: where label maps go, under the names of their sources.
        match: glob that the files of a folder must match, say `*/image.tif`; DICOM is not looked for then.
        channels: which series of a study is which channel, as in a recipe's `dicom: {channels: ...}`.
        output_format: of `OUTPUT_FORMATS`.
        progress: told about the headers that are read.

    Raises:
        InputError: there is nothing, or a label map would overwrite its source, or two would have one name.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    refused: list[studies.Refusal] = []
    if source.is_file():
        jobs = [_file_job(source, Path(source.name), output_dir, output_format)]
    else:
        jobs = [
            _file_job(path, path.relative_to(source), output_dir, output_format)
            for path in _files(source, output_dir, match)
        ]
        if match is None:
            tree = studies.find(source, studies.channel_rules(channels), progress)
            cases = [case for case in tree.cases if not _inside(source / case.images[0], output_dir, source)]
            jobs = [*_dicom_jobs(cases, source, output_dir, OUTPUT_FORMATS[output_format]), *jobs]
            refused = list(tree.refused)
    if not jobs and not refused:
        kinds = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
        raise InputError(f"{source}: nothing to predict; it holds no {kinds} file that matches and no DICOM image")
    _check(jobs, source)
    told = {refusal: f"{refusal.message} ({refusal.rule})" for refusal in refused}
    aside = tuple(said for refusal, said in told.items() if refusal.rule in PLANNING)
    return Found(tuple(jobs), tuple(said for said in told.values() if said not in aside), aside)


def stem(path: Path) -> str:
    """A file's name without what tells its format: `a.nii.gz`, `a.dcm` and `a.tif` are `a`."""
    return volume_stem(path) if is_volume(path) else path.stem


def beside(target: Path, ending: str) -> Path:
    """Another file of the same answer: `a.tif` and `_probabilities.tif` are `a_probabilities.tif`."""
    return target.with_name(stem(target) + ending)


def _file_job(path: Path, name: Path, output_dir: Path, output_format: str) -> Job:
    """The job of a file; `name` is where it lies in the folder that was given."""
    item = {CommonKeys.IMAGE: str(path)}
    if is_volume(path):
        suffix = path.name[len(volume_stem(path)) :]
        target = name.with_name(volume_stem(path) + ONE_FILE.get(suffix.lower(), suffix))
        return Job(path, output_dir / target, "volume", item)
    if not is_image(path) and is_dicom(path):
        return Job(path, output_dir / _renamed(name, OUTPUT_FORMATS[output_format]), "projection", item)
    # A JPEG would change the values of a label map.
    target = name.with_suffix(".png") if name.suffix.lower() in JPEG_SUFFIXES else name
    return Job(path, output_dir / target, "picture", item)


def _files(folder: Path, output_dir: Path, match: str | None) -> Iterator[Path]:
    """Image files and volumes below a folder."""
    for path in sorted(folder.rglob("*")):
        known = (is_image(path) or is_volume(path)) and path.is_file()
        wanted = match is None or path.relative_to(folder).match(match)
        if known and wanted and not _inside(path, output_dir, folder):
            yield path


def _inside(path: Path, output_dir: Path, folder: Path) -> bool:
    """Whether something is an answer of an earlier run: it lies in the output folder, which is not the input folder."""
    earlier = output_dir.resolve()
    return earlier != folder.resolve() and earlier in (path.resolve(), *path.resolve().parents)


def _dicom_jobs(cases: Sequence[studies.DicomCase], root: Path, output_dir: Path, suffix: str) -> Iterator[Job]:
    """Jobs named by the folder of their series; where several share one, the end of a UID tells them apart."""
    names = [_name(case, root, suffix) for case in cases]
    shared = {name for name, count in Counter(names).items() if count > 1}
    for case, name in zip(cases, names, strict=True):
        namesakes = [_digits(other) for other, theirs in zip(cases, names, strict=True) if theirs == name]
        target = name.with_name(f"{name.name.removesuffix(suffix)}_{_tail(_digits(case), namesakes)}{suffix}")
        yield _dicom_job(case, root, output_dir / (target if name in shared else name))


def _dicom_job(case: studies.DicomCase, root: Path, target: Path) -> Job:
    item = {
        CommonKeys.IMAGE: [str(root / image) for image in case.images],
        "series": list(case.series),
        "resampled": list(case.resampled),
    }
    if case.series[0] is None:
        return Job(root / case.images[0], target, "projection", {CommonKeys.IMAGE: str(root / case.images[0])})
    return Job(root / os.path.commonpath(case.images), target, "series", item)


def _name(case: studies.DicomCase, root: Path, suffix: str) -> Path:
    """The place of a case's answer in the output folder, by the folder of its series or by its one file."""
    home = Path(os.path.commonpath(case.images))
    if case.series[0] is None:
        return _renamed(home, suffix)
    return home.parent / f"{(root / home).resolve().name}{suffix}"


def _renamed(name: Path, suffix: str) -> Path:
    stem = name.stem if name.suffix.lower() in DICOM_SUFFIXES else name.name
    return name.with_name(stem + suffix)


def _digits(case: studies.DicomCase) -> str:
    return re.sub(r"\D", "", f"{case.study}{case.series[0]}")


def _tail(digits: str, others: Sequence[str]) -> str:
    """The end of a number that no other one has, the same length for all."""
    for length in range(SHORTEST_TAIL, max(map(len, others))):
        if len({other[-length:] for other in others}) == len(others):
            return digits[-length:]
    return digits


def _check(jobs: Sequence[Job], source: Path) -> None:
    inputs = {job.source.resolve() for job in jobs}
    whole = source.resolve()
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() in inputs:
            raise InputError(f"{job.target}: a label map would overwrite this image; choose another output folder")
        among_input = whole in job.target.resolve().parents and job.kind in ("series", "projection")
        if among_input and job.target.exists() and not certificate_path(job.target).exists():
            raise InputError(
                f"{job.target}: is among the input and no earlier answer, and would be overwritten; choose another "
                "output folder"
            )
        other = taken.setdefault(job.target.with_name(stem(job.target)), job.source)
        if other != job.source:
            raise InputError(f"{other} and {job.source}: their label maps would have one name; rename one of them")
