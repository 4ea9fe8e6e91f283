"""Charts of matplotlib's as part of a page: no style of their own, ids of their own, told in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from markupsafe import Markup

REFERENCE = re.compile(r"(?<=#)[mp][0-9a-f]{10}\b")
"""How an SVG of matplotlib's refers to a marker or a clipping path of its own."""

LONG_NUMBER = re.compile(r"(\d\.\d\d)\d+")
"""A hundredth of a point is enough."""

JOINS = Markup('stroke-linejoin="round" stroke-linecap="butt"')
"""What matplotlib says in a style sheet."""

BLACK = "#000000"
"""Becomes the colour of the page's text, which is light on a dark page."""


def embedded(drawn: str, name: str, *, title: str, told: str) -> Markup:
    """An SVG of matplotlib's as part of the page: its policy allows no `style`, and an id may stand there once.

    Args:
        drawn: the `<svg>` element, from `pipeline.charts.svg`.
        name: a word that no other chart of the page has.
        title: of the picture.
        told: what is to be seen, in words and figures.
    """
    root = ElementTree.fromstring(drawn.replace(BLACK, "currentColor"))
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
