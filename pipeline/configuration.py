"""The configuration that a bundle is being run with, as a component of it sees it."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Collection, Mapping
from types import FrameType
from typing import Any

VALUE_LENGTH = 6000
"""Longer values are cut: MLflow refuses longer parameters."""

PATHS = (
    "bundle_root", "checkpoint", "dataset_dir", "encoder_weights", "manifest", "metadata", "output_dir", "source",
    "start_from", "threshold", "tracking_uri",
)  # fmt: skip
"""Keys whose text is a path, also where it has no slash."""

NAMES = ("class_names", "experiment")
"""Keys whose text is a name, also where it has a slash: `CSF/ventricle`."""

A_PATH = "a path, not recorded"
"""What a record says in the place of a path: folders and files may be called after a patient."""

FOLDER = "folder"
"""Tag of a run below another one: `folder_digest` of where it writes to, by which its parent knows it again."""


def running_config() -> dict[str, Any]:
    """The merged and expanded configuration of the bundle that is being run, or {} outside of one.

    MONAI hands it to no component; the ConfigParser that is building the caller is found on the call stack.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if type(owner).__module__ == "monai.bundle.config_parser" and type(owner).__name__ == "ConfigParser":
            return {key: value for key, value in owner.config.items() if key != "_meta_"}
        frame = frame.f_back
    return {}


def pathless(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, nested or flattened, as it may be written down: no path in it, since one may name a patient.

    Every text with a slash or a backslash is taken for a path, and so is the text of a key of `PATHS`; a fold's number
    after a manifest's path stays. What the data was, the manifest's digest tells.
    """
    return {key: value if key.partition(".")[0] in NAMES else _pathless(value, key) for key, value in config.items()}


def _pathless(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _pathless(part, str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_pathless(part, key) for part in value]
    if not isinstance(value, str) or not _is_path(value, key):
        return value
    fold = re.search(r"(?:#|::)(\d+)$", value)
    return A_PATH + (f", fold {fold[1]}" if fold else "")


def folder_digest(parent: str, folder: str) -> str:
    """What stands for a run's folder in the store, together with the id of the run above it."""
    return hashlib.sha256(f"{parent}\0{folder}".encode()).hexdigest()


def _is_path(text: str, key: str) -> bool:
    if "/" in text or "\\" in text:
        return True
    is_reference = text.startswith(("@", "$", "%"))
    return key.rpartition(".")[2] in PATHS and not is_reference and text not in ("", "None")


def flattened(config: Any, prefix: str = "") -> dict[str, str]:
    """A nested configuration as `a.b.0` -> text."""
    if isinstance(config, Mapping) and config:
        parts = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list) and config:
        parts = [(str(number), value) for number, value in enumerate(config)]
    else:
        return {prefix: str(config)[:VALUE_LENGTH]}
    flat: dict[str, str] = {}
    for key, value in parts:
        flat |= flattened(value, f"{prefix}.{key}" if prefix else key)
    return flat


def differences(before: Mapping[str, str], after: Mapping[str, str], but: Collection[str] = ()) -> list[str]:
    """What differs between two flattened configurations, as sentences; keys under those in `but` are passed over."""
    keys = [key for key in {**before, **after} if key.partition(".")[0] not in but]
    return [
        f"{key} was {before.get(key, 'not set')}, is {after.get(key, 'not set')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
