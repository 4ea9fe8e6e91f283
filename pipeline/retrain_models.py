"""The two models of a retraining at work, each step a child process: what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import bundle as bundles
from pipeline.checkpoint import standing
from pipeline.children import as_words
from pipeline.digests import file_digest
from pipeline.errors import DataError
from pipeline.evaluate import TABLE
from pipeline.manifest import read
from pipeline.release_files import STATE
from pipeline.retrain_plan import SET_BY_US, Plan, learning_rate
from pipeline.retrain_record import Training
from pipeline.stopping import plainly_failed
from pipeline.store import let_go, open_store
from pipeline.told_child import Run, refuse

KEPT = ("learning_rate", "frozen", "batch_size", "epochs", "lr_schedule", "seed")
"""Settings of a training that the record shows."""


class FailedTrainingError(DataError):
    """A fine-tuning that has plainly failed: that is a verdict on it, and no mistake of the data."""


@dataclass(frozen=True)
class Models:
    """Both models and the data that they meet.

    Attributes:
        plan: of the retraining.
        bundle: folder of the unpacked release.
        store: MLflow tracking URI.
        run: starts a child process, or stands for it in a test.
    """

    plan: Plan
    bundle: Path
    store: str
    run: Run

    @property
    def manifest(self) -> Path:
        """Of the retraining."""
        return self.plan.out.absolute() / "manifest.json"

    @property
    def deployed(self) -> Path:
        """Weights of the deployed model."""
        return self.bundle / STATE

    @property
    def new(self) -> Path:
        """Weights of the new one."""
        return self.plan.new_weights

    def evaluation(self, weights: Path, partition: str, folder: Path) -> dict[str, Any]:
        """Score weights on a partition, unless that was done before.

        Args:
            weights: of one of the two models.
            partition: `validation`, or `test` for the sealed patients.
            folder: of the results.

        Returns:
            The contents of evaluation.json.

        Raises:
            InputError, DataError: the child ended otherwise than well.
            KeyboardInterrupt: it was stopped.
        """
        found = self._scored(weights, partition, folder)
        if found is not None:
            return found
        given = self._places() | {"checkpoint": str(weights), "partition": partition, "output_dir": str(folder)}
        known = bundles.settings(self.bundle, "evaluating").keys() - {*SET_BY_US, *bundles.OUTSIDE}
        shared = {key: value for key, value in self.plan.overrides.items() if _top(key) in known}
        ended = self.run(["run", str(self.bundle), "evaluating", *as_words(given | shared)])
        refuse(ended, f"scoring on {partition}")
        return dict(json.loads((folder / TABLE).read_text()))

    def train(self) -> None:
        """Fine-tune the deployed weights, or go on with it, unless that was done before.

        Raises:
            FailedTrainingError: it has plainly failed.
            InputError, DataError: the child ended otherwise than well.
            KeyboardInterrupt: it was stopped.
        """
        folder = self.new.parent
        state = standing(folder / "last.pt")
        if state == "finished":
            return
        given = self._places() | {"output_dir": str(folder), "start_from": str(self.deployed)}
        given |= {} if self.plan.minutes is None else {"minutes": self.plan.minutes}
        if state == "begun":
            given["resume"] = True
            self._let_go()
        ended = self.run(["run", str(self.bundle), "training", *as_words(self.settings() | given)])
        if ended.code == DataError.exit_code and plainly_failed(ended.said):
            raise FailedTrainingError(ended.said)
        refuse(ended, "the fine-tuning")

    def settings(self) -> dict[str, Any]:
        """What is trained with: the overrides, and a learning rate of fine-tuning where they say none."""
        rate = learning_rate(self.bundle)
        return ({} if rate is None else {"learning_rate": rate}) | dict(self.plan.overrides)

    def trained(self) -> Training:
        """What the record says of the finished training."""
        state = torch.load(self.new.with_name("last.pt"), map_location="cpu", weights_only=True)
        settings = bundles.settings(self.bundle, "training") | self.settings()
        return Training(
            epochs=int(state["epoch"]),
            best_epoch=int(state["best_metric_epoch"]),
            hours_given=None if self.plan.minutes is None else self.plan.minutes / 60,
            settings={key: settings[key] for key in KEPT if key in settings},
        )

    def _let_go(self) -> None:
        """Say in MLflow that nobody works on the training's run: the lock says so, a container that is gone cannot."""
        state = torch.load(self.new.with_name("last.pt"), map_location="cpu", weights_only=True)
        with suppress(Exception):  # a store that does not answer is waited for by the training itself
            let_go(open_store(self.store), state["run_id"])

    def _places(self) -> dict[str, Any]:
        places = {"manifest": self.manifest, "dataset_dir": self.plan.data.absolute(), "tracking_uri": self.store}
        return {key: str(value) for key, value in places.items()}

    def scored(self, weights: Path, partition: str, folder: Path) -> bool:
        """Whether `evaluation` would find its result there, so that no image is read."""
        return self._scored(weights, partition, folder) is not None

    def _scored(self, weights: Path, partition: str, folder: Path) -> dict[str, Any] | None:
        """An evaluation of before: of these weights, on this partition of this manifest."""
        try:
            table: Mapping[str, Any] = json.loads((folder / TABLE).read_text())
            wanted = (partition, read(self.manifest).digest(), file_digest(weights))
            same = tuple(table[key] for key in ("partition", "manifest_sha256", "checkpoint_sha256")) == wanted
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(table) if same else None


def _top(key: str) -> str:
    return key.replace("::", "#").partition("#")[0]
