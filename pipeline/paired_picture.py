"""The picture of a comparison: every patient's score with each variant, and the paired differences with interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.atomic import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
"""Of the variants: Okabe and Ito's palette, and a shape each, so that no colour need be told from another."""

MOST_ROWS = 6
"""Measures that are shown, the first ones. IoU is not: it falls and rises with Dice."""

JITTER = 0.12
"""Width over which the dots of a difference are spread, so that equal ones are seen."""

PIXELS_PER_INCH = 130


def save(found: Mapping[str, Any], path: Path) -> None:
    """Draw Dice of every class and what else the evaluation shows, a row each, and write a PNG.

    Args:
        found: from `pipeline.paired.comparison`, with `headline` and `unit`.
        path: of the picture.
    """
    shown = [name for name in found["headline"] if "iou" not in name][:MOST_ROWS] or found["headline"][:1]
    others = len(found["means"]) - 1
    figure = Figure(figsize=(4.5 + 1.6 * (2 * others + 1), 0.4 + 3.6 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(others + 1, others))
    for (left, right), name in zip(axes, shown, strict=True):
        _scores(left, found, name)
        left.set_ylabel(name)
        _differences(right, found, name)
        right.set_ylabel(f"difference in {name}")
    axes[0, 0].set_title(f"{len(found['patients'])} {found['unit']}s, a line each", fontsize="medium")
    axes[0, 1].set_title("Differences, mean with\n95 % interval", fontsize="medium")
    FigureCanvasAgg(figure)  # draws without a screen
    with atomic(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=PIXELS_PER_INCH)


def _scores(axes: Axes, found: Mapping[str, Any], measure: str) -> None:
    variants = list(found["means"])
    values = np.array([[row[v].get(measure) for v in variants] for row in found["patients"]], float)  # None -> NaN
    axes.plot(range(len(variants)), values.T, color="0.75", linewidth=1, zorder=1)
    for place in range(len(variants)):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.scatter(np.full(len(values), place), values[:, place], s=28, zorder=2, color=colour, marker=marker)
    axes.set_xticks(range(len(variants)), variants)
    axes.set_xlim(-0.4, len(variants) - 0.6)
    _tidy(axes)


def _differences(axes: Axes, found: Mapping[str, Any], measure: str) -> None:
    rows = [row for row in found["differences"] if row["measure"] == measure]
    axes.axhline(0, color="0.4", linewidth=1)
    for place, row in enumerate(rows):
        values = sorted(row["by_patient"].values())
        spread = np.resize((-1, 0, 1), len(values)) * JITTER
        axes.scatter(place + spread, values, s=22, facecolors="none", edgecolors="0.45")
        if row["mean"] is not None:
            low, high = row["interval"] or (row["mean"], row["mean"])
            axes.plot([place + 0.3] * 2, [low, high], color="black", linewidth=2)
            axes.plot(place + 0.3, row["mean"], "o", color="black", markersize=7)
    axes.set_xticks(range(len(rows)), [f"{row['first']} - {row['second']}" for row in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
