"""How far the surfaces of prediction and reference lie apart: 95th percentile of the distances, and surface Dice."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance

from pipeline.case_pictures import drawn
from pipeline.errors import InputError
from pipeline.metrics import bootstrap_interval
from pipeline.scoring import Scored

PERCENTILE = 95
"""Of the distances: the largest one is often that of a single stray voxel."""

SLACK = 1e-4
"""Share by which a distance may exceed the tolerance: a spacing of 1.0000001 mm in a header is one of 1 mm."""

SCORES = {"hd95": "HD95", "surface_dice": "surface Dice"}
"""Names in the table, and in words."""

WORST = 3
"""Cases that are named for each class: those with the largest HD95."""


class SurfaceDistances:
    """Scores the surfaces of every class but the background; a scorer of `pipeline.evaluate.CaseTable`.

    Distances are in mm by each case's own spacing. Where no case has one (2D images), they are in pixels, and so is the
    tolerance; the table says which in `distances_in`.

    Args:
        class_names: class 0, the background, first.
        tolerance_mm: how far a surface may lie off to count as right in the surface Dice; what two readers differ by.

    Raises:
        InputError: the tolerance is no positive number.
    """

    name = "surface_distances"
    picture_name = "worst_surfaces.png"

    def __init__(self, class_names: Sequence[str], tolerance_mm: float) -> None:
        if not isinstance(tolerance_mm, (int, float)) or not 0 < tolerance_mm < np.inf:
            raise InputError(f"`tolerance_mm` must be a positive number, say 1.0, got {tolerance_mm!r}")
        self.class_names = list(class_names)
        self.tolerance = float(tolerance_mm)
        self.start({"unit": "patient"})

    def start(self, about: Mapping[str, Any]) -> None:
        """Begin an evaluation whose scores are averaged over `unit`."""
        self.unit = str(about["unit"])
        self.cases: list[dict[str, Any]] = []
        self.distances_in: str | None = None
        self.worst: tuple[float, np.ndarray] | None = None

    def add(self, case: Scored) -> None:
        """Score a case.

        Raises:
            InputError: it has a spacing where the cases before have none, or the other way round.
        """
        distances_in = "px" if case.spacing_mm is None else "mm"
        if self.distances_in not in (None, distances_in):
            raise InputError(
                f"{case.id}: its distances are in {distances_in}, those of the cases before in {self.distances_in}, "
                "and they have no common mean; say `spacing_mm` in the manifest, or leave `SurfaceDistances` out"
            )
        self.distances_in = distances_in
        spacing = case.spacing_mm or (1.0,) * case.reference.ndim
        row: dict[str, Any] = {"id": case.id, "patient": case.patient, "hd95": {}, "surface_dice": {}}
        found: dict[str, list[str]] = {"missed": [], "added": []}
        for index, name in enumerate(self.class_names[1:], start=1):
            truth, ours = case.reference == index, case.prediction == index
            row["hd95"][name], row["surface_dice"][name] = surface_scores(ours, truth, spacing, self.tolerance)
            if truth.any() != ours.any():
                found["missed" if truth.any() else "added"].append(name)
        self.cases.append(row | found)
        self._keep_if_worst(case, max((d for d in row["hd95"].values() if d is not None), default=0.0))

    def _keep_if_worst(self, case: Scored, distance: float) -> None:
        """Draw the case with the largest HD95 of any class at once, so that no volume is kept."""
        if distance > (self.worst[0] if self.worst else 0.0):
            title = f"{case.id}  HD95 {distance:.1f} {self.distances_in}"
            self.worst = (distance, drawn(case, title, self.class_names))

    def table(self) -> dict[str, Any]:
        """All scores, ready for JSON: per case, and `summary`."""
        how = {"tolerance": self.tolerance, "distances_in": self.distances_in or "mm", "classes": self.class_names[1:]}
        return how | {"cases": self.cases} | summary(self.cases, self.class_names[1:], self.unit)

    def scalars(self) -> dict[str, float | None]:
        """Mean HD95 and surface Dice of every class."""
        mean = self.table()["mean"]
        return {f"{score}_{name}": value for score in SCORES for name, value in mean[score].items()}

    def picture(self) -> np.ndarray | None:
        """The case with the largest HD95, unless it is 0 everywhere or nowhere defined."""
        return self.worst[1] if self.worst else None


def surface_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float | None, float | None]:
    """HD95 and surface Dice of one object in one case.

    HD95: of every surface voxel the distance to the nearest one of the other surface; the 95th percentile in each
    direction, and the larger of the two (MONAI, Metrics Reloaded; MedPy takes one percentile of both together).
    Surface Dice, or NSD: the share of both surfaces, by area, that lies within the tolerance of the other (Nikolov et
    al., J. Med. Internet Res. 23, 2021, doi 10.2196/26151). Areas are of the surface between voxels, MONAI's
    `use_subvoxels`, which equals DeepMind's `surface-distance` (to 5 digits on hippocampi, where counting surface
    voxels is off by up to 0.005, and on cubes by 0.15).

    Args:
        prediction: (H, W) or (X, Y, Z) bool.
        reference: likewise.
        spacing: between voxels along each axis.
        tolerance: in the unit of the spacing.

    Returns:
        Both; (None, None) where both are empty, and (None, 0.0) where one is: no distance says how bad that is.
    """
    if not prediction.any() and not reference.any():
        return None, None
    if not prediction.any() or not reference.any():
        return None, 0.0
    box = _bounding_box(prediction | reference)
    ours, truth = (torch.as_tensor(np.ascontiguousarray(mask[box])) for mask in (prediction, reference))
    sides, within = [float(side) for side in spacing], tolerance * (1 + SLACK)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)  # MONAI's own
        _, both_ways, _ = get_edge_surface_distance(ours, truth, spacing=sides, symmetric=True)
        dice = compute_surface_dice(
            ours[None, None], truth[None, None], [within], include_background=True, spacing=sides,
            use_subvoxels=True,
        )  # fmt: skip
    # as compute_hausdorff_distance, whose torch.quantile refuses the 16 million surface voxels of a noisy volume
    return max(float(np.percentile(one_way.numpy(), PERCENTILE)) for one_way in both_ways), float(dice)


def summary(cases: Sequence[Mapping[str, Any]], classes: Sequence[str], unit: str) -> dict[str, Any]:
    """Means of case scores: of a unit's cases first, then of the units, with intervals over the units.

    Args:
        cases: `id`, `patient`, `hd95`, `surface_dice`, `missed` and `added` of each case.
        classes: without the background.
        unit: what `patient` holds.

    Returns:
        `unit`; per score and class `mean`, `interval_95` and `units` (those with a value); `missed` and `added`: per
        class the cases where the prediction, or the reference, is empty, which have no HD95; `worst` per class: ids of
        the cases with the largest HD95.
    """
    values = {score: {name: _of_units(cases, score, name) for name in classes} for score in SCORES}

    def over(of: Any) -> dict[str, dict[str, Any]]:
        return {score: {name: of(values[score][name]) for name in classes} for score in SCORES}

    return {
        "unit": unit,
        "mean": over(lambda its: float(np.mean(its)) if its else None),
        "interval_95": over(bootstrap_interval),
        "units": over(len),
        "missed": {name: sum(name in case["missed"] for case in cases) for name in classes},
        "added": {name: sum(name in case["added"] for case in cases) for name in classes},
        "worst": {name: _worst(cases, name) for name in classes},
    }


def joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `SurfaceDistances.table` of several evaluations of different units as one.

    Raises:
        InputError: distances were not measured in the same way.
    """
    hows = [{key: table[key] for key in ("tolerance", "distances_in", "classes", "unit")} for table in tables]
    if any(how != hows[0] for how in hows):
        raise InputError(f"distances that were measured in different ways have no common mean: {hows}")
    cases = [case for table in tables for case in table["cases"]]
    return hows[0] | {"cases": cases} | summary(cases, hows[0]["classes"], hows[0]["unit"])


