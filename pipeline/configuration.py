"""The configuration that a bundle is being run with, as a component of it sees it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from types import FrameType
from typing import Any

VALUE_LENGTH = 6000
"""Longer values are cut: MLflow refuses longer parameters."""


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
