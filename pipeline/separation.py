"""How well an evaluation's cells are separated: at a threshold chosen on validation, and over all thresholds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import overlay
from pipeline.errors import InputError
from pipeline.metrics import bootstrap_interval
from pipeline.scoring import Scored
from pipeline.segments import (
    CUT,
    JOINED,
    counterparts,
    information_score,
    mistakes,
    rand_score,
    thinned_segments,
    true_cells,
)

THRESHOLDS = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)), 0.98, 0.99)
"""Of the membrane's probability: in steps of 0.05, finer at the ends, where a sure network has its gaps.
The challenge's code takes 0.0 to 1.0 in steps of 0.1."""

UNTUNED = 0.5
"""The threshold where none was chosen: the larger probability of two."""

HERE = "chosen on these sections, for the highest mean V_Rand"
VALIDATION = "chosen on validation, for the highest mean V_Rand"
BY_HAND = "given by hand"
NOT_TUNED = "default, not tuned"
"""Where a threshold may come from."""

PARTS = ("v_rand", "v_rand_split", "v_rand_merge", "v_info", "v_info_split", "v_info_merge")


class Threshold(NamedTuple):
    """A threshold of the membrane's probability and where it comes from; None: it is still to be chosen."""

    value: float | None
    source: str


class Section(NamedTuple):
    """What a picture of one section needs."""

    case: Scored
    truth: np.ndarray
    membrane: np.ndarray


def threshold_of(given: float | str | None, partition: str, evaluation: Mapping[str, Any]) -> Threshold:
    """The threshold of an evaluation; only validation may choose it.

    Args:
        given: a number, the path of a validation's evaluation.json, or None.
        partition: that is evaluated.
        evaluation: `checkpoint_sha256`, `patients_sha256` and `pixels_sha256` of this evaluation, which that file
            must share.

    Raises:
        InputError: the number is no probability; the file cannot be read or is not a validation of this checkpoint
            on this split, which chose a threshold.
    """
    if given is None:
        return Threshold(None, HERE) if partition == "validation" else Threshold(UNTUNED, NOT_TUNED)
    try:
        value = float(given)
    except ValueError:
        return Threshold(_chosen_in(Path(str(given)), evaluation), VALIDATION)
    if not 0 < value < 1:
        raise InputError(f"`threshold` is of a probability: give a number between 0 and 1, got {given}")
    return Threshold(value, BY_HAND)


def _chosen_in(file: Path, evaluation: Mapping[str, Any]) -> float:
    try:
        table = json.loads(file.read_text())
        partition, separation = table["partition"], table.get("separation") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: no evaluation.json to take `threshold` from, nor a number") from None
    if partition != "validation":
        raise InputError(
            f"{file}: a threshold is chosen on the validation partition, this is the {partition} partition"
        )
    split = "split of the manifest"
    for key, what in {"checkpoint_sha256": "checkpoint", "patients_sha256": split, "pixels_sha256": split}.items():
        if table.get(key) != evaluation[key]:
            raise InputError(f"{file}: is of another {what}; evaluate the validation partition with this one first")
    if separation.get("threshold_from") != HERE:
        raise InputError(f"{file}: chose no threshold; evaluate the validation partition without `threshold` first")
    return float(separation["threshold"])


def scores(membrane: np.ndarray, truth: np.ndarray, threshold: float) -> dict[str, float]:
    """The `PARTS` of one section whose membrane is where its probability is above the threshold.

    Args:
        membrane: (H, W) probability.
        truth: (H, W) int, from `pipeline.segments.true_cells`.
        threshold: of the probability.
    """
    segments = thinned_segments(membrane > threshold)
    values = (*rand_score(segments, truth), *information_score(segments, truth))
    return dict(zip(PARTS, values, strict=True))


