"""How far an evaluation's probabilities can be trusted: expected calibration error per patient, reliability diagram."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import charts
from pipeline.errors import DataError, InputError
from pipeline.metrics import bootstrap_interval
from pipeline.reliability import BINS, MARGIN, NEAR, OBSERVED, PIXELS, PREDICTED, ece, excess, near_foreground, tally
from pipeline.scoring import Scored

CONFIDENCE = "confidence"
"""The row of the predicted class: is it right as often as its probability says? ECE as Guo et al. 2017 define it."""

EVERYWHERE, NEAR_FOREGROUND = "everywhere", "near_foreground"
REGIONS = {EVERYWHERE: "whole image", NEAR_FOREGROUND: "near the foreground"}
"""Where pixels are counted, and in words."""

NOTE = (
    f"Expected calibration error over {BINS} bins: per {{unit}}, all pixels of its cases together, then the mean over "
    f"{{unit}}s; `pooled` takes the pixels of all at once. `{CONFIDENCE}`: the probability of the predicted class "
    "against how often it is right. A class: its own probability against how often it is there. Most pixels are "
    "background far from everything, easy, and in one bin that outweighs all others; so the same stands beside it "
    f"within {MARGIN} pixels of the foreground of reference or prediction (in volumes as far as that many of the "
    "finest voxels, along every axis)."
)


class Calibration:
    """Scores the probabilities of an evaluation; a scorer of `pipeline.evaluate.CaseTable`.

    Only counts per bin and patient are kept, so that it does not matter how many pixels there are.

    Args:
        class_names: class 0, the background, first; it has no row of its own.
    """

    name = "calibration"
    picture_name = "calibration.png"

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.start({"unit": "patient"})

    def start(self, about: Mapping[str, Any]) -> None:
        """Begin an evaluation whose scores are averaged over `unit`."""
        self.unit = str(about["unit"])
        self.patients: dict[str, Any] = defaultdict(float)

    def add(self, case: Scored) -> None:
        """Count a case's pixels.

        Raises:
            InputError: it has no probabilities.
            DataError: they are none.
        """
        if case.probabilities is None:
            raise InputError(
                "calibration needs `probabilities`, which the postprocessing must copy before it discretises"
            )
        near = near_foreground(case.prediction, case.reference, case.spacing_mm)
        try:
            counts = tally(case.probabilities, case.prediction, case.reference, near, len(self.class_names))
        except ValueError as error:
            raise DataError(f"{case.id}: {error}; the postprocessing must end in softmax or sigmoid") from None
        self.patients[case.patient] = self.patients[case.patient] + counts

    def table(self) -> dict[str, Any]:
        """Per region and row the ECE with its interval and the bins of the diagram, ready for JSON."""
        rows = [CONFIDENCE, *self.class_names[1:]]
        regions = {
            EVERYWHERE: {patient: counts.sum(1) for patient, counts in self.patients.items()},
            NEAR_FOREGROUND: {patient: counts[:, NEAR] for patient, counts in self.patients.items()},
        }
        by_patient = [
            {"patient": patient}
            | {
                region: dict(zip(rows, map(_or_none, ece(counts[patient])), strict=True))
                for region, counts in regions.items()
            }
            for patient in sorted(self.patients)
        ]
        pooled = {region: np.sum(list(counts.values()), axis=0) for region, counts in regions.items()}
        bins = {
            region: {row: counts[n] for n, row in enumerate(rows)} for region, counts in pooled.items() if self.patients
        }
        return _table(self.unit, rows, by_patient, bins)

    def scalars(self) -> dict[str, float | None]:
        """`ece` of the predicted class, and of every class; each everywhere and near the foreground."""
        table, found = self.table(), {}
        for region, prefix in ((EVERYWHERE, "ece"), (NEAR_FOREGROUND, "ece_near_foreground")):
            for row, score in table[region].items():
                found[prefix if row == CONFIDENCE else f"{prefix}_{row}"] = score["ece"]
        return found

    def picture(self) -> np.ndarray | None:
        """The reliability diagrams, (H, W, 3) uint8."""
        return charts.pixels(diagram(self.table())) if self.patients else None


def joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `Calibration.table` of several evaluations of different units as one.

    Raises:
        InputError: pixels were not counted in the same way.
    """
    first = tables[0]
    if any(table[key] != first[key] for table in tables for key in ("unit", "rows", "margin")):
        raise InputError("calibrations of different classes, units or margins have no common mean")
    bins = {
        region: {
            row: np.sum([_counts(table[region][row]["bins"]) for table in tables], axis=0) for row in first["rows"]
        }
        for region in REGIONS
    }
    return _table(first["unit"], first["rows"], [row for table in tables for row in table["patients"]], bins)


