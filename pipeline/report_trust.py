"""Calibration and subgroups of an evaluation for a report: tables, charts, and what they mean in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from pipeline import calibration, charts, subgroups
from pipeline.report_charts import embedded
from pipeline.report_words import Table, between, counted, figure, listed, percent, plural, signed, things

NAMES = {calibration.CONFIDENCE: "The class it chose"}
"""What a row of calibration is called; other rows are classes."""

Drawn = tuple[Markup, str]
"""A chart and the sentence below it."""


def calibration_said(evaluation: Mapping[str, Any]) -> str:
    """What the calibration error means; an empty text where it was not measured."""
    table = evaluation.get("calibration")
    if not table:
        return ""
    said = [_meaning(table[region][calibration.CONFIDENCE], where) for region, where in calibration.REGIONS.items()]
    bins = (
        "In the diagrams what the model says is on the horizontal axis, and how often it is right on the vertical one: "
        "on the dashed line both agree, below it the model is too sure."
    )
    return " ".join([*filter(None, said), bins])


def calibration_table(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    """The calibration errors with their intervals."""
    table = evaluation.get("calibration")
    if not table:
        return
    rows = [
        [
            NAMES.get(row, f"Probability of {row}"),
            where,
            percent(score["ece"]),
            between(score["interval_95"], 2, scale=100, unit=" %"),
            percent(score["pooled"]),
            f"{score['pixels']:,}",
        ]
        for row in table["rows"]
        for region, where in calibration.REGIONS.items()
        for score in [table[region][row]]
    ]
    unit, pixel = table["unit"], things(evaluation)[1]
    head = ("Of what", "Where", "ECE", "95 % interval", f"All {pixel}s at once", f"{pixel.capitalize()}s")
    note = (
        f"ECE, expected calibration error: how far probabilities and the share that is right lie apart, per {unit}, "
        f"then the mean over {plural(unit)}. Most {pixel}s are easy background, so the same stands beside it near the "
        f"foreground: within {table['margin']} {pixel}s of what either reference or prediction marks."
    )
    yield Table("Expected calibration error", head, rows, (note,), text_columns=2)


def calibration_charts(evaluation: Mapping[str, Any]) -> list[Drawn]:
    """The reliability diagrams."""
    table = evaluation.get("calibration")
    if not table or not table["patients"]:
        return []
    told = " ".join(calibration.lines(table)[1:-1])
    drawn = charts.svg(calibration.diagram(table), "Reliability diagrams")
    said = "Reliability diagrams. Below each, how many of the pixels have such a probability."
    return [(embedded(drawn, "calibration", title="Reliability diagrams", told=told), said)]


def subgroup_tables(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    """Dice of every subgroup, a table per column of the manifest."""
    named, about = evaluation["classes"][1:], evaluation.get(subgroups.ABOUT) or {}
    unit = plural(evaluation["unit"])
    several = len(named) > 1
    for column, groups in (evaluation.get(subgroups.NAME) or {}).items():
        rows = [
            [
                str(group),
                *([name] if several else []),
                f"{entry['patients']:,}",
                figure(score["mean"]),
                between(score["interval_95"]),
                signed(score["difference"]),
                between(score["difference_interval_95"], sign=True),
            ]
            for group, entry in groups.items()
            for name in named
            for score in [entry["dice"][name]]
        ]
        head = (
            column, *(["Class"] if several else []), unit.capitalize(), "Dice", "95 % interval",
            f"Difference to all other {unit}", "95 % interval",
        )  # fmt: skip
        hidden = (about.get("not_shown") or {}).get(column)
        notes = [f"{counted(hidden, evaluation['unit'])} in groups too small to be shown."] if hidden else []
        yield Table(f"By {column}", head, rows, notes, text_columns=1 + several)


def subgroup_charts(evaluation: Mapping[str, Any]) -> list[Drawn]:
    """The bars of all subgroups."""
    figure_ = subgroups.bars(evaluation)
    if figure_ is None:
        return []
    told = " ".join(_group_in_words(evaluation, column) for column in evaluation[subgroups.NAME])
    drawn = embedded(charts.svg(figure_, "Dice by subgroup"), "subgroups", title="Dice by subgroup", told=told)
    return [(drawn, "Diamond: mean of the group. Bar: its 95 % interval. Dashed: mean of all.")]


def subgroup_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What must be known beside the subgroups, and which columns make none."""
    about = evaluation.get(subgroups.ABOUT)
    if about is None:
        return ["This evaluation did not look at subgroups."]
    notes = [about["note"]] if evaluation.get(subgroups.NAME) else []
    left_out = [f"Column {column} makes no subgroups: {why}." for column, why in about["left_out"].items()]
    nothing = "The manifest has no columns beside the files, such as sex, age or scanner, so there are no subgroups."
    return [*notes, *left_out] or [nothing]


def _group_in_words(evaluation: Mapping[str, Any], column: str) -> str:
    groups, name = evaluation[subgroups.NAME][column], evaluation["classes"][1]
    means = [f"{group} {figure(entry['dice'][name]['mean'])}" for group, entry in groups.items()]
    return f"Mean Dice of {name} by {column}: {listed(means)}."


def _meaning(score: Mapping[str, Any], where: str) -> str:
    if score["ece"] is None:
        return ""
    side = "too sure" if score["excess"] > 0 else "not sure enough"
    return (
        f"{where.capitalize()}: what the model says and how often it is right differ by {percent(score['ece'], 1)} on "
        f"average; on the whole it is {side}."
    )
