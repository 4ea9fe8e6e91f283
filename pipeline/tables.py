"""Tables for the terminal, made but not printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table


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
    """Dice per class and pixel error of an evaluation: one line per patient, the columns per method."""
    methods = list(table["summary"])
    measures = [*(f"Dice {name}" for name in table["classes"][1:]), "pixel error"]
    rows = [(row["patient"], row["cases"], row) for row in table["patients"]]
    return _table(
        ("patient", "cases", *(f"{method} {measure}" for method in methods for measure in measures)),
        [
            (
                title,
                cases,
                *(_shown(v, ".3f", "-") for m in methods for v in (*row[m]["dice"].values(), row[m]["pixel_error"])),
            )
            for title, cases, row in [*rows, ("mean", len(table["cases"]), table["summary"])]
        ],
    )


def paired_scores(found: Mapping[str, Any]) -> Table:
    """Dice per class of every variant and the differences to the first: one line per patient."""
    first, *others = found["means"]
    names = [f"dice_{name}" for name in found["classes"][1:]]
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
    for row in found["differences"]:
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


def means(table: Mapping[str, Any]) -> Table:
    """Mean over patients of every measure of a cross-validation, with its interval."""
    rows = [
        (name, _shown(mean, ".4f", "-"), _interval(table["interval"][name], ".4f"))
        for name, mean in table["mean"].items()
    ]
    return _table((f"mean over {len(table['patients'])} {table['unit']}s", "", "95 % interval"), rows)


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
