"""What a release needs to know of a training, from its output folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import TRAINING, training_of
from pipeline.errors import InputError
from pipeline.provenance import SEEN, STARTED_FROM

WEIGHTS, STATE = "model.pt", "last.pt"
"""Files of the folder."""

UNITS = ("cluster", "image")
"""What a split goes by where no patient is known; by patient and by section they are known."""


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        weights: its model.pt.
        config: as it was run, `a.b.0` -> text, without paths.
        record: what the weights were trained on, in digests: to be counted, never to be written.
        epochs: that it took.
        best_epoch: whose weights these are.
    """

    weights: Path
    config: Mapping[str, str]
    record: Mapping[str, Any]
    epochs: int
    best_epoch: int

    @property
    def unit(self) -> str:
        """What is counted: patients, or clusters or images where no patient is known."""
        return self.record["split_by"] if self.record["split_by"] in UNITS else "patient"

    @property
    def started_from(self) -> str:
        """SHA-256 of the file of weights that it started from; empty: it started from random ones."""
        return str(self.record.get(STARTED_FROM, {}).get("sha256", ""))

    def counts(self) -> dict[str, int]:
        """How many patients shaped the weights, by partition."""
        return {name: len(self.record[name]["patients"]) for name in SEEN}

    def in_words(self) -> str:
        """What is new about the weights, as far as the training itself knows."""
        how = "trained on from earlier weights" if self.started_from else "trained anew"
        return f"weights {how}: {self.epochs} epochs, of which epoch {self.best_epoch} was the best on validation"


def read_training(run: Path) -> Training:
    """A finished training, from its output folder.

    Raises:
        InputError: there is none, it is not finished, or weights and state are of two trainings.
    """
    for name in (WEIGHTS, STATE):
        if not (run / name).is_file():
            raise InputError(f"{run}: no {name} in it; give the output folder of a training")
    found = training_of(run / WEIGHTS)
    state = _state(run / STATE)
    if not state["finished"]:
        raise InputError(f"{run}: this training stopped after epoch {state['epoch']}; add --resume True to finish it")
    if found != state[TRAINING]:
        raise InputError(f"{run}: {WEIGHTS} and {STATE} are of different trainings; give the folder as it was written")
    return Training(run / WEIGHTS, state["config"], state[TRAINING], state["epoch"], state["best_metric_epoch"])


def _state(path: Path) -> Mapping[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("finished", "config", "epoch", "best_metric_epoch", TRAINING)}
    except Exception:
        raise InputError(f"{path}: not the state of a training of this version; train again") from None
