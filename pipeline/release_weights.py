"""The weights of a release: the bare numbers of a network, in two formats, without what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.atomic import atomic
from pipeline.checkpoint import MODEL, save
from pipeline.errors import InputError
from pipeline.release_files import STATE, WEIGHTS


def write(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's `state_dict` as `models/model.pt` and `models/model.safetensors`.

    Patients' digests and settings stay behind; the configs of the release say how the network is built.

    Args:
        checkpoint: a training's model.pt, or a bare `state_dict`.
        folder: of the release.
    """
    state = bare(torch.load(checkpoint, map_location="cpu", weights_only=True), checkpoint)
    save(state, folder / STATE)
    with atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary)


def bare(state: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, each with memory of its own.

    Raises:
        InputError: there is something else among them.
    """
    found = state[MODEL] if isinstance(state.get(MODEL), Mapping) else state
    if not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path}: holds no weights of a network; give a training's folder with its model.pt")
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def equal(folder: Path) -> bool:
    """Whether the two files of a release hold the same tensors, bit for bit."""
    ours = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    other = load_file(folder / WEIGHTS)
    return ours.keys() == other.keys() and all(
        ours[name].dtype == other[name].dtype and torch.equal(ours[name], other[name]) for name in ours
    )
