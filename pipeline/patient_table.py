"""Overlap scores per case and per patient, their means over patients with intervals, and false positives."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.metrics import (
    FN,
    FP,
    TP,
    bootstrap_interval,
    dice,
    dice_empty_scored,
    iou,
    mean_iou,
    pixel_error,
    pooled,
)

Row = Mapping[str, Any]
"""`id`, `patient` and `counts`, a (classes, 3) array of `pipeline.metrics.overlap_counts` per method."""

EMPTY = "false_positives_where_empty"
"""The key of what was predicted on cases whose reference lacks the class."""


def tabulate(
    rows: Sequence[Row],
    class_names: Sequence[str],
    *,
    unit: str = "patient",
    spacing_mm: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Scores per case and per patient, and their means over patients.

    A patient's cases are pooled: its Dice is that of all its pixels at once, never a mean over slices. What a mean over
    single cases would be stands beside it, under that name.

    Args:
        rows: of the cases.
        class_names: class 0, the background, first; it is scored in `miou` and `pixel_error` alone.
        unit: what `patient` holds: "patient", or "cluster" or "image" where no patient is known.
        spacing_mm: of the pixels; two numbers give false positives in mm2, three in ml; None: in pixels alone.

    Returns:
        `classes`, `unit`, `spacing_mm`; `cases` and `patients`, a list of scores each; `summary`, per method.
    """
    methods = list(rows[0]["counts"]) if rows else []
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        patients[row["patient"]].append(row)
    by_case = [
        {"id": row["id"], "patient": row["patient"]}
        | {m: scores(row["counts"][m], class_names) | {"counts": row["counts"][m].tolist()} for m in methods}
        for row in rows
    ]
    by_patient = [
        {"patient": patient, "cases": len(its)}
        | {m: _patient([row["counts"][m] for row in its], class_names, spacing_mm) for m in methods}
        for patient, its in sorted(patients.items())
    ]
    return {
        "classes": list(class_names),
        "unit": unit,
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "cases": by_case,
        "patients": by_patient,
        "summary": {m: _summary([row[m] for row in by_case], [row[m] for row in by_patient]) for m in methods},
    }


def scores(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Scores of (classes, 3) counts, ready for JSON; None where a score is not defined."""
    named = list(class_names)[1:]
    per_class = {"dice": dice(counts), "dice_empty_scored": dice_empty_scored(counts), "iou": iou(counts)}
    return {
        **{score: dict(zip(named, map(_or_none, values[1:]), strict=True)) for score, values in per_class.items()},
        "miou": _or_none(mean_iou(counts)),
        "pixel_error": pixel_error(counts),
    }


def false_positives(
    cases: Sequence[np.ndarray], class_names: Sequence[str], spacing_mm: Sequence[float] | None
) -> dict[str, dict[str, Any]]:
    """What was predicted of each class on the cases whose reference lacks it.

    Args:
        cases: (classes, 3) counts of each case.
        class_names: class 0, the background, first; it is left out.
        spacing_mm: as for `tabulate`.

    Returns:
        Per class `cases` (without it in the reference), `cases_with_any` (of them, with a false positive), `pixels`,
        and `mm2` or `ml` where the spacing says how large a pixel is.
    """
    found: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(class_names[1:], start=1):
        wrong = [int(c[index, FP]) for c in cases if c[index, TP] + c[index, FN] == 0]
        found[name] = {"cases": len(wrong), "cases_with_any": sum(w > 0 for w in wrong), "pixels": sum(wrong)}
        found[name] |= _size(sum(wrong), spacing_mm)
    return found


def _size(pixels: int, spacing_mm: Sequence[float] | None) -> dict[str, float]:
    if spacing_mm is None:
        return {}
    size = pixels * math.prod(spacing_mm)
    return {"ml": size / 1000} if len(spacing_mm) == 3 else {"mm2": size}


def _patient(
    cases: Sequence[np.ndarray], class_names: Sequence[str], spacing_mm: Sequence[float] | None
) -> dict[str, Any]:
    return scores(pooled(cases), class_names) | {EMPTY: false_positives(cases, class_names, spacing_mm)}


def _summary(cases: Sequence[Mapping[str, Any]], patients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over patients; a score that is not defined for any of them stays None."""
    classes = list(patients[0]["dice"])

    def over(rows: Sequence[Mapping[str, Any]], score: str, of: Any) -> Any:
        """`of` the defined values of a score, per class where it has classes."""
        if isinstance(rows[0][score], Mapping):
            return {name: of(_defined(row[score][name] for row in rows)) for name in classes}
        return of(_defined(row[score] for row in rows))

    return {
        **{s: over(patients, s, _mean) for s in ("dice", "dice_empty_scored", "iou", "miou", "pixel_error")},
        "interval_95": {s: over(patients, s, bootstrap_interval) for s in ("dice", "iou", "miou", "pixel_error")},
        "mean_over_single_cases": {
            "dice_empty_references_left_out": over(cases, "dice", _mean),
            "dice_empty_references_1_or_0": over(cases, "dice_empty_scored", _mean),
        },
        EMPTY: {name: _total([row[EMPTY][name] for row in patients]) for name in classes},
    }


def _total(patients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summed = {key: sum(row[key] for row in patients) for key in patients[0]}
    return summed | {"patients_with_any": sum(row["cases_with_any"] > 0 for row in patients)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _defined(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
