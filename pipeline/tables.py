"""Tables for the terminal, made but not printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

MEASURES = {"dice": "Dice", "iou": "IoU", "miou": "mIoU", "pixel_error": "pixel error"}
"""What a table of an evaluation may show, and its title: mIoU over all classes, the others per class."""

PER_CLASS = ("dice", "iou")
"""Those of them that have a value for every class but the background."""

FEW = 30
"""Units below which a bootstrap interval of their mean is plainly too narrow."""


def partitions(counts: Iterable[tuple[str, int, int]], unit: str = "patient") -> Table:
    """Partitions, or folds, with their cases and patients, or what is never divided instead."""
    return _table(("partition", "cases", f"{unit}s"), counts)


def runs(found: Sequence[Mapping[str, Any]]) -> Table:
    """Runs of a store, from `pipeline.tracking.runs`; the id of one that belongs to another is indented."""
    columns = ("name", "status", "epoch", "best", "resumed", "failure")
    rows = [
        ["  " * bool(run.get("parent")) + run["id"], *(_shown(run[column], ".4f") for column in columns)]
        for run in found
    ]
    return _table(("run", *columns), rows)


def scores(table: Mapping[str, Any]) -> Table:
    """An evaluation's `measures`: one line per patient, the mean and its interval, the columns per method."""
    methods, measures = list(table["summary"]), table["measures"]
    unit, named = table["unit"], table["classes"][1:]
    per_class = {m: [f"{MEASURES[m]} {name}" for name in named] if m in PER_CLASS else [MEASURES[m]] for m in measures}
    titles = [f"{method} {title}" for method in methods for measure in measures for title in per_class[measure]]

    def cells(row: Mapping[str, Any]) -> list[Any]:
        values = [row[method][measure] for method in methods for measure in measures]
        return [v for value in values for v in (value.values() if isinstance(value, Mapping) else [value])]

    rows = [[row["patient"], row["cases"], *(_shown(v, ".3f", "-") for v in cells(row))] for row in table["patients"]]
    rows.append(["mean", len(table["cases"]), *(_shown(v, ".3f", "-") for v in cells(table["summary"]))])
    intervals = cells({method: table["summary"][method]["interval_95"] for method in methods})
    if any(intervals):
        rows.append(["95 % interval", "", *(_between(interval) for interval in intervals)])
    return _table((unit, "cases", *titles), rows)


def notes(table: Mapping[str, Any]) -> list[str]:
    """What must be known beside `scores`: how far to trust the interval, and how cases without a class were treated."""
    unit, units = table["unit"], len(table["patients"])
    found = []
    if units > 1:
        narrow = f"; too narrow with fewer than about {FEW}" if units < FEW else ""
        found.append(f"Interval: bootstrap of the mean over {units} {unit}s{narrow}.")
    method, summary = next(iter(table["summary"].items()))
    for name, wrong in summary["false_positives_where_empty"].items():
        if wrong["cases"]:
            found += _empty_cases(method, name, wrong, summary["mean_over_single_cases"], unit)
    return found + [_volume(name, ml, len(table["cases"])) for name, ml in summary.get("volume_ml", {}).items()]


def _volume(name: str, ml: Mapping[str, Any], cases: int) -> str:
    """Volumes of a class: means, bias with its interval, and error."""
    some = "" if ml["cases"] == cases else f", of the {ml['cases']} cases whose spacing is known"
    interval = (
        f" (95 % interval {_interval(ml['difference_interval_95'], '+.3g')})" if ml["difference_interval_95"] else ""
    )
    return (
        f"Volume of {name}: {ml['reference']:.3g} ml in the reference, {ml['prediction']:.3g} ml predicted; difference "
        f"{ml['difference']:+.3g} ml{interval}, without its sign {ml['absolute_difference']:.3g} ml{some}."
    )


