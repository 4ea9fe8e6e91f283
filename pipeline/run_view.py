"""How MLflow's page lists runs: the verdict and the figures beside each name, where it shows neither by itself."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable

KEY = "overtile"
"""Of the view in the page's address."""

TAG = f"mlflow.sharedViewState.{KEY}"
"""Tag of an experiment, in which the page keeps a view that is shared (MLflow 3.17)."""

NAME = "Figures"
"""Of the view in the page's menu."""

SCORED = ("test_", "validation_", "val_")
"""How the names of figures begin that a model is judged by, in the order of their weight."""

FIGURES = 6
"""More do not fit beside a name."""

WIDTHS = {"attributes.`Run Name`": 330, "tags.`verdict`": 330, "attributes.`Dataset`": 160}
"""Pixels: names and verdicts are sentences."""


def figures(metrics: Iterable[str]) -> list[str]:
    """The metrics to show: Dice before the others, of the test before those of the validation.

    Example:
        >>> figures(["loss", "val_mean_dice", "test_pixel_error", "test_dice_membrane"])
        ['test_dice_membrane', 'val_mean_dice', 'test_pixel_error']
    """
    ranked = [("dice" not in name, SCORED.index(start), name) for name in metrics if (start := _start(name))]
    return [name for *_, name in sorted(ranked)][:FIGURES]


def state(metrics: Iterable[str]) -> str:
    """The tag's value for an experiment with these metrics, as the page writes it: a deflated JSON inside a JSON.

    The best of a test stands first. In the order of their creation, the page hides an evaluation below its training.
    """
    shown = [f"metrics.`{name}`" for name in figures(metrics)]
    tested = shown and shown[0].startswith(f"metrics.`{SCORED[0]}")
    columns = ["tags.`verdict`", *shown, "attributes.`Models`", "attributes.`Dataset`"]
    view = {
        "searchFilter": "",
        "orderByKey": shown[0] if tested else "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": ["0", "attributes.`Run Name`", *columns, "runDateAndNestInfo", "duration"],
        "columnWidths": WIDTHS | dict.fromkeys(shown, 120),
    }
    packed = base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()
    return json.dumps({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def _start(name: str) -> str:
    return next((start for start in SCORED if name.startswith(start)), "")
