"""Weights and training state on disk: written atomically, loaded without running pickled code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from pipeline.atomic import atomic
from pipeline.errors import InputError

PREVIOUS = "previous_"
"""How the name of a checkpoint begins that an earlier training left."""


class SaveBest:
    """A handler of the validation engine: writes the network's weights whenever its key metric is a new best.

    Args:
        network: whose `state_dict` is written.
        path: of the file.
    """

    def __init__(self, network: torch.nn.Module, path: str) -> None:
        self.network = network
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Follow an engine's epochs."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the weights if this epoch is the best one."""
        if engine.state.best_metric_epoch == engine.state.epoch:  # type: ignore[attr-defined]
            save(self.network.state_dict(), self.path)


class SaveLast:
    """A handler of the training engine: writes its whole state after every epoch.

    When the training starts, the checkpoints of an earlier one in the same folder are set aside as `previous_*.pt`:
    nobody evaluates them by mistake for the new ones.

    Args:
        objects: name -> what has a `state_dict` (network, optimizer, scheduler).
        path: of the file.
    """

    def __init__(self, objects: Mapping[str, Any], path: str) -> None:
        self.objects = objects
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Follow an engine's epochs."""
        engine.add_event_handler(Events.STARTED, self._set_aside)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _set_aside(self, _: Engine) -> None:
        for old in self.path.parent.glob("*.pt"):
            if not old.name.startswith(PREVIOUS):
                old.replace(old.with_name(PREVIOUS + old.name))

    def __call__(self, engine: Engine) -> None:
        """Write the state."""
        state = {name: part.state_dict() for name, part in self.objects.items()}
        save(state | {"epoch": engine.state.epoch}, self.path)


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a state atomically: a crash leaves the previous file."""
    with atomic(path) as temporary:
        torch.save(dict(state), temporary)


def load_weights(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Load a `state_dict` into a network; returns the network.

    Raises:
        InputError: the file is missing, is no checkpoint, or belongs to a network of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train first, or set `checkpoint`")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise InputError(f"{path}: not a readable checkpoint") from None
    if "network" in state and "optimizer" in state:
        raise InputError(f"{path}: is the state of a training; the weights to use are beside it, in model.pt")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"{path}: holds the weights of another network than the one configured ({reason}); "
            "give the same network keys (`width`, `depth`, ...) as in training"
        ) from None
    return network