def _empty_cases(method: str, name: str, wrong: Mapping[str, Any], single: Mapping[str, Any], unit: str) -> list[str]:
    sizes = "".join(f", {size}: {wrong[size]:.3g}" for size in ("mm2", "ml") if size in wrong)
    left_out, scored = (_shown(values[name], ".3f", "-") for values in single.values())
    return [
        f"Cases without {name} in the reference: {wrong['cases']}; of them with false positives of {method}: "
        f"{wrong['cases_with_any']} ({unit}s: {wrong['patients_with_any']}, pixels: {wrong['pixels']}{sizes}).",
        f"Mean Dice of single cases, not pooled per {unit}: {left_out} without those cases, {scored} with each of them "
        "as 1 or 0.",
    ]


def _between(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "-"


def paired_scores(found: Mapping[str, Any]) -> Table:
    """What is shown of every variant, and the differences to the first: one line per patient."""
    first, *others = found["means"]
    names = found["headline"]
    columns = [f"{what} {name}" for name in names for what in (*found["means"], *(f"{first} - {o}" for o in others))]
    differences = {(row["second"], row["measure"]): row for row in found["differences"]}
    rows = []
    for row in found["patients"]:
        values = []
        for name in names:
            values += [row[variant].get(name) for variant in found["means"]]
            values += [differences[other, name]["by_patient"].get(row["patient"]) for other in others]
        rows.append([row["patient"], *(_shown(value, ".3f", "-") for value in values)])
    return _table((found["unit"], *columns), rows)


def paired_differences(found: Mapping[str, Any]) -> Table:
    """Means, paired difference with its interval and spread between seeds: one line per measure and pair."""
    rows = []
    for row in (row for row in found["differences"] if row["measure"] in found["headline"]):
        first, second, name = row["first"], row["second"], row["measure"]
        mean_and_spread = [
            [_shown(found["means"][v].get(name), ".4f", "-"), _shown(found["seed_spread"][v].get(name), ".4f", "-")]
            for v in (first, second)
        ]
        rows.append(
            [
                f"{first} - {second}",
                name,
                *(value for pair in zip(*mean_and_spread, strict=True) for value in pair),
                _shown(row["mean"], "+.4f", "-"),
                _interval(row["interval"], "+.4f"),
                row["patients"],
            ]
        )
    columns = ("first - second", "measure", "first", "second", "spread of seeds", "of seeds", "difference")
    return _table((*columns, "95 % interval", f"{found['unit']}s"), rows)


def sizes(unit: str, rows: Iterable[Sequence[Any]]) -> Table:
    """Size and spacing per axis, smallest, median and largest: rows of (axis, *size in `unit`, *spacing or Nones)."""
    titles = [f"{what} {unit}" for unit in (unit, "mm") for what in ("least", "median", "most")]
    return _table(("axis", *titles), ([row[0], *(_shown(value, ".4g", "-") for value in row[1:])] for row in rows))


def intensities(points: Sequence[float], rows: Iterable[Sequence[Any]]) -> Table:
    """Intensities, rows of (what, mean, std, *percentiles)."""
    columns = ("intensities", "mean", "std", *(f"{point:g} %" for point in points))
    return _table(columns, ([row[0], *(_shown(value, ".4g", "-") for value in row[1:])] for row in rows))


def amounts(unit: str, rows: Iterable[Sequence[Any]]) -> Table:
    """Classes: rows of (class, cases with it, cases without, median voxels, least, median, most of unit, parts)."""
    titles = ("class", "cases with it", "without", "median voxels", f"least {unit}", f"median {unit}", f"most {unit}")
    return _table((*titles, "median parts"), ([row[0], *(_shown(v, ".4g", "-") for v in row[1:])] for row in rows))


def _interval(ends: Sequence[float] | None, digits: str) -> str:
    return "-" if ends is None else f"{ends[0]:{digits}} to {ends[1]:{digits}}"


def _shown(value: Any, digits: str, nothing: str = "") -> str:
    if value is None:
        return nothing
    return format(value, digits) if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    return table
