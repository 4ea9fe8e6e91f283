"""The picture of a fingerprint: sizes, spacings, intensities and amounts of the classes, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.atomic import atomic
from pipeline.case_statistics import PERCENTILES
from pipeline.cautions import axis_names
from pipeline.fingerprint import Fingerprint
from pipeline.paired_picture import COLOURS, PIXELS_PER_INCH

BINS = 20
"""Bars of a histogram, at most."""

MOST_CHANNELS = 4
"""Channels that are drawn, the first ones."""

MOST_CLASSES = 12
"""Classes that are drawn, the first ones."""

WIDE_RANGE = 50
"""Times between the brightest and the dimmest case's median intensity or between two amounts, from which the axis is
logarithmic."""

SAME = 1e-4
"""Relative difference below which values are drawn as one."""

JITTER = 0.28
"""Width over which the dots of a class are spread, so that equal ones are seen."""

GOLDEN = 0.618034
"""Of the way round, from one dot to the next: they spread evenly however many there are."""


def save(found: Fingerprint, path: Path) -> None:
    """Draw a fingerprint and write a PNG. It shows single cases, so it stays at the site.

    Args:
        found: the fingerprint.
        path: of the picture.
    """
    names = found.classes[1 : 1 + MOST_CLASSES]
    channels = found.channels[:MOST_CHANNELS]
    figure = Figure(figsize=(11, 13 if names else 9.5), layout="constrained")
    rows: Any = figure.subfigures(4 if names else 3, 1, height_ratios=[1, 1, 1.5, 1.3][: 4 if names else 3])
    about = "cases of the training partition" if found.partition == "training" else "cases, not split"
    figure.suptitle(f"{found.manifest}: {len(found.cases)} {about}", fontsize="large")
    _histograms(rows[0], found.sizes, "size", "voxels" if found.spatial_dims == 3 else "px", "0.45")
    _histograms(rows[1], found.spacings_mm, "spacing", "mm", COLOURS[0])
    for number, axes in enumerate(np.atleast_1d(rows[2].subplots(1, len(channels)))):
        _intensities(axes, found, number)
    if names:
        _amounts(rows[3].subplots(), found, names)
    FigureCanvasAgg(figure)  # draws without a screen
    with atomic(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=PIXELS_PER_INCH)


def _histograms(row: Any, values: np.ndarray, what: str, unit: str, colour: str) -> None:
    """One histogram per axis of `values`, (cases, axes)."""
    dims = values.shape[1]
    for axis, (axes, name) in enumerate(zip(row.subplots(1, dims), axis_names(dims), strict=True)):
        column = values[:, axis]
        axes.set_title(f"{what.capitalize()} along {name}", fontsize="medium")
        axes.set_xlabel(unit)
        axes.set_ylabel("cases")
        if not len(column):
            axes.text(0.5, 0.5, "unknown", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
            continue
        axes.hist(column, _bins(column), color=colour, edgecolor="white", linewidth=0.5)
        middle = float(np.median(column))
        axes.axvline(middle, color="black", linewidth=1.5)
        axes.set_title(f"{what.capitalize()} along {name}, median {middle:.4g} {unit}", fontsize="medium")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        _tidy(axes)


def _bins(column: np.ndarray) -> np.ndarray:
    """Edges of the bars: around whole numbers where all values are; one bar of a readable width where all are equal."""
    low, high = float(column.min()), float(column.max())
    if high - low < SAME * max(abs(high), 1):
        return np.array([low * 0.9 - 0.01, low * 0.97, low * 1.03, low * 1.1 + 0.01])
    if (column == np.round(column)).all():
        width = -(-(high - low + 1) // BINS)
        return np.arange(low - 0.5, high + width + 0.5, width)
    return np.linspace(low, high, BINS + 1)


def _intensities(axes: Axes, found: Fingerprint, channel: int) -> None:
    """A curve through the percentiles of every case, and that of the foreground of all."""
    curves = np.array([case.intensities[channel].percentiles for case in found.cases])
    axes.plot(range(len(PERCENTILES)), curves.T, color=COLOURS[0], linewidth=0.8, alpha=max(0.15, 1 / len(curves)))
    axes.plot(range(len(PERCENTILES)), np.median(curves, axis=0), "k-o", markersize=4, label="median of the cases")
    if found.foreground:
        pooled = found.foreground[channel].percentiles
        axes.plot(range(len(PERCENTILES)), pooled, "--s", color=COLOURS[1], markersize=4, label="foreground of all")
    brightest = curves[:, -1]
    if brightest.min() > 0 and brightest.max() > WIDE_RANGE * brightest.min():
        axes.set_yscale("symlog", linthresh=max(1e-6, float(brightest.min()) / 10))
    axes.set_xticks(range(len(PERCENTILES)), [f"{point:g}" for point in PERCENTILES])
    axes.set_xlabel("percentile of a case's voxels")
    axes.set_ylabel("intensity")
    axes.set_title(f"{found.channels[channel]}: a line per case", fontsize="medium")
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    _tidy(axes)


def _amounts(axes: Axes, found: Fingerprint, names: list[str]) -> None:
    """A dot per case and class, and a bar at the median; without a spacing in voxels."""
    known = all(case.spacing_mm is not None for case in found.cases)
    unit = ("ml" if found.spatial_dims == 3 else "mm\u00b2") if known else "voxels"
    everything = []
    for place, name in enumerate(names):
        labelled = [case for case in found.cases if case.voxels is not None]
        values = [(case.amount(name) if known else (case.voxels or {})[name]) or 0.0 for case in labelled]
        there = sorted(value for value in values if value)
        spread = JITTER * (2 * (GOLDEN * np.arange(len(there)) % 1) - 1)
        axes.scatter(place + spread, there, s=12, alpha=0.5, color=COLOURS[place % 6])
        if there:
            axes.plot([place - 0.35, place + 0.35], [np.median(there)] * 2, color="black", linewidth=2)
        everything += there
    if everything and max(everything) > WIDE_RANGE * min(everything):
        axes.set_yscale("log")
    elif everything:
        axes.set_ylim(0, 1.08 * max(everything))
    counts = [sum(bool((case.voxels or {}).get(name)) for case in found.cases) for name in names]
    axes.set_xticks(range(len(names)), [f"{n}\nin {count} cases" for n, count in zip(names, counts, strict=True)])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(unit)
    axes.set_title("Amount of each class: a dot per case that has it, a bar at their median", fontsize="medium")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