def diagram(table: Mapping[str, Any]) -> charts.Figure:
    """The reliability diagrams of `Calibration.table`: a row for the predicted class and for each class, by region."""
    panels = []
    for row in table["rows"]:
        what = "predicted class" if row == CONFIDENCE else row
        for region, where in REGIONS.items():
            score = table[region][row]
            filled = [b for b in score["bins"] if b["pixels"]]
            bins = [((b["from"] + b["to"]) / 2, b["pixels"], b["predicted"], b["observed"]) for b in filled]
            panels.append(charts.Reliability(f"{what}, {where}", _in_words(row, score), bins))
    return charts.reliability(panels, columns=len(REGIONS), bins=BINS)


IN_SHORT = (
    "Near the foreground: within {margin} pixels of it; elsewhere lies easy background, which flatters. "
    "How it is counted: `note` of `calibration` in the table."
)
"""What the terminal says of a table of calibration."""


def lines(table: Mapping[str, Any]) -> list[str]:
    """What a reader wants of `Calibration.table`, as lines of text."""
    found = ["Calibration, expected calibration error (ECE):"]
    for row in table["rows"]:
        what = "predicted class" if row == CONFIDENCE else row
        found += [
            f"{what}, {where}: {_in_words(row, table[region][row]).replace(chr(10), '; ')}"
            for region, where in REGIONS.items()
        ]
    return [*found, IN_SHORT.format(margin=table["margin"])]


def _table(
    unit: str, rows: Sequence[str], patients: Sequence[Mapping[str, Any]], bins: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    def score(region: str, row: str) -> dict[str, Any]:
        values = [patient[region][row] for patient in patients if patient[region][row] is not None]
        counts = bins[region][row] if region in bins else np.zeros((BINS, 3))
        return {
            "ece": float(np.mean(values)) if values else None,
            "interval_95": bootstrap_interval(values),
            "patients": len(values),
            "pooled": _or_none(ece(counts)),
            "excess": _or_none(excess(counts)),
            "pixels": int(counts[:, PIXELS].sum()),
            "bins": [_bin(number, its) for number, its in enumerate(counts)],
        }

    return {
        "note": NOTE.format(unit=unit),
        "unit": unit,
        "rows": list(rows),
        "margin": MARGIN,
        **{region: {row: score(region, row) for row in rows} for region in REGIONS},
        "patients": list(patients),
    }


def _bin(number: int, counts: np.ndarray) -> dict[str, Any]:
    pixels = int(counts[PIXELS])
    shares = {"predicted": float(counts[PREDICTED]), "observed": float(counts[OBSERVED])}
    return {"from": number / BINS, "to": (number + 1) / BINS, "pixels": pixels} | {
        what: total / pixels if pixels else None for what, total in shares.items()
    }


def _counts(bins: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(BINS, 3), back from `_bin`."""
    return np.array([[b["pixels"], *(b["pixels"] * (b[s] or 0.0) for s in ("predicted", "observed"))] for b in bins])


def _in_words(row: str, score: Mapping[str, Any]) -> str:
    if score["ece"] is None:
        return "no pixel"
    interval = score["interval_95"]
    between = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    too = ("too sure", "not sure enough") if row == CONFIDENCE else ("too high", "too low")
    side = too[score["excess"] <= 0]
    off = f"on average {side} by {abs(score['excess']):.4f}"
    return f"ECE {score['ece']:.4f}{between}\npooled {score['pooled']:.4f}; {off}"


def _or_none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