class Separation:
    """Scores the sections of an evaluation one by one, at every threshold; a scorer of `pipeline.evaluate.CaseTable`.

    Args:
        class_names: class 0, the background, first.
        membrane: the class that separates the cells, whose probability is scored as `pipeline.segments` says.
        threshold: of that probability: a number, or the evaluation.json of the validation that chose it; None: choose
            it if this is the validation partition, else take 0.5.

    Raises:
        InputError: there is no such class.
    """

    name = "separation"
    picture_name = "worst_separation.png"

    def __init__(self, class_names: Sequence[str], *, membrane: str, threshold: float | str | None = None) -> None:
        if membrane not in class_names:
            raise InputError(f"`membrane` must be one of {', '.join(class_names)} or null, got {membrane!r}")
        self.membrane = membrane
        self.index = list(class_names).index(membrane)
        self.given = threshold
        self.threshold = Threshold(UNTUNED, NOT_TUNED)
        self.cases: list[dict[str, Any]] = []
        self.worst: dict[float, tuple[float, Section]] = {}

    def start(self, about: Mapping[str, Any]) -> None:
        """Begin an evaluation, whose `partition`, checkpoint and split say which threshold may be used.

        Raises:
            InputError: as for `threshold_of`.
        """
        self.threshold = threshold_of(self.given, about["partition"], about)
        self.cases, self.worst = [], {}

    def add(self, case: Scored) -> None:
        """Score a section.

        Raises:
            InputError: it is a volume, or has no probabilities.
        """
        if case.reference.ndim != 2:
            raise InputError("cells are scored section by section, and these are volumes: set `membrane` to null")
        if case.probabilities is None:
            raise InputError(
                "`membrane` needs `probabilities`, which the postprocessing must copy before it discretises"
            )
        membrane = self._membrane(case.probabilities)
        truth = true_cells(case.reference == self.index)
        at = {threshold: scores(membrane, truth, threshold) for threshold in self._thresholds()}
        self.cases.append({"id": case.id, "patient": case.patient, "at": at})
        section = Section(case, truth, membrane)
        for threshold, values in at.items():
            if values["v_rand"] < self.worst.get(threshold, (np.inf,))[0]:
                self.worst[threshold] = (values["v_rand"], section)

    def table(self) -> dict[str, Any]:
        """All scores, ready for JSON: per section, their means with intervals, and the mean at every threshold."""
        curve = [
            {"threshold": at, "v_rand": self._mean(at, "v_rand"), "v_info": self._mean(at, "v_info")}
            for at in THRESHOLDS
        ]
        chosen = self._threshold()
        return {
            "membrane": self.membrane,
            "threshold": chosen,
            "threshold_from": self.threshold.source,
            "cases": [
                {"id": case["id"], "patient": case["patient"]} | _without_nan(case["at"][chosen]) for case in self.cases
            ],
            "unit": "patient" if self._several() else "section",
            "mean": {part: self._mean(chosen, part) for part in PARTS},
            "interval_95": {part: bootstrap_interval(self._units(chosen, part)) for part in ("v_rand", "v_info")},
            "interval_note": self._note(),
            "challenge_convention": {
                "note": "the highest mean over all thresholds, each score at its own, looked up on these sections",
                **_highest(curve, "v_rand"),
                **_highest(curve, "v_info"),
            },
            "thresholds": curve,
        }

    def scalars(self) -> dict[str, float | None]:
        """The threshold, and mean V_Rand and V_Info at it and in the challenge's convention."""
        table = self.table()
        values = {"membrane_threshold": table["threshold"]}
        for score in ("v_rand", "v_info"):
            values[score] = table["mean"][score]
            values[f"{score}_challenge_convention"] = table["challenge_convention"][score]
        return values

    def picture(self) -> np.ndarray | None:
        """The section with the lowest V_Rand: image, true cells, segments in the colour of their cell, mistakes."""
        chosen = self._threshold()
        if chosen not in self.worst:
            return None
        score, (case, truth, membrane) = self.worst[chosen]
        crop = case.crop
        image, truth = case.image[(slice(None), *crop)], truth[crop]
        segments = case.visible(thinned_segments(membrane > chosen))[crop]
        wrong = mistakes(segments, truth)
        colours = {overlay.REFERENCE_COLOUR: wrong == CUT, overlay.PREDICTION_COLOUR: wrong == JOINED}
        sheet = overlay.panels(
            [
                (f"{case.id}  V_Rand {score:.3f}", overlay.grey(image)),
                ("cells of the reference", overlay.cells(image, truth)),
                (
                    "ours, coloured as the cell they lie in",
                    overlay.cells(image, counterparts(segments, truth)[segments]),
                ),
                ("blue cut off, orange joined", overlay.tinted(image, colours)),
            ]
        )
        return overlay.captioned(sheet, *case.notes) if case.notes else sheet

    def _membrane(self, probabilities: np.ndarray) -> np.ndarray:
        if len(probabilities) > 1:
            return np.asarray(probabilities[self.index])
        return np.asarray(probabilities[0] if self.index else 1 - probabilities[0])

    def _thresholds(self) -> list[float]:
        return sorted({*THRESHOLDS, *([] if self.threshold.value is None else [self.threshold.value])})

    def _threshold(self) -> float:
        """The threshold of the scores; where it is still to be chosen, of equal ones the nearest to `UNTUNED`."""
        if self.threshold.value is not None:
            return self.threshold.value
        means = {at: self._mean(at, "v_rand") for at in THRESHOLDS}
        return max(THRESHOLDS, key=lambda at: (means[at] or 0.0, -abs(at - UNTUNED)))

    def _units(self, threshold: float, part: str) -> list[float]:
        """One value per patient, the mean of its sections; where there is one patient, one per section."""
        patients: dict[str, list[float]] = defaultdict(list)
        for case in self.cases:
            if not np.isnan(case["at"][threshold][part]):
                patients[case["patient"]].append(case["at"][threshold][part])
        if not self._several():
            return [value for values in patients.values() for value in values]
        return [float(np.mean(values)) for values in patients.values()]

    def _several(self) -> bool:
        """Whether there are several patients: then they are the units, else the sections of the one."""
        return len({case["patient"] for case in self.cases}) > 1

    def _mean(self, threshold: float, part: str) -> float | None:
        units = self._units(threshold, part)
        return float(np.mean(units)) if units else None

    def _note(self) -> str:
        units = len(self._units(UNTUNED, "v_rand"))
        if self._several():
            return f"bootstrap of the mean over {units} patients; too narrow with fewer than about 30"
        return (
            f"bootstrap of the mean over {units} sections of one patient, which are alike and few: "
            "narrower than the truth, and silent about any other patient"
        )


