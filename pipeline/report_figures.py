"""The figures of an evaluation as tables for a reader: overlap, empty references, surfaces, volumes, objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.evaluate import BASELINE, INSTANCES, NETWORK, SURFACES
from pipeline.patient_table import EMPTY, VOLUME
from pipeline.report_words import Table, between, counted, figure, percent, plural, signed, significant, things
from pipeline.tables import FEW

METHODS = {NETWORK: "this model", BASELINE: "Otsu's threshold"}
"""What the methods of a table are called."""

OBJECT_SCORES = {
    "aji": "AJI (overlap of objects, counting lost and new ones)",
    "ap_50": "AP at IoU 0.5 (share of objects found)",
    "ap_mean": "AP, mean over IoU 0.5 to 0.95",
}
"""Scores of objects, and what they mean."""

SEPARATION_SCORES = {"v_rand": "V_Rand", "v_info": "V_Info"}


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """All tables of figures that an evaluation has the numbers for."""
    return [table for build in _BUILDERS for table in build(evaluation)]


def method_name(method: str) -> str:
    """What a method of the table is called in words."""
    return METHODS.get(method, method)


def how_far_to_trust(evaluation: Mapping[str, Any]) -> str:
    """What a 95 % interval says, and what it does not."""
    if len(evaluation["patients"]) < 2:
        return few(evaluation)
    return (
        f"A 95 % interval says where the mean would lie for other {plural(evaluation['unit'])} like these. "
        f"{few(evaluation)} It says nothing of another hospital, another scanner or another reader of the images."
    )


def is_few(evaluation: Mapping[str, Any]) -> bool:
    """Whether there are fewer units than an interval needs."""
    return len(evaluation["patients"]) < FEW


def few(evaluation: Mapping[str, Any]) -> str:
    """A sentence about the number of units, and whether that is few."""
    unit, units = evaluation["unit"], len(evaluation["patients"])
    if units < 2:
        return f"{counted(units, unit)} alone cannot say how much others differ, so there is no interval."
    if is_few(evaluation):
        return f"{counted(units, unit)} are few: below about {FEW} such intervals are too narrow."
    return f"With {counted(units, unit)} such intervals may be taken at their word, for others like these."


def _without_method(evaluation: Mapping[str, Any], table: Table, column: int) -> Table:
    """The table without its column of methods, where there is but one."""
    if len(evaluation["summary"]) > 1:
        return table
    rows = [[*row[:column], *row[column + 1 :]] for row in table.rows]
    return replace(table, head=[*table.head[:column], *table.head[column + 1 :]], rows=rows, text_columns=1)


def worst(evaluation: Mapping[str, Any], name: str, method: str = NETWORK) -> tuple[str, float] | None:
    """The unit with the lowest Dice of a class, and that Dice."""
    known = [(row["patient"], row[method]["dice"][name]) for row in evaluation["patients"]]
    defined = [(patient, value) for patient, value in known if value is not None]
    return min(defined, key=lambda entry: entry[1]) if defined else None


def _overlap(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    unit, units = evaluation["unit"], len(evaluation["patients"])
    rows = []
    for name in evaluation["classes"][1:]:
        for method, summary in evaluation["summary"].items():
            ends, lowest = summary["interval_95"], worst(evaluation, name, method)
            rows.append(
                [
                    name,
                    method_name(method),
                    figure(summary["dice"][name]),
                    between(ends["dice"][name]),
                    figure(lowest[1] if lowest else None),
                    figure(summary["iou"][name]),
                    between(ends["iou"][name]),
                ]
            )
    caption = f"Overlap with the reference, per class: means over {counted(units, unit)}"
    head: Sequence[str] = ("Class", "Method", "Dice", "95 % interval", f"Lowest {unit}", "IoU", "95 % interval")
    yield _without_method(evaluation, Table(caption, head, rows, text_columns=2), 1)
    rows = [
        [
            method_name(method),
            figure(summary["miou"]),
            between(summary["interval_95"]["miou"]),
            percent(summary["pixel_error"]),
            between(summary["interval_95"]["pixel_error"], 2, scale=100, unit=" %"),
        ]
        for method, summary in evaluation["summary"].items()
    ]
    head = ("Method", "mIoU", "95 % interval", f"Wrong {things(evaluation)[1]}s", "95 % interval")
    yield Table(f"All classes together, the background included: means over {counted(units, unit)}", head, rows)


def _conventions(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    rows = []
    for name in evaluation["classes"][1:]:
        for method, summary in evaluation["summary"].items():
            single = summary["mean_over_single_cases"]
            rows.append(
                [
                    name,
                    method_name(method),
                    figure(summary["dice"][name]),
                    figure(summary["dice_empty_scored"][name]),
                    figure(single["dice_empty_references_left_out"][name]),
                    figure(single["dice_empty_references_1_or_0"][name]),
                ]
            )
    unit, image = evaluation["unit"], things(evaluation)[0]
    head = (
        "Class", "Method", f"Per {unit}, left out", f"Per {unit}, 1 or 0", f"Single {image}s, left out",
        f"Single {image}s, 1 or 0",
    )  # fmt: skip
    note = (
        f"Where the reference lacks a class, Dice has no meaning. Such {image}s are left out, or count 1 if nothing "
        f"was predicted and 0 if anything was. Per {unit}, all {image}s of one {unit} are taken together first."
    )
    caption = "Mean Dice in both conventions for empty references"
    yield _without_method(evaluation, Table(caption, head, rows, (note,), text_columns=2), 1)


def _false_positives(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    unit, rows = evaluation["unit"], []
    image, pixel = things(evaluation)
    for method, summary in evaluation["summary"].items():
        for name, wrong in summary[EMPTY].items():
            size = next((significant(wrong[key], key) for key in ("ml", "mm2") if key in wrong), "spacing not known")
            found = [wrong["cases"], wrong["cases_with_any"], wrong["patients_with_any"], wrong["pixels"]]
            rows.append([name, method_name(method), *(f"{value:,}" for value in found), size.replace("mm2", "mm²")])
    head = ("Class", "Method", f"{image.capitalize()}s without it", "of them marked", f"{plural(unit).capitalize()}",
            f"{pixel.capitalize()}s", "Size")  # fmt: skip
    caption = f"False alarms: what was marked on {image}s whose reference lacks the class"
    yield _without_method(evaluation, Table(caption, head, rows, text_columns=2), 1)


def _surfaces(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    found = evaluation.get(SURFACES)
    if not found:
        return
    of, unit, image = found["distances_in"], found["unit"], things(evaluation)[0]
    means, ends = found["mean"], found["interval_95"]
    rows = [
        [
            name,
            figure(means["hd95"][name], 2),
            between(ends["hd95"][name], 2),
            figure(means["surface_dice"][name]),
            between(ends["surface_dice"][name]),
            str(found["missed"][name]),
            str(found["added"][name]),
        ]
        for name in found["classes"]
    ]
    head = (
        "Class", f"HD95 in {of}", "95 % interval", "Surface Dice", "95 % interval", "Missed altogether",
        "Invented",
    )  # fmt: skip
    notes = (
        f"HD95: 95 of 100 points of the two outlines lie at most so far apart. Surface Dice: the share of the outlines "
        f"that lies within {found['tolerance']:g} {of} of the other. Means over {plural(unit)}. Missed altogether: "
        f"{image}s of which nothing was marked though it is there; invented: the other way round. They have no HD95.",
    )
    yield Table("Distance between the outlines", head, rows, notes)


def _volumes(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        [
            name,
            method_name(method),
            significant(ml["reference"], "ml"),
            significant(ml["prediction"], "ml"),
            f"{signed(ml['difference'])} ml",
            between(ml["difference_interval_95"], unit=" ml"),
            significant(ml["absolute_difference"], "ml"),
            f"{ml['cases']:,}",
        ]
        for method, summary in evaluation["summary"].items()
        for name, ml in summary.get(VOLUME, {}).items()
    ]
    head = (
        "Class", "Method", "Reference", "Predicted", "Difference", "95 % interval", "Without its sign", "Scored",
    )  # fmt: skip
    note = "Difference: predicted less reference. Without its sign, too much and too little do not cancel out."
    if rows:
        yield _without_method(evaluation, Table("Volumes", head, rows, (note,), text_columns=2), 1)


def _objects(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    found = evaluation.get(INSTANCES)
    if not found:
        return
    rows = [
        [title, figure(found["mean"][score]), between(found["interval_95"][score])]
        for score, title in OBJECT_SCORES.items()
        if score in found["mean"]
    ]
    objects = found["objects"]
    note = (
        f"{objects['reference']:,} objects in the reference, {objects['predicted']:,} predicted, "
        f"{objects['matched']:,} matched; {objects['merged']:,} were merged with a neighbour, "
        f"{objects['split']:,} split."
    )
    caption = f"Objects of class {found['class']} one by one: means over {counted(found['units'], found['unit'])}"
    yield Table(caption, ("Score", "Mean", "95 % interval"), rows, (note,))


def _separation(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    found = evaluation.get("separation")
    if not found:
        return
    rows = [
        [
            title,
            figure(found["mean"][score]),
            between(found["interval_95"][score]),
            figure(found["challenge_convention"][score]),
        ]
        for score, title in SEPARATION_SCORES.items()
    ]
    notes: Sequence[str] = (
        f"Cells are separated where the probability of {found['membrane']} is above {found['threshold']:g} "
        f"({found['threshold_from']}). The interval is a {found['interval_note']}. Last column: "
        f"{found['challenge_convention']['note']}.",
    )
    head = ("Score", "Mean", "95 % interval", "At its own best threshold")
    yield Table("How well cells are kept apart (1 is perfect)", head, rows, notes)


_BUILDERS = (_overlap, _conventions, _false_positives, _surfaces, _volumes, _objects, _separation)
