"""Near-duplicates of a dataset as findings, and as a picture that a person can judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import overlay
from pipeline.atomic import atomic
from pipeline.duplicates import Pair, Sketch, near_duplicates, readers, same_size
from pipeline.leaks import by_section, places
from pipeline.manifest import Case, Finding, Manifest, unit_name
from pipeline.progress import Progress, silent
from pipeline.registration import overlap, resized
from pipeline.seams import seams

RULE = "near-duplicate"
"""How the rules of these findings begin."""

PICTURED = 20
"""Pairs in the picture, those that correlate most."""

PANEL = 256
"""Longer side of one image in the picture, in pixels."""

CAPTION = 40
"""Letters of a case id that fit above it."""

FLIPPED = {(1, 1): "", (-1, 1): "upside down", (1, -1): "mirrored", (-1, -1): "turned by 180 degrees"}
"""How a copy lies, by its flip."""


def lookalikes(
    manifest: Manifest,
    root: Path,
    sketches: Mapping[str, Sketch | None],
    picture: Path | None,
    progress: Progress = silent,
) -> list[Finding]:
    """Near-duplicates of two patients: leaks where they are in two partitions or folds, else one patient twice.

    Where no patient is known (a split by cluster or image), tiles that continue each other are told too.

    Args:
        manifest: of the cases.
        root: folder that its paths are relative to.
        sketches: id -> sketch of every case whose images can be read; the others are left out.
        picture: PNG to write the pairs to, under their case ids; it stays at the site. None writes none.
        progress: told about images and pairs.
    """
    home = {case.id: name for name, case in manifest.assigned()}
    cases = [case for _, case in manifest.cases() if case.id in sketches]
    if by_section(manifest):  # sections between two partitions are in none, and are not used
        cases = [case for case in cases if case.id in home]
    images = readers(cases, root)
    groups = [(case.patient, home[case.id] if by_section(manifest) else "") for case in cases]
    known = [sketches[case.id] for case in cases]
    search = near_duplicates(images, sketches=known, groups=groups, progress=progress)
    pairs = [pair for pair in search.pairs if not _told(home, cases[pair.first], cases[pair.second])]
    findings = [_finding(manifest, home, cases[pair.first], cases[pair.second], pair) for pair in pairs]
    if search.blank:
        message = f"{len(search.blank)} images show one value or are not finite: not compared with others"
        findings.append(Finding("warning", "not compared", cases[search.blank[0]].id, message))
    if unit_name(manifest) != "patient":
        findings += _adjoining(manifest, home, cases, root, progress)
    if picture and pairs:
        rows = [_row(pair, cases, root) for pair in pairs[:PICTURED]]
        with atomic(picture) as temporary:
            Image.fromarray(overlay.stack_rows(rows)).save(temporary, format="PNG")
    return findings


def _told(home: dict[str, str], first: Case, second: Case) -> bool:
    """Whether `pipeline.leaks` tells of the pair: equal pixels, both in use."""
    return first.pixels is not None and first.pixels == second.pixels and first.id in home and second.id in home


def _finding(manifest: Manifest, home: dict[str, str], first: Case, second: Case, pair: Pair) -> Finding:
    (correlation, _, (down, right), flip), unit = pair.registration, unit_name(manifest)
    how = [word for word in (FLIPPED[flip], f"moved by {down}, {right} pixels" if down or right else "") if word]
    alike = f"correlate by {correlation:.4f}" + (f" ({' and '.join(how)})" if how else "")
    names = [home.get(case.id) for case in (first, second)]
    if None not in names and names[0] != names[1]:
        message = f"{first.id} in {names[0]} and {second.id} in {names[1]} {alike}"
        return Finding("warning", f"{RULE} in two {places(manifest)}", second.id, message)
    message = f"{first.id} and {second.id} {alike}: {unit}s {first.patient} and {second.patient} may be one"
    return Finding("warning", RULE, second.id, message)


def _adjoining(
    manifest: Manifest, home: dict[str, str], cases: Sequence[Case], root: Path, progress: Progress
) -> Iterator[Finding]:
    for seam in seams(readers(cases, root), progress=progress):
        first, second = cases[seam.first], cases[seam.second]
        names = [home.get(case.id) for case in (first, second)]
        if None not in names and names[0] != names[1]:
            where = "to the right of" if seam.side == "right" else "below"
            message = (
                f"{second.id} in {names[1]} lies {where} {first.id} in {names[0]}: tiles of one picture, by borders "
                f"that agree by {seam.concordance:.3f}; `overtile split --by cluster` keeps them together"
            )
            yield Finding("warning", f"adjoining images in two {places(manifest)}", second.id, message)


def _row(pair: Pair, cases: Sequence[Case], root: Path) -> np.ndarray:
    """The first image, the second laid on it, and how far they differ where both are; (H, W, 3) uint8."""
    read = readers([cases[pair.first], cases[pair.second]], root)
    first, second = same_size(read[0](), read[1]())
    registration = pair.registration
    ours, theirs = overlap(first, second, registration.shift, registration.flip)
    slope, offset = np.polyfit(theirs.ravel(), ours.ravel(), 1)
    laid, difference = np.full(first.shape, first.min()), np.zeros(first.shape, np.float32)
    place, _ = overlap(laid, laid, registration.shift, (1, 1))  # a view: filled below
    place[:] = slope * theirs + offset
    overlap(difference, difference, registration.shift, (1, 1))[0][:] = np.abs(place - ours) / np.ptp(first)
    shape = tuple(max(1, round(length * PANEL / max(first.shape))) for length in first.shape)
    shown = [resized(image, (shape[0], shape[1]))[None] for image in (first, laid, difference)]
    far = np.repeat((np.clip(shown[2][0], 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
    captions = [_short(cases[number].id) for number in (pair.first, pair.second)]
    title = f"difference, correlation {registration.correlation:.4f}"
    return overlay.panels([(captions[0], overlay.grey(shown[0])), (captions[1], overlay.grey(shown[1])), (title, far)])


def _short(case: str) -> str:
    return case if len(case) <= CAPTION else case[: CAPTION - 3] + "..."
