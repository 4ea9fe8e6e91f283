"""Small charts as inline SVG: coloured by the page's style, fit for print, and told in words for screen readers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from markupsafe import Markup

from pipeline.report_words import figure

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 150, 28, 40
"""Units of the viewBox; the page scales it. To the right stand the names of the lines."""

STEPS = (1, 2, 2.5, 5, 10)
"""Round numbers for the marks of an axis."""

REFERENCE = re.compile(r"(?<=#)[mp][0-9a-f]{10}\b")
"""How an SVG of matplotlib's refers to a marker or a clipping path of its own."""

LONG_NUMBER = re.compile(r"(\d\.\d\d)\d+")
"""A hundredth of a point is enough."""

JOINS = Markup('stroke-linejoin="round" stroke-linecap="butt"')
"""What matplotlib says in a style sheet."""

NEAR = 16
"""Units that two names of lines keep apart."""


def lines(
    series: Mapping[str, Points], *, title: str, told: str, x_name: str, y_name: str, mark: float | None = None
) -> Markup:
    """Lines over one axis, each with its name at its end and dashes of its own.

    Args:
        series: name -> (x, y), in order; a line without points is left out.
        title: of the picture.
        told: what is to be seen, in words and figures.
        x_name: of the axis.
        y_name: of the axis.
        mark: x at which an upright line stands.
    """
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return Markup("")
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    across, up = _axis(min(xs), max(xs), LEFT, WIDTH - RIGHT), _axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, x_name, y_name)]
    if mark is not None:
        x = across.place(mark)
        parts.append(Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, TOP, HEIGHT - BOTTOM))
    for number, points in enumerate(drawn.values()):
        path = " ".join(f"{across.place(x)},{up.place(y)}" for x, y in points)
        parts.append(Markup('<polyline class="line line{}" points="{}"/>').format(number % 4, path))
        if len(points) == 1:
            x, y = (axis.place(value) for axis, value in zip((across, up), points[0], strict=True))
            parts.append(Markup('<circle class="dot line{}" cx="{}" cy="{}" r="3"/>').format(number % 4, x, y))
    parts += _names({name: up.place(points[-1][1]) for name, points in drawn.items()})
    return figure_of(parts, title=title, told=told)


def figure_of(parts: Sequence[Markup], *, title: str, told: str, height: float = HEIGHT) -> Markup:
    """An SVG of parts, with its title and what it shows."""
    return Markup(
        '<svg class="chart ours" role="img" viewBox="0 0 {} {}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(WIDTH, height, title, told, Markup("").join(parts))


def embedded(drawn: str, name: str, *, title: str, told: str) -> Markup:
    """An SVG of matplotlib's as part of the page: its policy allows no `style`, and an id may stand there once.

    Args:
        drawn: the `<svg>` element, from `pipeline.charts.svg`.
        name: a word that no other chart of the page has.
        title: of the picture.
        told: what is to be seen, in words and figures.
    """
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "title"):
                parent.remove(child)
    used = {match for element in root.iter() for value in element.attrib.values() for match in REFERENCE.findall(value)}
    for element in root.iter():
        element.attrib = dict(_attributes(element, name, used))
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip() or None, None
    inside = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return Markup('<svg class="chart {}" role="img" viewBox="{}" {}><title>{}</title><desc>{}</desc>{}</svg>').format(
        name, root.attrib["viewBox"], JOINS, title, told, Markup(inside)
    )


def _attributes(element: ElementTree.Element, name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    """Style as attributes, fewer digits, ids and references of this chart alone."""
    for key, value in element.attrib.items():
        plain = key.rpartition("}")[2]
        if plain == "style":
            yield from (tuple(part.strip().split(": ", 1)) for part in value.split(";") if ": " in part)  # type: ignore[misc]
        elif plain == "id":
            if value in used:
                yield "id", f"{name}-{value}"
        else:
            text = LONG_NUMBER.sub(r"\1", value) if plain != "viewBox" else value
            yield plain, REFERENCE.sub(rf"{name}-\g<0>", text)


class _axis:  # noqa: N801 - a place on the paper for a value
    """A straight axis from `least` to `most` between two places, with round marks."""

    def __init__(self, least: float, most: float, start: float, end: float) -> None:
        room = most - least or abs(most) or 1.0
        self.step = _step(room)
        self.least = math.floor(least / self.step + 1e-9) * self.step
        self.most = max(math.ceil(most / self.step - 1e-9) * self.step, self.least + self.step)
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        share = (value - self.least) / (self.most - self.least)
        return round(self.start + share * (self.end - self.start), 1)

    def marks(self) -> list[float]:
        count = round((self.most - self.least) / self.step)
        return [self.least + number * self.step for number in range(count + 1)]

    def label(self, value: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9) + (self.step in (2.5, 0.25, 0.025)))
        return figure(value, digits)


def _step(room: float) -> float:
    """A round number of which four to eight fit into `room`."""
    power = 10 ** math.floor(math.log10(room / 5))
    return min((step * power for step in STEPS), key=lambda step: abs(room / step - 5))


def _grid(across: _axis, up: _axis, x_name: str, y_name: str) -> Markup:
    parts = []
    for value in up.marks():
        y = up.place(value)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(LEFT, WIDTH - RIGHT, y=y))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, up.label(value)))
    for value in across.marks():
        x = across.place(value)
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x, HEIGHT - BOTTOM + 16, across.label(value)
            )
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, HEIGHT - 6, x_name))
    parts.append(Markup('<text class="axis" x="{}" y="{}">{}</text>').format(8, 14, y_name))
    return Markup("").join(parts)


def _names(ends: Mapping[str, float]) -> list[Markup]:
    """The names of lines at their ends, kept apart."""
    parts, last = [], -math.inf
    for number, (name, y) in sorted(enumerate(ends.items()), key=lambda entry: entry[1][1]):
        last = max(y, last + NEAR)
        parts.append(
            Markup('<text class="name name{}" x="{}" y="{}">{}</text>').format(
                number % 4, WIDTH - RIGHT + 8, round(last + 4, 1), name
            )
        )
    return parts
