"""A bundle's configs as a release holds them: macros expanded, full names, and the values that a training was run with.

What a training ran with is read from its own record, `config` of last.pt, where every value is a text and no path is
kept. What depends on a machine or names a place of the site is as the bundle has it, and paths are those of a release.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.bundle import expanded, fully_named
from pipeline.checkpoint import MAY_CHANGE
from pipeline.configuration import A_PATH, PATHS, flattened, pathless
from pipeline.errors import InputError
from pipeline.release_files import STATE, WORKFLOWS

PLACES = {
    "training": {"manifest": "data/manifest.json", "output_dir": "training"},
    "evaluating": {"manifest": "data/manifest.json", "output_dir": "evaluation", "checkpoint": STATE},
    "predicting": {"output_dir": "labels", "checkpoint": STATE, "metadata": "configs/metadata.json"},
}
"""Where a workflow of a release reads and writes, below its folder. A training writes beside `models`, not into it: the
weights that are signed stay as they are."""

NOT_THE_RUNS = frozenset({*PATHS, *MAY_CHANGE})
"""Keys whose value in a run says where it ran and where its files lay."""

WIDEST = 110
"""Characters of a line, up to which a list or a mapping of plain values is written in one."""


def release_configs(bundle: Path, run: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The config of every workflow.

    Args:
        bundle: folder of the bundle that was trained, or of a release.
        run: `config` of the training's last.pt: `a.b.0` -> text. Empty: as the bundle has it.

    Returns:
        Per file of `WORKFLOWS` its config, ready for JSON.

    Raises:
        InputError: the bundle lacks a config, or the run was given a text that its record does not keep.
    """
    own = {workflow: expanded(bundle, workflow) for workflow in WORKFLOWS}
    trained = as_run(own["training"], run)
    configs = {"training": trained} | {
        workflow: _shared(own[workflow], own["training"], trained) for workflow in WORKFLOWS if workflow != "training"
    }
    return {
        file: fully_named(configs[workflow] | _places(configs[workflow], workflow))
        for workflow, file in WORKFLOWS.items()
    }


def as_run(own: Mapping[str, Any], run: Mapping[str, str]) -> dict[str, Any]:
    """The bundle's config of a training as it was run: overrides, also nested ones, and overlays included.

    Args:
        own: as the bundle has it, macros expanded.
        run: `config` of last.pt; keys that it lacks are as the bundle has them.

    Raises:
        InputError: the run was given a text with a slash where the bundle has none: its record has left that out.
    """
    written = flattened(pathless(own))
    values = flattened_values(own)
    leaves = {place: _value(place, text, written, values) for place, text in run.items()}
    found = nested(leaves, own)
    kept = {key: value for key, value in found.items() if key not in NOT_THE_RUNS}
    return {**own, **kept}


def nested(leaves: Mapping[str, Any], like: Any) -> dict[str, Any]:
    """The reverse of `configuration.flattened`: `a.b.0` -> value becomes mappings and lists.

    Keys 0, 1, 2, ... are those of a list, unless there is a mapping in the same place of `like`.
    """
    tree: dict[str, Any] = {}
    for place, value in leaves.items():
        *path, last = place.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = {None: value}  # told apart from a mapping that has grown here
    return {key: _grown(value, like.get(key) if isinstance(like, Mapping) else None) for key, value in tree.items()}


def flattened_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """As `configuration.flattened`, with the values themselves instead of texts."""
    parts: list[tuple[str, Any]] = []
    if isinstance(config, Mapping):
        parts = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list):
        parts = [(str(number), value) for number, value in enumerate(config)]
    if not parts:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in parts:
        flat |= flattened_values(value, f"{prefix}.{key}" if prefix else key)
    return flat


def dumps(config: Any, indent: int = 0) -> str:
    """JSON to be read by people: what fits in a line stands in one, all else has a line each."""
    line = json.dumps(config, ensure_ascii=False)
    parts = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    plain = not any(isinstance(part, Mapping | list) and part for part in parts)
    if indent and plain and (len(line) <= WIDEST - indent or not parts):
        return line
    if not parts:
        return line
    margin = "\n" + " " * (indent + 4)
    if isinstance(config, Mapping):
        rows = [f"{json.dumps(key)}: {dumps(value, indent + 4)}" for key, value in config.items()]
        return "{" + margin + ("," + margin).join(rows) + "\n" + " " * indent + "}"
    return "[" + margin + ("," + margin).join(dumps(part, indent + 4) for part in parts) + "\n" + " " * indent + "]"


def _value(place: str, text: str, written: Mapping[str, str], values: Mapping[str, Any]) -> Any:
    """What a text of a run's record meant: the bundle's own value where it says the same."""
    if written.get(place) == text:
        return values[place]
    if text.startswith(A_PATH):
        if place in values or place.partition(".")[0] in NOT_THE_RUNS:
            return values.get(place)
        raise InputError(
            f"the run was given a text with a slash as `{place}`, which no record keeps; give the bundle it"
        )
    if text == "$None":
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def _grown(branch: Any, like: Any) -> Any:
    if None in branch:
        return branch[None]
    if list(branch) == [str(number) for number in range(len(branch))] and not isinstance(like, Mapping):
        parts = like if isinstance(like, list) else []
        return [_grown(part, parts[n] if n < len(parts) else None) for n, part in enumerate(branch.values())]
    return {key: _grown(part, like.get(key) if isinstance(like, Mapping) else None) for key, part in branch.items()}


def _shared(own: Mapping[str, Any], base: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow's config with the training's values where the bundle defines the two as one."""
    return {key: trained[key] if key in base and base[key] == value else value for key, value in own.items()}


def _places(config: Mapping[str, Any], workflow: str) -> dict[str, Any]:
    """The paths of a release: nothing outside of its folder, except what the user gives."""
    places: dict[str, Any] = {key: None for key in NOT_THE_RUNS if key in PATHS and key in config}
    places |= {"source": ""} if "source" in config else {}
    places |= {key: f"$@bundle_root + '/{place}'" for key, place in PLACES[workflow].items() if key in config}
    return {key: places[key] for key in config if key in places} | {"bundle_root": "."}