def lines(distances: Mapping[str, Any]) -> list[str]:
    """What a reader wants of `SurfaceDistances.table`, as lines of text."""
    of, unit = distances["distances_in"], distances["unit"]
    no_spacing = ", no spacing is known" if of == "px" else ""
    found = [
        f"Surfaces, distances in {of}{no_spacing}; surface Dice at a tolerance of {distances['tolerance']:g} {of}."
    ]
    for name in distances["classes"]:
        hd95, dice = (_in_words(distances, score, name, digits) for score, digits in (("hd95", 2), ("surface_dice", 3)))
        worst = ", ".join(distances["worst"][name])
        found.append(f"{name}: HD95 {hd95}; surface Dice {dice}" + (f"; largest HD95 in {worst}" if worst else ""))
        for what, empty in (("missed", "prediction"), ("added", "reference")):
            if count := distances[what][name]:
                cases = _number(count, "case")
                found.append(f"{name}: {what} in {cases}, where the {empty} has none: no HD95, a surface Dice of 0.")
    return [*found, f"Means over {unit}s, each the mean of its cases; intervals by bootstrap over them."]


def _in_words(distances: Mapping[str, Any], score: str, name: str, digits: int) -> str:
    mean, interval = (distances[key][score][name] for key in ("mean", "interval_95"))
    if mean is None:
        return "-"
    between = f"95 % interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else "no interval"
    return f"{mean:.{digits}f} ({between}, {_number(distances['units'][score][name], distances['unit'])})"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _of_units(cases: Sequence[Mapping[str, Any]], score: str, name: str) -> list[float]:
    """The mean of each unit's defined scores; a unit without any is left out."""
    units: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        if case[score][name] is not None:
            units[case["patient"]].append(case[score][name])
    return [float(np.mean(values)) for values in units.values()]


def _worst(cases: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    off = [case for case in cases if case["hd95"][name]]
    return [case["id"] for case in sorted(off, key=lambda case: -case["hd95"][name])[:WORST]]


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Where a mask is, so that a small object in a large volume is cheap."""
    found = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        found.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(found)
