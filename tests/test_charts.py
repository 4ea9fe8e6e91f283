import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest

from pipeline import charts
from pipeline.charts import Group, Reliability, reliability, subgroup_bars

BINS = [(0.03, 100_000, 0.03, 0.01), (0.5, 10, 0.5, 0.4), (0.97, 20_000, 0.97, 0.99)]


def diagrams():
    return reliability([Reliability("lung", "ECE 0.01", BINS), Reliability("lung", "no pixel", [])], columns=2, bins=15)


def bars(groups=12, measures=2):
    """Groups with long names and wide intervals, some without a value."""
    names = [f"Department of Radiology and Nuclear Medicine, hospital number {n}" for n in range(groups)]
    values = [[(0.5 + 0.03 * n, (0.4 + 0.03 * n, 0.6 + 0.03 * n))] * measures for n in range(groups)]
    values[1] = [None] * measures
    values[2] = [(0.7, None)] * measures
    rows = [Group(name, 5 + n, value) for n, (name, value) in enumerate(zip(names, values, strict=True))]
    sections = [("institution of the examination", rows[: groups // 2]), ("age_band", rows[groups // 2 :])]
    return subgroup_bars(sections, [f"Dice of class {n}" for n in range(measures)], [0.7] * measures, "patient")


def test_pictures_are_colour_arrays_without_a_screen():
    for figure in (diagrams(), bars()):
        picture = charts.pixels(figure)
        assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
        assert (picture[0, 0] == 255).all()
        assert picture.std() > 10


def test_svg_is_text_in_the_colour_of_the_page_and_the_same_every_time():
    drawn = [charts.svg(figure(), "How far to trust it") for figure in (diagrams, diagrams)]
    assert drawn[0] == drawn[1]
    root = ET.fromstring(drawn[0])
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert "currentColor" in drawn[0]
    assert charts.INK not in drawn[0]
    assert "How far to trust it" in drawn[0]
    assert "ECE 0.01" in drawn[0]
    assert "http://www.w3.org" in drawn[0]


@pytest.mark.parametrize("groups", [3, 25])
def test_names_of_groups_do_not_overlap_and_are_not_cut_off(groups):
    figure = bars(groups)
    charts.pixels(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == groups + 2
    assert all(not one.overlaps(other) for one, other in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    panel = figure.axes[0].get_window_extent(renderer)
    assert max(box.x1 for box in boxes) <= panel.x0
    assert panel.width > 200


def test_every_group_has_its_mean_beside_its_name():
    figure = bars(4, 1)
    axes = figure.axes[0]
    names = {place: label.get_text() for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"}
    assert [(names[place].split("number ")[1], round(mean, 2)) for place, mean in means.items()] == [
        ("0  (5 patients)", 0.5), ("2  (7 patients)", 0.7), ("3  (8 patients)", 0.59)
    ]  # fmt: skip
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("not defined", 2)]


def test_titles_of_panels_do_not_overlap():
    for figure in (diagrams(), bars(measures=3)):
        charts.pixels(figure)
        renderer = figure.canvas.get_renderer()
        boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
        assert all(not one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[n + 1 :])
