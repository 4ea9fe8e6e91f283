"""How well an evaluation's objects are found one by one: aggregated Jaccard, average precision, counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import overlay
from pipeline.errors import InputError
from pipeline.instances import (
    ADDED,
    MERGED,
    MISSED,
    THRESHOLDS,
    aggregated_jaccard,
    average_precision,
    counterparts,
    instances_from,
    mistakes,
    object_counts,
)
from pipeline.metrics import bootstrap_interval
from pipeline.scoring import Scored

AP = {threshold: f"ap_{round(100 * threshold)}" for threshold in THRESHOLDS}
"""Names of the average precisions: `ap_50` is the one at an IoU above 0.5."""

SCORES = ("aji", *AP.values(), "ap_mean")
COUNTS = ("reference", "predicted", "matched", "merged", "split")
"""What an image is scored by, and the objects that are counted in it."""

PRINTED = {"aji": "AJI", "ap_50": "AP at IoU 0.5", "ap_75": "AP at IoU 0.75", "ap_mean": "AP, mean of 0.5 to 0.95"}


class InstanceScores:
    """Scores the objects of one class, image by image; a scorer of `pipeline.evaluate.CaseTable`.

    The predicted objects are the connected components of the predicted class, the reference objects are the cases'
    `instances`, so the evaluation's `LoadCased` needs that key.

    Args:
        class_names: class 0, the background, first.
        instances: the class that the objects are of.
        smallest: predicted objects of fewer pixels are dropped.
        seam: pixels by which predicted objects side by side grow together: 1 gives back what `TouchingInstancesd` cut.

    Raises:
        InputError: there is no such class, or it is the background.
    """

    name = "instances"
    picture_name = "worst_instances.png"

    def __init__(self, class_names: Sequence[str], *, instances: str, smallest: int = 0, seam: int = 0) -> None:
        if instances not in class_names[1:]:
            raise InputError(f"`instances` must be one of {', '.join(class_names[1:])}, got {instances!r}")
        self.of = instances
        self.index = list(class_names).index(instances)
        self.smallest, self.seam = smallest, seam
        self.start({"unit": "patient"})

    def start(self, about: Mapping[str, Any]) -> None:
        """Begin an evaluation whose scores are averaged over `unit`."""
        self.unit = str(about["unit"])
        self.cases: list[dict[str, Any]] = []
        self.worst: tuple[float, Scored, np.ndarray, np.ndarray] | None = None

    def add(self, case: Scored) -> None:
        """Score an image.

        Raises:
            InputError: no instances were loaded with it.
        """
        if case.instances is None:
            raise InputError(
                f"{case.id} has no `instances` to score objects by: load them in evaluate.yaml, LoadCased with keys "
                "[label, instances]"
            )
        true = np.where(case.reference == self.index, case.instances, 0)
        predicted = instances_from(case.prediction == self.index, smallest=self.smallest, seam=self.seam)
        scores = image_scores(predicted, true)
        self.cases.append({"id": case.id, "patient": case.patient} | scores)
        if true.ndim == 2 and (self.worst is None or scores["aji"] < self.worst[0]):
            self.worst = (scores["aji"], case, predicted, true)

    def table(self) -> dict[str, Any]:
        """All scores, ready for JSON: per image, and `summary`."""
        how = {"class": self.of, "smallest_px": self.smallest, "seam_px": self.seam}
        return how | {"cases": self.cases} | summary(self.cases, self.unit)

    def scalars(self) -> dict[str, float | None]:
        """Mean AJI and average precisions."""
        return dict(summary(self.cases, self.unit)["mean"])

    def picture(self) -> np.ndarray | None:
        """The image with the lowest AJI: itself, reference objects, ours in the same colours, mistakes."""
        if self.worst is None:
            return None
        score, case, predicted, true = self.worst
        crop = case.crop
        image, true, predicted = case.image[(slice(None), *crop)], true[crop], case.visible(predicted)[crop]
        wrong = mistakes(predicted, true)
        colours = {
            overlay.REFERENCE_COLOUR: wrong == MISSED,
            overlay.PREDICTION_COLOUR: wrong == ADDED,
            overlay.CONFUSED_COLOUR: wrong == MERGED,
        }
        sheet = overlay.panels(
            [
                (f"{case.id}  AJI {score:.3f}", overlay.grey(image)),
                ("objects of the reference", overlay.cells(image, counterparts(true, true))),
                ("ours, coloured as what they overlap", overlay.cells(image, counterparts(predicted, true))),
                ("blue lost, orange new, purple joined", overlay.tinted(image, colours)),
            ]
        )
        return overlay.captioned(sheet, *case.notes) if case.notes else sheet


def image_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | int]:
    """`SCORES` and `COUNTS` of one image's instance maps."""
    ap = average_precision(predicted, true)
    scores = {"aji": aggregated_jaccard(predicted, true)} | {AP[threshold]: value for threshold, value in ap.items()}
    return scores | {"ap_mean": float(np.mean(list(ap.values())))} | object_counts(predicted, true)


def summary(cases: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Means of image scores: of a unit's images first, then of the units, with intervals over the units.

    Args:
        cases: `patient` and what `image_scores` gives, of each image.
        unit: what `patient` holds: "patient", or "cluster" or "image" where no patient is known.

    Returns:
        `unit`, `units` (how many), `mean`, `interval_95`, `mean_over_images` (the Data Science Bowl's convention: every
        image counts the same) and `objects` (counts of all images together).
    """
    units: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in cases:
        units[case["patient"]].append(case)
    values = {score: [float(np.mean([c[score] for c in images])) for images in units.values()] for score in SCORES}
    return {
        "unit": unit,
        "units": len(units),
        "mean": {score: float(np.mean(values[score])) for score in SCORES},
        "interval_95": {score: bootstrap_interval(values[score]) for score in SCORES},
        "mean_over_images": {score: float(np.mean([case[score] for case in cases])) for score in SCORES},
        "objects": {count: sum(case[count] for case in cases) for count in COUNTS},
    }


def joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `InstanceScores.table` of several evaluations of different units as one.

    Raises:
        InputError: objects were not found in the same way.
    """
    hows = [{key: table[key] for key in ("class", "smallest_px", "seam_px", "unit")} for table in tables]
    if any(how != hows[0] for how in hows):
        raise InputError(f"objects that were found in different ways have no common mean: {hows}")
    cases = [case for table in tables for case in table["cases"]]
    return hows[0] | {"cases": cases} | summary(cases, hows[0]["unit"])


def lines(instances: Mapping[str, Any]) -> list[str]:
    """What a reader wants of `InstanceScores.table`, as lines of text."""
    objects, unit = instances["objects"], instances["unit"]
    found = [
        f"Objects of class {instances['class']}: {objects['reference']} in the reference, {objects['predicted']} "
        f"predicted, {objects['matched']} matched at IoU above 0.5; {objects['merged']} merged, "
        f"{objects['split']} split."
    ]
    for score, title in PRINTED.items():
        interval = instances["interval_95"][score]
        between = f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ", no interval"
        worst = min(case[score] for case in instances["cases"])
        found.append(f"{title}  {instances['mean'][score]:.3f}{between}, worst image {worst:.3f}")
    return [
        *found,
        f"Mean over {instances['units']} {unit}s, each the mean of its images; interval by bootstrap over them.",
    ]
