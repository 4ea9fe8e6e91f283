"""A table in the form that MLflow's pages show and sort."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

FILE = "cases.json"
"""An evaluation's table of cases, in its folder and in its run."""

TAG = {"mlflow.loggedArtifacts": json.dumps([{"path": FILE, "type": "table"}])}
"""The tag by which MLflow's pages show that file as a table, as `MlflowClient.log_table` sets it."""

DIGITS = 4
"""Behind the point, the same in every row, see `as_logged_table`."""

NONE = "-"
"""What stands where a score is not defined: it sorts before every number."""


def as_logged_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as `MlflowClient.log_table` would write them, so that the viewer's order is that of the numbers.

    The viewer turns every cell into text, `0.5` into "0.5", and sorts that: letter by letter in a short table, else
    number by number, where 0.913 comes before 0.1007 since 913 is less than 1007. Both are right for numbers with as
    many digits before the point as the largest one, and equally many behind it. It also reads a point in the name of a
    column as a path.

    Args:
        rows: column -> text, number or None; a column that only some of them have is empty in the others.

    Returns:
        `columns` and `data`, a list of texts per row: what pandas calls the orientation `split`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [_texts([row.get(name, "") for row in rows]) for name in names]
    return {
        "columns": [name.replace(".", "_") for name in names],
        "data": [list(row) for row in zip(*texts, strict=True)],
    }


def _texts(values: Sequence[Any]) -> list[str]:
    """A column as texts that sort like their numbers."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    digits = DIGITS if any(isinstance(number, float) for number in numbers) else 0
    width = max((len(f"{number:.{digits}f}") for number in numbers), default=0)
    return [_text(value, digits, width) for value in values]


def _text(value: Any, digits: int, width: int) -> str:
    if isinstance(value, (int, float)):
        return f"{value:0{width}.{digits}f}"
    return NONE if value is None else str(value)
