"""The curves of a training: loss with its parts, validation per class, learning rate, the gradient's length."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric -> its points, (epoch, value)."""

LOSSES = {"loss": "loss", "loss_dice": "its Dice part", "loss_ce": "its cross-entropy part"}
OPTIMISATION = {"learning_rate": "learning rate", "gradient_norm": "gradient norm, before clipping"}
VALIDATION, MEAN, CLASS = "val_", "val_mean_dice", "val_dice_"
"""How the names of the validation's metrics begin; the mean that the best epoch goes by; the metrics of classes."""

STYLES = (
    ("black", "-"),
    ("#0072B2", "--"),
    ("#D55E00", ":"),
    ("#009E73", "-."),
    ("#CC79A7", (0, (6, 1, 1, 1, 1, 1))),
    ("#E69F00", (0, (1, 3))),
    ("#56B4E9", (0, (8, 3))),
)
"""Okabe and Ito's palette, and a dash pattern each, so that no colour need be told from another."""

MOST_CLASSES = len(STYLES) - 1
"""Classes that are drawn: with more, those that are lowest in the end."""

MARKED_POINTS = 30
"""Curves of no more points show each of them; a single one would otherwise not be seen."""

INSIDE = 3
"""Legends of more curves stand beside the panel, not in it."""

PANEL_INCHES = (4.5, 3.0)
PIXELS_PER_INCH = 110


def is_drawn(name: str) -> bool:
    """Whether a metric has a place among the curves."""
    return name in LOSSES or name in OPTIMISATION or name.startswith(VALIDATION)


def record(history: dict[str, list[tuple[int, float]]], values: Mapping[str, float], epoch: int) -> None:
    """Add an epoch's metrics to a history, those that are drawn; what it has of that epoch is replaced."""
    for name in filter(is_drawn, values):
        history[name] = [point for point in history.get(name, ()) if point[0] != epoch] + [(epoch, values[name])]


def draw(history: History, best_epoch: int | None = None) -> np.ndarray:
    """The curves as a picture.

    Args:
        history: of a training's metrics; those that are no number leave a gap, unknown ones are passed over.
        best_epoch: whose weights were kept, marked in the validation's panel.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = FigureCanvasAgg(figure(history, best_epoch))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def svg(history: History, best_epoch: int | None = None) -> str:
    """The same as an `<svg>` element whose text is text: to be searched, read aloud and printed at any size."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "learning_curves"}):
        figure(history, best_epoch).savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def figure(history: History, best_epoch: int | None = None) -> Figure:
    """The same as a figure of matplotlib; a panel without a curve is left out."""
    panels = [panel for panel in _panels(history) if panel[1]]
    rows, columns = max(1, math.ceil(len(panels) / 2)), 2
    width, height = PANEL_INCHES
    drawn = Figure(figsize=(columns * width, rows * height), dpi=PIXELS_PER_INCH, layout="constrained")
    grid = drawn.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, curves) in zip(grid, panels, strict=False):
        _panel(axes, title, {label: history[name] for name, label in curves.items()})
        first = next(iter(curves))
        if first.startswith(VALIDATION) and best_epoch in dict(history[first]):
            _mark(axes, int(best_epoch), dict(history[first])[best_epoch])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        grid[0].text(0.5, 0.5, "no epoch has been completed", ha="center", va="center")
    return drawn


def _panels(history: History) -> list[tuple[str, dict[str, str]]]:
    """Title, and metric -> label of its curves."""
    losses = {name: label for name, label in LOSSES.items() if history.get(name)}
    if len(losses) == 2:  # a loss that is its own only part
        losses = {"loss": "loss"}
    title, validation = _validation(history)
    alone = [(label, {name: label}) for name, label in OPTIMISATION.items() if history.get(name)]
    return [("loss of the training", losses), (title, validation), *alone]


def _validation(history: History) -> tuple[str, dict[str, str]]:
    names = [name for name, points in history.items() if name.startswith(VALIDATION) and points]
    classes = [name for name in names if name.startswith(CLASS)]
    rest = sorted((name for name in names if name not in classes), key=lambda name: (name != MEAN, name))
    if len(classes) == 1 and MEAN in rest:  # the mean over one class is that class
        return f"validation: Dice of {_class(classes[0])}", {MEAN: "mean Dice"}
    lowest = sorted(classes, key=lambda name: history[name][-1][1])[: MOST_CLASSES + 1 - len(rest)]
    some = "" if len(lowest) == len(classes) else f", the {len(lowest)} lowest of {len(classes)} classes"
    labels = {name: "mean Dice" if name == MEAN else name.removeprefix(VALIDATION) for name in rest[: len(STYLES)]}
    return f"validation{some}", labels | {name: _class(name) for name in classes if name in lowest}


def _class(name: str) -> str:
    return name.removeprefix(CLASS).replace("_", " ")


def _panel(axes: Axes, title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    for (label, points), (colour, dashes) in zip(curves.items(), STYLES, strict=False):
        epochs, values = np.array(points, float).T
        mark = "o" if len(points) <= MARKED_POINTS else ""
        axes.plot(epochs, values, color=colour, linestyle=dashes, linewidth=1.8, marker=mark, markersize=3, label=label)
    axes.set_title(title, fontsize="medium", loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if title == OPTIMISATION["gradient_norm"] and min(value for _, value in points) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(curves) > 1:
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(curves) > INSIDE else {}
        axes.legend(fontsize="small", framealpha=0.8, handlelength=3.5, **beside)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def _mark(axes: Axes, epoch: int, value: float) -> None:
    """The epoch whose weights were kept."""
    axes.axvline(epoch, color="0.45", linewidth=1, zorder=0)
    axes.plot(epoch, value, "o", markersize=9, markerfacecolor="none", markeredgecolor="black")
    axes.set_title(f"{axes.get_title(loc='left')}; best in epoch {epoch}: {value:.3f}", fontsize="medium", loc="left")
