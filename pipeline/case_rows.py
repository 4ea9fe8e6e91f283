"""An evaluation case by case as the rows of one flat table, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.groups import RARE
from pipeline.instance_scores import PRINTED
from pipeline.metrics import FN, FP, TP
from pipeline.patient_scores import INSTANCES, NETWORK, SURFACES
from pipeline.patient_table import VOLUME
from pipeline.surface_distances import SCORES

Row = dict[str, Any]
"""Column -> text, number or None."""


def rows(table: Mapping[str, Any]) -> list[Row]:
    """One row per case, the worst first: the lowest mean Dice with an empty reference as 1 or 0, then the most errors.

    Args:
        table: contents of evaluation.json; what it lacks (surfaces, objects, volumes, subgroups, pictures) has no
            column.
    """
    surfaces, objects = ({c["id"]: c for c in table.get(key, {}).get("cases", [])} for key in (SURFACES, INSTANCES))
    pictures = {shown["case"]: shown["file"] for shown in reversed(table.get("pictures", []))}
    groups = table.get("subgroups_about", {}).get("groups", {})
    lacking = any(score is None for case in table["cases"] for score in case[NETWORK]["dice"].values())
    found = []
    for place, case in enumerate(sorted(table["cases"], key=_badness), start=1):
        row: Row = {"rank": place, "case": case["id"], table["unit"]: case["patient"]}
        row |= _overlap(case[NETWORK], table["classes"][1:], lacking=lacking)
        row |= _surfaces(surfaces.get(case["id"], {}), table.get(SURFACES, {}))
        row |= {title: objects[case["id"]][score] for score, title in PRINTED.items() if case["id"] in objects}
        row |= {_free(column, row): of.get(case["patient"], RARE) for column, of in groups.items()}
        found.append(row | ({"picture": pictures.get(case["id"], "")} if pictures else {}))
    return found


def _badness(case: Mapping[str, Any]) -> tuple[float, float]:
    dice = case[NETWORK]["dice_empty_scored"].values()
    return sum(dice) / max(len(dice), 1), -case[NETWORK]["pixel_error"]


def _overlap(scores: Mapping[str, Any], classes: Sequence[str], *, lacking: bool) -> Row:
    row: Row = {}
    for name in classes:
        row[f"Dice {name}"] = scores["dice"][name]
        if lacking:
            row[f"Dice {name}, empty as 1 or 0"] = scores["dice_empty_scored"][name]
        row[f"IoU {name}"] = scores["iou"][name]
    if lacking:
        row["false positive"] = ", ".join(_false_positives(scores["counts"], classes))
    for name, ml in scores.get(VOLUME, {}).items():
        row |= {f"{name} ml reference": ml["reference"], f"{name} ml predicted": ml["prediction"]}
    return row | {"wrong pixels (%)": 100 * scores["pixel_error"]}


def _false_positives(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    """The classes that were predicted though the reference lacks them."""
    return [name for name, of in zip(classes, counts[1:], strict=True) if of[TP] + of[FN] == 0 < of[FP]]


def _surfaces(case: Mapping[str, Any], table: Mapping[str, Any]) -> Row:
    units = {"hd95": f" ({table.get('distances_in')})"}
    return {
        f"{title} {name}{units.get(score, '')}": value
        for score, title in SCORES.items()
        for name, value in case.get(score, {}).items()
    }


def _free(column: str, row: Row) -> str:
    """The name of a manifest's column beside those of the scores."""
    return f"{column} (group)" if column in row else column
