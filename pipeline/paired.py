"""Variants on the same patients: the paired difference per patient, its interval, and the spread between seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics import bootstrap_interval
from pipeline.patient_scores import Scores, per_patient
from pipeline.tables import FEW


def seed_means(tables: Sequence[Mapping[str, Any]]) -> Scores:
    """Mean over the seeds of one variant, per patient and measure; not defined where one seed's value is not.

    Args:
        tables: one evaluation per seed, of the same patients.

    Raises:
        DataError: they are not of the same patients.
    """
    seeds = [per_patient(table) for table in tables]
    if any(seed.keys() != seeds[0].keys() for seed in seeds):
        raise DataError("evaluations to compare are of different patients; train and evaluate all on one manifest")
    return {
        patient: {name: _mean([seed[patient].get(name) for seed in seeds]) for name in seeds[0][patient]}
        for patient in seeds[0]
    }


def difference(first: Scores, second: Scores, measure: str) -> dict[str, Any]:
    """The paired difference first - second of one measure.

    Returns:
        `mean` over patients, `interval` (95 % bootstrap over patients; None for fewer than two), `patients` (how many),
        `left_out` (patients for whom the measure is not defined) and `by_patient`.
    """
    pairs = {patient: (first[patient].get(measure), second[patient].get(measure)) for patient in first}
    values = {patient: a - b for patient, (a, b) in pairs.items() if a is not None and b is not None}
    return {
        "mean": float(np.mean(list(values.values()))) if values else None,
        "interval": bootstrap_interval(list(values.values())),
        "patients": len(values),
        "left_out": sorted(pairs.keys() - values.keys()),
        "by_patient": values,
    }


def comparison(tables: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Compare every later variant with the first one.

    Args:
        tables: variant -> seed -> the evaluation of all patients.

    Returns:
        `patients` (scores of every variant, averaged over seeds), `differences` (`first`, `second`, `measure` and what
        `difference` gives), `seeds` (variant -> seed -> measure -> mean over patients) and `seed_spread` (variant ->
        measure -> largest of these means less the smallest).

    Raises:
        DataError: the evaluations are not of the same patients.
    """
    scores = {variant: seed_means(list(seeds.values())) for variant, seeds in tables.items()}
    first, *others = scores
    if any(scores[other].keys() != scores[first].keys() for other in others):
        raise DataError(
            "variants to compare are evaluated on different patients; train and evaluate all on one manifest"
        )
    names = list(dict.fromkeys(name for row in scores[first].values() for name in row))
    by_seed = {
        variant: {str(seed): means(per_patient(table)) for seed, table in seeds.items()}
        for variant, seeds in tables.items()
    }
    return {
        "patients": [
            {"patient": patient} | {variant: scores[variant][patient] for variant in scores}
            for patient in scores[first]
        ],
        "means": {variant: means(scores[variant]) for variant in scores},
        "differences": [
            {"first": first, "second": other, "measure": name} | difference(scores[first], scores[other], name)
            for other in others
            for name in names
        ],
        "seeds": by_seed,
        "seed_spread": {variant: _spread(list(seeds.values())) for variant, seeds in by_seed.items()},
    }


def means(scores: Scores) -> dict[str, float | None]:
    """Mean over the patients for whom a measure is defined."""
    names = dict.fromkeys(name for row in scores.values() for name in row)
    return {name: _mean([v for row in scores.values() if (v := row.get(name)) is not None]) for name in names}


def cautions(patients: int, unit: str, seeds: int, folds: int | None, *, each: str = "variant") -> list[str]:
    """What an interval over patients cannot say, in sentences; `each` is what was trained with so many seeds."""
    counted = f"{patients} {unit}{'s' if patients != 1 else ''}"
    said = [
        f"The intervals resample {counted}: they say how a mean would vary over other {unit}s like these, and nothing "
        "of another site, scanner or way of labelling."
    ]
    if patients < FEW:
        said.append(
            f"Too few ({counted}) to take the intervals at their word: below about {FEW} they are too narrow "
            "(simulated with 5, 95 % covers 80 to 85 %)."
        )
    with_seeds = f"{seeds} seeds" if seeds > 1 else "one seed"
    said.append(
        f"Each {each} was trained with {with_seeds}; that another training gives other weights is not in the intervals"
        + (", see the spread between seeds." if seeds > 1 else ".")
    )
    if folds:
        said.append(f"The {folds} folds share training {unit}s, so the {unit}s' scores are not quite independent.")
    return said


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(values) else None


def _spread(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Largest less smallest value between seeds; None for one seed."""
    values = {name: [seed.get(name) for seed in seeds] for name in seeds[0]}
    found = {name: [v for v in of if v is not None] for name, of in values.items()}
    return {name: max(of) - min(of) if len(of) > 1 else None for name, of in found.items()}
