"""The references of a DICOM tree's cases: DICOM SEG objects that were drawn on a series, or masks beside the tree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import parse

from pipeline.certificate import certificate_path
from pipeline.channel_rules import Rule, fits
from pipeline.errors import InputError
from pipeline.headers import Header, Refusal, below, called
from pipeline.pictures import is_image
from pipeline.recipe import composed
from pipeline.studies import DicomCase, Tree
from pipeline.volumes import is_volume

FIELDS = ("patient", "study", "series")
"""What the pattern of masks may name: PatientID, StudyInstanceUID and SeriesInstanceUID."""

ANSWER = "answer of a model, as the certificate beside it says"
SPARE = "segmentation of no case"
"""What a DICOM SEG is that is passed over, since it was drawn on no usable series or the rule does not fit it."""

FRACTIONAL = "FRACTIONAL"
"""The SegmentationType of a SEG that holds probabilities and no label map."""


def with_segmentations(tree: Tree, root: Path, rule: Rule | None = None) -> Tree:
    """Give every case the DICOM SEG that was drawn on its first channel.

    What a model answered (`pipeline.certificate` lies beside it) is no reference. A SEG names the series
    (ReferencedSeriesSequence), else the instances that it was drawn on. A case that two SEGs are of is refused, unless
    the rule fits one of them alone, and so is one whose SEG is no label map.

    Args:
        tree: from `studies.find`.
        root: its folder.
        rule: over the attributes of the SEGs; those that it does not fit do not count.
    """
    by_series: dict[str, list[Header]] = defaultdict(list)
    by_instance: dict[str, list[Header]] = defaultdict(list)
    answers = {seg.filename for seg in tree.segmentations if certificate_path(Path(seg.filename)).exists()}
    for seg in tree.segmentations:
        if seg.filename not in answers and (rule is None or fits(rule, [seg])):
            for uid in seg.get("ReferencedSeries", ()):
                by_series[uid].append(seg)
            for uid in seg.get("ReferencedInstances", ()):
                by_instance[uid].append(seg)
    cases, refused = [], list(tree.refused)
    used: set[str] = set()
    for case in tree.cases:
        drawn = list(by_series.get(case.series[0] or "", ()))
        for header in () if drawn else case.headers[0]:
            drawn += by_instance.get(header.values["SOPInstanceUID"], ())
        segs = {seg.filename: seg for seg in drawn}  # one that references every slice stands there as often
        used.update(segs)
        found = _one(case, list(segs.values()), root)
        if isinstance(found, Refusal):
            refused.append(found)
        else:
            cases.append(found)
    spare = [below(seg.filename, root) for seg in tree.segmentations if seg.filename not in used | answers]
    made = sorted(below(name, root) for name in answers)
    passed = tree.passed | ({SPARE: spare} if spare else {}) | ({ANSWER: made} if made else {})
    return replace(tree, cases=cases, refused=refused, passed=passed)


def _one(case: DicomCase, segs: Sequence[Header], root: Path) -> DicomCase | Refusal:
    """The case with its only SEG, or why it cannot be used."""
    if not segs:
        return case
    file, names = below(segs[0].filename, root), [below(seg.filename, root) for seg in segs]
    if len(segs) > 1:
        said = f"{' and '.join(names)} were both drawn on it: choose one by `reference` in the recipe's `dicom`"
        return _refused("several segmentations", case, file, said if len(segs) == 2 else said.replace("both", "all"))
    if segs[0].get("SegmentationType") == FRACTIONAL:
        return _refused("fractional segmentation", case, file, f"{file} holds probabilities: save it as label map")
    return replace(case, reference=file)


def _refused(rule: str, case: DicomCase, file: str, said: str) -> Refusal:
    return Refusal(rule, file, f"{called(case.images[0])}: {said}", case.series[0] or "", case.study, case.patient)


def with_masks(tree: Tree, root: Path, pattern: str) -> Tree:
    """Give every case the mask whose path has its patient, study or series; a case without one is refused.

    Args:
        tree: from `studies.find`.
        root: its folder, under which the masks lie.
        pattern: relative to the folder, with `{patient}`, `{study}` and `{series}`, as in `masks/{patient}.nii.gz`.

    Raises:
        InputError: the pattern has another field, or no file matches it.
    """
    masks = _masks(root, pattern)
    cases, refused = [], list(tree.refused)
    for case in tree.cases:
        known = {"patient": case.patient, "study": case.study, "series": case.headers[0][0].values["SeriesInstanceUID"]}
        fitting = [path for path, named in masks.items() if all(composed(known[f]) == named[f] for f in named)]
        if len(fitting) == 1:
            cases.append(replace(case, reference=fitting[0]))
        elif fitting:
            said = f"{' and '.join(fitting)} are masks of the same {', '.join(masks[fitting[0]])}: remove one"
            refused.append(_refused("several masks", case, fitting[0], said))
        else:
            said = f"no mask: none that matches {pattern!r} has its {' and '.join(next(iter(masks.values())))}"
            refused.append(_refused("no mask", case, case.images[0], said))
    return replace(tree, cases=cases, refused=refused)


def _masks(root: Path, pattern: str) -> dict[str, dict[str, str]]:
    """Path -> what the pattern finds in it."""
    try:
        compiled = parse.compile(composed(pattern), case_sensitive=True)
    except (ValueError, KeyError) as error:
        raise InputError(f"the pattern {pattern!r} cannot be read: {error}") from None
    wrong = set(compiled.named_fields) - set(FIELDS)
    if wrong or compiled.fixed_fields or not compiled.named_fields:
        fields = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise InputError(
            f"the pattern {pattern!r} of the masks beside DICOM images: use {fields}, at least one of them"
        )
    masks = {}
    for path in sorted(root.rglob("*")):
        found = compiled.parse(composed(path.relative_to(root).as_posix()))
        if found and (is_volume(path) or is_image(path)) and not any("/" in value for value in found.named.values()):
            masks[path.relative_to(root).as_posix()] = dict(found.named)
    if not masks:
        raise InputError(f"no mask under {root} matches {pattern!r}")
    return masks
