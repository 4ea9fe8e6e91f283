"""Reading what a training wrote, or a release holds, without running pickled code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError

SAFE = ".safetensors"
"""How the name of a file ends that holds a `state_dict` and can hold nothing else."""


def existing(path: Path) -> dict[str, Any]:
    """`read_state` of a file that a user named.

    Raises:
        InputError: the file is missing or is no checkpoint.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or set `checkpoint`")
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint of ours, a bare `state_dict` or a `.safetensors`, on the CPU.

    Raises:
        InputError: the file is no checkpoint.
    """
    if path.suffix == SAFE:
        return _read_safe(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise InputError(f"{path}: not a readable checkpoint") from None
    return dict(state)


def _read_safe(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError):
        raise InputError(f"{path}: not a readable checkpoint") from None
