"""The picture of the gate: a dot per sealed patient where the new model gains or loses, the bound, and the margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.charts import INK, MARK, MUTED, svg
from pipeline.gate_words import signed
from pipeline.report_charts import embedded

BINS = 60
"""Of the width, in which dots that would hide each other are stacked."""

STEP, MOST = 0.07, 0.34
"""Height of a stack's dots above each other, and of the highest stack above and below its line."""


def picture(classes: Sequence[Mapping[str, Any]], name: str = "gate") -> Markup | None:
    """Differences of every class as part of a page; None where no patient has any.

    Args:
        classes: from `gate.Decision.as_json()`.
        name: a word that no other chart of the page has.
    """
    drawn = [one for one in classes if one["by_patient"]]
    if not drawn:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.95 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(drawn):
        _class(axes, place, one)
    axes.axvline(0, color=MUTED, linewidth=1, zorder=0)
    axes.set_yticks(range(len(drawn)), [_label(one) for one in drawn])
    axes.set_ylim(len(drawn) - 0.45, -0.55)
    axes.set_xlabel("new \N{MINUS SIGN} deployed, Dice of a patient", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize="small")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.06)
    title = "Differences between the two models, a dot per sealed patient"
    return embedded(svg(figure, title), name, title=title, told=" ".join(told(one) for one in drawn))


def told(one: Mapping[str, Any]) -> str:
    """A class of the picture in words."""
    values = list(one["by_patient"].values())
    beyond = sum(value < -one["margin"] for value in values)
    bound = "" if one["lower"] is None else f", lower bound {signed(one['lower'])}"
    return (
        f"{one['name']}: {len(values)} patients from {signed(min(values))} to {signed(max(values))}, "
        f"mean {signed(one['difference'])}{bound}, margin {signed(-one['margin'])}; {beyond} of them lose more than "
        "the margin."
    )


def stacked(values: np.ndarray) -> np.ndarray:
    """How far above or below its line each dot stands, (n,): those that are alike one above the other.

    Example:
        >>> [round(float(height), 2) for height in stacked(np.array([0.0, 0.0, 0.0, 1.0]))]
        [0.0, 0.07, -0.07, 0.0]
    """
    width = np.ptp(values) / BINS or 1.0
    seen: dict[int, int] = {}
    heights = []
    for place in np.floor((values - values.min()) / width).astype(int):
        number = seen[place] = seen.get(place, -1) + 1
        heights.append((number + 1) // 2 * (1 if number % 2 else -1))
    tallest = max(1.0, max(map(abs, heights)) * STEP / MOST)
    return np.array(heights) * STEP / tallest


def _class(axes: Axes, place: int, one: Mapping[str, Any]) -> None:
    values = np.array(sorted(one["by_patient"].values()))
    axes.plot(values, place + stacked(values), "o", color=MARK, markersize=4, alpha=0.7, markeredgewidth=0)
    axes.plot([-one["margin"]] * 2, [place - 0.42, place + 0.42], color=INK, linestyle="--", linewidth=1.4)
    if one["lower"] is not None:
        axes.plot([one["lower"], one["difference"]], [place, place], color=INK, linewidth=1.6)
        axes.plot([one["lower"]] * 2, [place - 0.16, place + 0.16], color=INK, linewidth=1.6)
    axes.plot(one["difference"], place, "D", color=INK, markersize=5)


def _label(one: Mapping[str, Any]) -> str:
    name = one["name"] if len(one["name"]) <= 22 else f"{one['name'][:21]}\N{HORIZONTAL ELLIPSIS}"
    return f"{name}\n{len(one['by_patient'])} patients"