def lines(separation: Mapping[str, Any]) -> list[str]:
    """What a reader wants of `Separation.table`, as lines of text."""
    convention = separation["challenge_convention"]
    found = [
        f"Cells separated where the probability of {separation['membrane']} is above {separation['threshold']:g} "
        f"({separation['threshold_from']}):"
    ]
    for title, score in (("V_Rand", "v_rand"), ("V_Info", "v_info")):
        values = [case[score] for case in separation["cases"] if case[score] is not None]
        if not values:
            found.append(f"{title}  no section has a true cell")
            continue
        interval = separation["interval_95"][score]
        between = f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ", no interval"
        most = f"{convention[score]:.3f} at {convention[f'{score}_threshold']:g}"
        found.append(
            f"{title}  {separation['mean'][score]:.3f}{between}, worst section {min(values):.3f}; "
            f"challenge convention {most}"
        )
    return [
        *found,
        f"Interval: {separation['interval_note']}.",
        f"Challenge convention: {convention['note']}.",
    ]


def _highest(curve: Sequence[Mapping[str, Any]], score: str) -> dict[str, Any]:
    best = max(curve, key=lambda point: point[score] or 0.0)
    return {score: best[score], f"{score}_threshold": best["threshold"]}


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if np.isnan(value) else value for key, value in values.items()}
