"""The single cases of an evaluation for a report: pictures with their words, tables from the worst to the best."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate import INSTANCES, NETWORK, OVERLAY, SURFACES, WORST
from pipeline.metrics import FN, FP, TP
from pipeline.patient_table import EMPTY
from pipeline.report_words import NONE, Table, counted, figure, listed, percent, things

COLOURS = "blue with stripes is what was missed, orange what was added"
"""What the colours of a picture mean."""

SHEETS = {
    "worst_separation.png": "The section whose cells are kept apart worst: image, cells of the reference, cells found, "
    "and the mistakes (blue cut off, orange joined)",
    "worst_instances.png": "The image whose objects are found worst: image, objects of the reference, objects found, "
    "and the mistakes (blue lost, orange new, purple joined)",
    "worst_surfaces.png": "The case whose outlines lie farthest apart: image, outlines of both, and the mistakes "
    f"({COLOURS}, purple another class)",
}
"""Pictures that scorers make, and what they show."""

MANY_SILENT = 20
"""Cases with nothing in reference and prediction that are no longer listed one by one: they have no figures."""

RANKS = ("worst", "median", "best")
"""The order in which pictures stand."""


@dataclass(frozen=True)
class Picture:
    """A picture with its words: `alt` tells what is to be seen to somebody who does not see it."""

    title: str
    source: str
    alt: str
    captions: Sequence[str]


def by_dice(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cases, the worst first: by Dice with empty references as 1 or 0, then by wrong pixels.

    It is the order in which the evaluation chooses its pictures.
    """
    return sorted(evaluation["cases"], key=lambda case: (mean_dice(case), -case[NETWORK]["pixel_error"]))


def mean_dice(case: Mapping[str, Any]) -> float:
    """Mean over the classes, an empty reference as 1 or 0."""
    values = list(case[NETWORK]["dice_empty_scored"].values())
    return float(sum(values) / len(values))


def pictures(evaluation: Mapping[str, Any], files: Mapping[str, bytes]) -> list[Picture]:
    """The worst cases first, then median and best; of an older evaluation the sheet of the worst.

    Args:
        evaluation: its table.
        files: of its run, by name.
    """
    cases = {case["id"]: case for case in evaluation["cases"]}
    shown = [
        Picture(
            f"{str(entry['rank']).capitalize()}: {entry['case']}",
            _source(files[entry["file"]]),
            f"Case {entry['case']}: image, outlines of reference and prediction, and their difference. {told}",
            (told, f"In the picture {COLOURS}."),
        )
        for entry in sorted(evaluation.get("pictures") or [], key=_rank)
        if entry.get("file") in files and entry.get("case") in cases
        for told in [in_words(cases[entry["case"]], evaluation)]
    ]
    return [*(shown or _sheet(evaluation, files)), *_scorers_sheets(files)]


