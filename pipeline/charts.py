"""Charts of an evaluation: reliability diagrams, and bars of subgroups with intervals; as pixels and as SVG.

Everything is told by shape and place, colour only repeats it: blue and orange of Okabe and Ito's palette, on white or,
in SVG, in the text colour of the page around it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, MARK, SHARES = "#111112", "#777778", "#0072B2", "#E69F00"
"""Text and lines; what stays in the background; what is measured; how much of it there is. INK is no colour that
anything else has, so that the SVG can say `currentColor` in its place."""

PIXELS_PER_INCH = 110

FEW_PIXELS = 100
"""Below that many a bin says little: its mark is hollow."""

LEAST_SHARE = 1e-6
"""Of the pixels, where the axis of their shares ends."""

LONGEST_NAME = 34
"""Letters of a group's name that are shown; a longer one loses its middle."""

SVG_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "overtile", "font.family": "sans-serif"}
"""Text stays text, to be read aloud and copied; the same figure is the same file."""


class Reliability(NamedTuple):
    """One reliability diagram."""

    title: str
    caption: str
    bins: Sequence[tuple[float, int, float, float]]
    """Per bin that has any: its middle, pixels, mean predicted and observed share."""


class Group(NamedTuple):
    """One row of bars: a subgroup, and per measure its mean with interval, None where there is none."""

    name: str
    members: int
    values: Sequence[tuple[float, tuple[float, float] | None] | None]


def pixels(figure: Figure) -> np.ndarray:
    """A figure drawn without a screen, (H, W, 3) uint8 on white."""
    figure.set_dpi(PIXELS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def svg(figure: Figure, description: str) -> str:
    """A figure as an `<svg>` element for a page, without background, its ink in the colour of the page's text.

    Args:
        figure: from this file.
        description: what a screen reader says of it.
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = io.StringIO()
    with mpl.rc_context(SVG_SETTINGS):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None, "Title": description})
    drawn = text.getvalue().replace(INK, "currentColor")
    return drawn[drawn.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def reliability(panels: Sequence[Reliability], *, columns: int, bins: int) -> Figure:
    """Reliability diagrams in a grid, each above the share of pixels in its bins.

    Args:
        panels: row by row.
        columns: of the grid.
        bins: of the probability, of equal width.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 5.0 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=(3, 1) * rows, sharex=True)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        _curve(axes[2 * row, column], panel)
        _shares(axes[2 * row + 1, column], panel, bins)
        axes[2 * row + 1, column].xaxis.set_tick_params(labelbottom=True)  # sharex hides it but in the last row
    return figure


def subgroup_bars(
    sections: Sequence[tuple[str, Sequence[Group]]], measures: Sequence[str], overall: Sequence[float | None], unit: str
) -> Figure:
    """Means of subgroups with their intervals as bars, a line each, under the name of their column.

    Args:
        sections: a column's name and its groups.
        measures: what the values are, a panel each.
        overall: mean over all, per measure: a dashed line.
        unit: what a group's `members` are.
    """
    lines = sum(1 + len(groups) for _, groups in sections)
    figure = Figure(figsize=(2.6 + 3.6 * len(measures), 1.1 + 0.3 * lines), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for index, (axes, measure) in enumerate(zip(panels, measures, strict=True)):
        if (mean := overall[index]) is not None:
            axes.axvline(mean, color=MUTED, linestyle="--", linewidth=1, zorder=0)
            axes.set_title(f"{measure}\ndashed: all, {mean:.3f}", fontsize="medium", color=INK)
        _bars(axes, sections, index)
        _tidy(axes, "x")
        axes.tick_params(axis="y", length=0)
    _names(panels[0], sections, unit)
    return figure


def _curve(axes: Axes, panel: Reliability) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
    if panel.bins:
        _, counts, predicted, observed = np.array(panel.bins).T
        axes.vlines(predicted, predicted, observed, color=SHARES, linewidth=5, alpha=0.6)  # the gap that ECE adds up
        few = counts < FEW_PIXELS
        axes.plot(predicted, observed, color=MARK, linewidth=1.2)
        axes.plot(predicted[~few], observed[~few], "o", color=MARK, markersize=5)
        axes.plot(predicted[few], observed[few], "o", color=MARK, markersize=6, markerfacecolor="none")
        if few.any():
            about = f"hollow: fewer than {FEW_PIXELS} pixels"
            axes.text(1, 0.01, about, ha="right", va="bottom", fontsize="small", color=INK)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_ylabel("observed share (dashed: as predicted)", color=INK)
    axes.set_title(f"{panel.title}\n{panel.caption}", fontsize="small", color=INK)
    _tidy(axes, "both")


def _shares(axes: Axes, panel: Reliability, bins: int) -> None:
    total = sum(count for _, count, _, _ in panel.bins)
    for middle, count, _, _ in panel.bins:
        axes.bar(middle, count / total, width=0.9 / bins, color=MARK, alpha=0.75)
    axes.set_yscale("log")
    axes.set(ylim=(LEAST_SHARE, 2))
    axes.set_yticks([1e-6, 1e-4, 1e-2, 1], ["10⁻⁶", "0.01 %", "1 %", "all"])
    axes.minorticks_off()
    axes.set_ylabel("pixels", color=INK)
    axes.set_xlabel("predicted probability", color=INK)
    _tidy(axes, "y")


def _bars(axes: Axes, sections: Sequence[tuple[str, Sequence[Group]]], index: int) -> None:
    lines = [line for _, groups in sections for line in (None, *groups)]  # a line for the column's name
    for place, group in enumerate(lines):
        if group is not None:
            _bar(axes, place, group.values[index])
    axes.use_sticky_edges = False  # else a bar's end is the axis
    axes.margins(x=0.08)


def _bar(axes: Axes, place: int, value: tuple[float, tuple[float, float] | None] | None) -> None:
    if value is None:
        where = axes.get_yaxis_transform()
        axes.text(0.02, place, "not defined", transform=where, va="center", fontsize="small", color=INK)
        return
    mean, interval = value
    if interval is not None:
        low, high = interval
        axes.barh(place, high - low, left=low, height=0.5, facecolor=(MARK, 0.45), edgecolor=MARK)
    axes.plot(mean, place, "D", color=INK, markersize=4.5)


def _names(axes: Axes, sections: Sequence[tuple[str, Sequence[Group]]], unit: str) -> None:
    """Column names and groups down the left side, as tick labels, so that the layout makes room for them."""
    names: list[str] = []
    heads = set()
    for column, groups in sections:
        heads.add(len(names))
        names += [_shortened(column), *(f"{_shortened(g.name)}  ({g.members} {unit}s)" for g in groups)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("bold" if place in heads else "normal")


def _shortened(name: str) -> str:
    keep = LONGEST_NAME - 1
    return (
        name
        if len(name) <= LONGEST_NAME
        else f"{name[: keep - keep // 2]}\N{HORIZONTAL ELLIPSIS}{name[-(keep // 2) :]}"
    )


def _tidy(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize="small")
    axes.grid(axis=grid, color=MUTED, alpha=0.25)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
