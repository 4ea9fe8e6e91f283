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
    """Runs of a store, from `pipeline.tracking.runs`."""
    columns = ("id", "name", "status", "epoch", "best", "resumed", "failure")
    rows = [[_shown(run[column], ".4f") for column in columns] for run in found]
    return _table(("run", *columns[1:]), rows)


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