def in_words(case: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What is to be seen of a case, in words and figures."""
    scores, pixel = case[NETWORK], things(evaluation)[1]
    named = enumerate(evaluation["classes"][1:], start=1)
    return " ".join(_class_in_words(scores, index, name, pixel) for index, name in named)


def case_table(evaluation: Mapping[str, Any]) -> Table:
    """Every case, the worst first."""
    named = evaluation["classes"][1:]
    several = any(case["patient"] != case["id"] for case in evaluation["cases"])
    extra, pixel = _extra_columns(evaluation), things(evaluation)[1]
    silent = {case["id"] for case in evaluation["cases"] if not any(map(any, _foreground(case[NETWORK])))}
    head = [
        "Case",
        *([evaluation["unit"].capitalize()] if several else []),
        *(f"Dice {name}" for name in named),
        "Missed",
        "Added",
        f"Wrong {pixel}s",
        *extra,
    ]
    rows = [
        [
            case["id"],
            *([case["patient"]] if several else []),
            *(_dice(case[NETWORK], index, name) for index, name in enumerate(named, start=1)),
            *_missed_and_added(case[NETWORK]["counts"]),
            percent(case[NETWORK]["pixel_error"]),
            *(values.get(case["id"], NONE) for values in extra.values()),
        ]
        for case in by_dice(evaluation)
        if len(silent) < MANY_SILENT or case["id"] not in silent
    ]
    note = (
        f"Missed: share of the reference's {pixel}s that were not marked, all classes together. Added: {pixel}s marked "
        f"outside it, in per cent of the reference's {pixel}s. Absent: the reference lacks the class."
    )
    notes = [note]
    if len(silent) >= MANY_SILENT:
        notes.append(f"{counted(len(silent), 'case')} without any class, on which nothing was marked, are not listed.")
    return Table("Every case, the lowest Dice first", head, rows, notes, text_columns=1 + several)


def patient_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Every patient, the worst first; None where each has one case."""
    unit, named = evaluation["unit"], evaluation["classes"][1:]
    image, pixel = things(evaluation)
    if len(evaluation["patients"]) == len(evaluation["cases"]):
        return None
    rows = [
        [
            row["patient"],
            f"{row['cases']:,}",
            *(figure(row[NETWORK]["dice"][name]) for name in named),
            *(figure(row[NETWORK]["iou"][name]) for name in named),
            percent(row[NETWORK]["pixel_error"]),
            f"{sum(wrong['cases_with_any'] for wrong in row[NETWORK][EMPTY].values()):,}",
        ]
        for row in sorted(evaluation["patients"], key=mean_dice)
    ]
    head = [
        unit.capitalize(),
        f"{image.capitalize()}s",
        *(f"Dice {name}" for name in named),
        *(f"IoU {name}" for name in named),
        f"Wrong {pixel}s",
        "False alarms",
    ]
    note = (
        f"All {image}s of one {unit} are taken together. False alarms: {image}s without a class on which it was marked."
    )
    return Table(f"Every {unit}, the lowest Dice first", head, rows, (note,))


def _class_in_words(scores: Mapping[str, Any], index: int, name: str, pixel: str) -> str:
    tp, fp, fn = (scores["counts"][index][column] for column in (TP, FP, FN))
    size = tp + fn
    if size == 0:
        marked = f"{counted(fp, pixel)} were marked" if fp else "nothing was marked"
        return f"The reference has no {name}; {marked}."
    return (
        f"Dice of {name} {figure(scores['dice'][name])}: of {size:,} {pixel}s in the reference {percent(fn / size, 1)} "
        f"were missed; {counted(fp, pixel)} were added, {percent(fp / size, 1)} of its size."
    )


def _dice(scores: Mapping[str, Any], index: int, name: str) -> str:
    if scores["dice"][name] is not None:
        return figure(scores["dice"][name])
    added = scores["counts"][index][FP]
    return f"absent, {added:,} marked" if added else "absent, none marked"


def _foreground(scores: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """Counts of every class but the background."""
    counts: Sequence[Sequence[int]] = scores["counts"]
    return counts[1:]


def _missed_and_added(counts: Sequence[Sequence[int]]) -> list[str]:
    foreground = counts[1:]
    size = sum(row[TP] + row[FN] for row in foreground)
    return [percent(sum(row[column] for row in foreground) / size, 1) if size else NONE for column in (FN, FP)]


def _extra_columns(evaluation: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Scores of surfaces and objects: title -> case -> value."""
    found: dict[str, dict[str, str]] = {}
    surfaces = evaluation.get(SURFACES, {"classes": ()})
    for name in surfaces["classes"]:
        title = f"HD95 {name}, {surfaces['distances_in']}"
        found[title] = {case["id"]: figure(case["hd95"][name], 1) for case in surfaces["cases"]}
    if objects := evaluation.get(INSTANCES):
        found["AJI"] = {case["id"]: figure(case["aji"]) for case in objects["cases"]}
    return found


def _sheet(evaluation: Mapping[str, Any], files: Mapping[str, bytes]) -> Iterator[Picture]:
    """The one picture of an older evaluation, with the cases that it must show by its own rule."""
    if OVERLAY not in files:
        return
    cases = by_dice(evaluation)[:WORST]
    told = [f"{case['id']}: {in_words(case, evaluation)}" for case in cases]
    names = listed([case["id"] for case in cases])
    yield Picture(
        f"The {counted(len(cases), 'case')} with the lowest Dice",
        _source(files[OVERLAY]),
        f"From above, {names}: image, outlines of reference and prediction, and their difference. {' '.join(told)}",
        ("From above:", *told, f"In the right column {COLOURS}."),
    )


def _scorers_sheets(files: Mapping[str, bytes]) -> Iterator[Picture]:
    for name, told in SHEETS.items():
        if name in files:
            yield Picture(told.partition(":")[0], _source(files[name]), f"{told}.", (f"{told}.",))


def _rank(entry: Mapping[str, Any]) -> tuple[int, str]:
    kind = str(entry.get("rank", "")).split(" ")[0]
    return RANKS.index(kind) if kind in RANKS else len(RANKS), str(entry.get("rank"))


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
