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
"""`id`, `patient` and `counts`, a (classes, 3) array of `pipeline.metrics.overlap_counts` per method; of a volume also
its own `spacing_mm`, if it is known."""

EMPTY = "false_positives_where_empty"
"""The key of what was predicted on cases whose reference lacks the class."""

VOLUME = "volume_ml"
"""The key of the sizes of reference and prediction."""


def tabulate(
    rows: Sequence[Row],
    class_names: Sequence[str],
    *,
    unit: str = "patient",
    spacing_mm: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Scores per case and per patient, and their means over patients.

    A patient's cases are pooled: its Dice is that of all its pixels at once, never a mean over slices. What a mean over
    single cases would be stands beside it, under that name. Volumes in ml are of single cases, never added up over a
    patient's: two visits are no larger organ.

    Args:
        rows: of the cases.
        class_names: class 0, the background, first; it is scored in `miou` and `pixel_error` alone.
        unit: what `patient` holds: "patient", or "cluster" or "image" where no patient is known.
        spacing_mm: of the pixels, where a row has none of its own; two numbers give false positives in mm2, three give
            them, and the volumes of reference and prediction, in ml; None: in pixels alone.

    Returns:
        `classes`, `unit`, `spacing_mm`; `cases` and `patients`, a list of scores each; `summary`, per method.
    """
    methods = list(rows[0]["counts"]) if rows else []
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        patients[row["patient"]].append(row)
    by_case = [
        {"id": row["id"], "patient": row["patient"]}
        | ({"spacing_mm": list(row["spacing_mm"])} if row.get("spacing_mm") else {})
        | {m: _case(row["counts"][m], class_names, row.get("spacing_mm") or spacing_mm) for m in methods}
        for row in rows
    ]
    by_patient = [
        {"patient": patient, "cases": len(its)} | {m: _patient(its, m, class_names, spacing_mm) for m in methods}
        for patient, its in sorted(patients.items())
    ]
    return {
        "classes": list(class_names),
        "unit": unit,
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "cases": by_case,
        "patients": by_patient,
        "summary": {
            m: _summary([row[m] for row in by_case], [row[m] for row in by_patient]) | _volume_summary(by_case, m)
            for m in methods
        },
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


def volumes_ml(
    counts: np.ndarray, class_names: Sequence[str], spacing_mm: Sequence[float] | None
) -> dict[str, dict[str, float]]:
    """The volume of every class but the background in `reference` and `prediction`; empty unless three spacings say."""
    if spacing_mm is None or len(spacing_mm) != 3:
        return {}
    ml = math.prod(spacing_mm) / 1000
    sizes = counts[1:, [TP]] + counts[1:, [FN, FP]]
    return {
        name: {"reference": float(truth * ml), "prediction": float(ours * ml)}
        for name, (truth, ours) in zip(class_names[1:], sizes, strict=True)
    }


def false_positives(
    cases: Sequence[np.ndarray], class_names: Sequence[str], spacings_mm: Sequence[Sequence[float] | None]
) -> dict[str, dict[str, Any]]:
    """What was predicted of each class on the cases whose reference lacks it.

    Args:
        cases: (classes, 3) counts of each case.
        class_names: class 0, the background, first; it is left out.
        spacings_mm: of each case, as for `tabulate`.

    Returns:
        Per class `cases` (without it in the reference), `cases_with_any` (of them, with a false positive), `pixels`,
        and `mm2` or `ml` where the spacings say how large a pixel is.
    """
    found: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(class_names[1:], start=1):
        empty = [(int(c[index, FP]), mm) for c, mm in zip(cases, spacings_mm, strict=True) if _lacks(c, index)]
        wrong = [pixels for pixels, _ in empty]
        found[name] = {"cases": len(wrong), "cases_with_any": sum(w > 0 for w in wrong), "pixels": sum(wrong)}
        found[name] |= _size(wrong, spacings_mm if not empty else [mm for _, mm in empty])
    return found


def _lacks(counts: np.ndarray, index: int) -> bool:
    return bool(counts[index, TP] + counts[index, FN] == 0)


def _size(pixels: Sequence[int], spacings_mm: Sequence[Sequence[float] | None]) -> dict[str, float]:
    """The sum in `mm2` or `ml`, where all spacings are known."""
    known = [spacing for spacing in spacings_mm if spacing is not None]
    if len(known) < len(spacings_mm) or len({len(spacing) for spacing in known}) != 1:
        return {}
    size = sum(count * math.prod(spacing) for count, spacing in zip(pixels, known, strict=False))
    return {"ml": size / 1000} if len(known[0]) == 3 else {"mm2": float(size)}


def _case(counts: np.ndarray, class_names: Sequence[str], spacing_mm: Sequence[float] | None) -> dict[str, Any]:
    found = scores(counts, class_names) | {"counts": counts.tolist()}
    ml = volumes_ml(counts, class_names, spacing_mm)
    return found | {VOLUME: ml} if ml else found


def _patient(
    rows: Sequence[Row], method: str, class_names: Sequence[str], spacing_mm: Sequence[float] | None
) -> dict[str, Any]:
    cases = [row["counts"][method] for row in rows]
    spacings = [row.get("spacing_mm") or spacing_mm for row in rows]
    return scores(pooled(cases), class_names) | {EMPTY: false_positives(cases, class_names, spacings)}


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


def _volume_summary(cases: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Volumes and their differences, means of a patient's cases first, then of patients; none where none are known."""
    known = [case for case in cases if VOLUME in case[method]]
    return {VOLUME: {name: _volume(known, method, name) for name in known[0][method][VOLUME]}} if known else {}


def _volume(cases: Sequence[Mapping[str, Any]], method: str, name: str) -> dict[str, Any]:
    patients: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case in cases:
        ml = case[method][VOLUME][name]
        patients[case["patient"]].append((ml["reference"], ml["prediction"]))
    sizes = np.array([np.mean(its, axis=0) for its in patients.values()])
    off = [float(np.mean([ours - truth for truth, ours in its])) for its in patients.values()]
    error = [float(np.mean([abs(ours - truth) for truth, ours in its])) for its in patients.values()]
    return {
        "reference": float(sizes[:, 0].mean()),
        "prediction": float(sizes[:, 1].mean()),
        "difference": _mean(off),
        "difference_interval_95": bootstrap_interval(off),
        "absolute_difference": _mean(error),
        "cases": len(cases),
    }


def _total(patients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    common = [key for key in patients[0] if all(key in row for row in patients)]  # a size only where all have one
    summed = {key: sum(row[key] for row in patients) for key in common}
    return summed | {"patients_with_any": sum(row["cases_with_any"] > 0 for row in patients)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _defined(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
