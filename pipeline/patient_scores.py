"""Every patient's scores in an evaluation's table as flat numbers, whoever compares them: variants, or subgroups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import surface_distances
from pipeline.instance_scores import PRINTED, InstanceScores
from pipeline.surface_distances import SurfaceDistances
from pipeline.tables import PER_CLASS

NETWORK = "network"
"""The method of a table whose scores these are."""

INSTANCES, SURFACES = InstanceScores.name, SurfaceDistances.name
"""The keys of scores of objects and of surfaces, where there are any."""

Scores = dict[str, dict[str, float | None]]
"""Patient -> measure -> value; None where the measure is not defined for the patient."""


def measures(row: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """A patient's scores flat: `{"dice": {"cell": 0.9}, "pixel_error": 0.1}` -> `dice_cell`, `pixel_error`.

    Counts (whole numbers) and lists are left out.
    """
    flat: dict[str, float | None] = {}
    for key, value in row.items():
        name = f"{prefix}_{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= measures(value, name)
        elif value is None or isinstance(value, float):
            flat[name] = value
    return flat


def per_patient(table: Mapping[str, Any]) -> Scores:
    """Every patient's scores in an evaluation's table; of objects and surfaces, where scored, the mean of its cases.

    A case whose prediction or reference is empty has no surface distance: the mean is of the others.
    """
    scores = {row["patient"]: measures(row[NETWORK]) for row in table["patients"]}
    images: dict[str, list[dict[str, float | None]]] = defaultdict(list)
    for case in table.get(INSTANCES, {"cases": []})["cases"]:
        images[case["patient"]].append(measures(case))
    for patient, rows in images.items():
        scores[patient] |= {name: _mean([row[name] for row in rows]) for name in rows[0]}
    surfaces: dict[str, list[dict[str, float | None]]] = defaultdict(list)
    for case in table.get(SURFACES, {"cases": []})["cases"]:
        surfaces[case["patient"]].append(measures({score: case[score] for score in surface_distances.SCORES}))
    for patient, rows in surfaces.items():
        scores[patient] |= {name: _mean([r[name] for r in rows if r[name] is not None]) for name in rows[0]}
    return scores


def headline(table: Mapping[str, Any]) -> list[str]:
    """The measures to show of an evaluation's table: those that it says itself, of its objects and of its surfaces."""
    per_class = [(m, [f"{m}_{name}" for name in table["classes"][1:]]) for m in table["measures"]]
    shown = [name for measure, names in per_class for name in (names if measure in PER_CLASS else [measure])]
    surfaces = [f"{score}_{name}" for score in surface_distances.SCORES for name in table["classes"][1:]]
    return [*shown, *(PRINTED if INSTANCES in table else ()), *(surfaces if SURFACES in table else ())]


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(values) else None
