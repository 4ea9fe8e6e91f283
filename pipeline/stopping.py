"""When a training ends: after its time, when it no longer gets better, or when it has plainly failed."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch.optim.lr_scheduler import LRScheduler

from pipeline import processes
from pipeline.errors import DataError
from pipeline.optimisation import set_epochs

logger = logging.getLogger("pipeline.stopping")

NO_LOSS, NO_WEIGHTS, NO_FOREGROUND = "the loss is", "weights that are no numbers", "no foreground predicted"
"""How a sentence begins that says a training has plainly failed."""

NOT_FINITE = "the image is not finite"
"""Part of one that has the data to blame."""

FIRST_TIMED = 2
"""The first epoch that says how long an epoch takes: the one before still warms up."""


class TimeBudget:
    """A handler of the training engine: turns minutes into a number of epochs, once, after the first timed epochs.

    Those are the second one and, where not every epoch is validated, as many as there are from one validation to the
    next.

    The number is part of the engine's state and of the checkpoint, so a training that is resumed later keeps it; one
    that was stopped before has its minutes from the resume on.

    Args:
        minutes: that the whole training may take; None leaves the number of epochs as it is.
        scheduler: of the learning rate, which is told the number.
        val_interval: epochs from one validation to the next.

    Raises:
        ValueError: `minutes` is not positive.
    """

    def __init__(self, minutes: float | None, scheduler: LRScheduler, val_interval: int = 1) -> None:
        if minutes is not None and minutes <= 0:
            raise ValueError(f"`minutes` must be positive or null, got {minutes!r}")
        self.minutes = minutes
        self.scheduler = scheduler
        self.last_timed = FIRST_TIMED + val_interval - 1

    def attach(self, engine: Engine) -> None:
        """Follow an engine; stands after the validation, whose time counts."""
        if self.minutes is not None:
            engine.add_event_handler(Events.STARTED, self._started)
            engine.add_event_handler(Events.EPOCH_STARTED(once=FIRST_TIMED), self._epoch_started)
            engine.add_event_handler(Events.EPOCH_COMPLETED(once=self.last_timed), self._decide)

    def _started(self, engine: Engine) -> None:
        self._start = self._epoch_start = time.monotonic()
        self._from = engine.state.epoch
        engine.state.max_epochs = max(engine.state.max_epochs or 0, self.last_timed)

    def _epoch_started(self, engine: Engine) -> None:
        self._epoch_start = time.monotonic()
        self._from = engine.state.epoch - 1

    def _decide(self, engine: Engine) -> None:
        now = time.monotonic()
        seconds = (now - self._epoch_start) / (self.last_timed - self._from)
        left = 60 * (self.minutes or 0) - (now - self._start)
        epochs = self.last_timed + max(0, math.floor(left / seconds))
        engine.state.max_epochs = processes.from_first(epochs)
        set_epochs(self.scheduler, engine.state.max_epochs)
        logger.info("%g minutes are %d epochs of %.1f s", self.minutes, engine.state.max_epochs, seconds)


class StopEarly:
    """A handler of the training engine: ends it when the validation metric has not risen for some epochs.

    It remembers nothing of its own, only the validation's best epoch, so a resumed training stops at the same epoch.

    Args:
        evaluator: the validation engine.
        patience: epochs from the best validation to the last one; None never stops.

    Raises:
        ValueError: `patience` is below 1.
    """

    def __init__(self, evaluator: Engine, patience: int | None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"`patience` must be at least 1 epoch or null, got {patience!r}")
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Follow an engine; stands after the validation."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self._stop_if_stale)

    def _stop_if_stale(self, engine: Engine) -> None:
        state: Any = self.evaluator.state
        if self.patience is not None and 0 < state.best_metric_epoch <= state.epoch - self.patience:
            logger.info("no better validation for %d epochs: stopped after epoch %d", self.patience, engine.state.epoch)
            engine.terminate()


class Watchdog:
    """A handler of the training engine: stops a training that has plainly failed, and says why.

    That is a loss that is no number, before it reaches the weights; weights that are none, before they are saved; and a
    network that predicts no foreground at all in the first validations, although the references have some.

    Args:
        evaluator: the validation engine, whose outputs are one-hot or class indices.
        validations: in how many first validations in a row no foreground is let pass; None: in any number.
        learning_rate: the key's value, named in the diagnosis.
    """

    def __init__(self, evaluator: Engine, validations: int | None, learning_rate: float) -> None:
        self.evaluator = evaluator
        self.validations = validations
        self.learning_rate = learning_rate
        self.empty = 0

    def attach(self, engine: Engine) -> None:
        """Follow an engine and its validation."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check_weights)
        if self.validations is not None:
            self.evaluator.add_event_handler(Events.EPOCH_STARTED, self._validation_started)
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._count)
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know of the earlier validations."""
        return {"validations": self.validations, "empty": self.empty}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.validations, self.empty = state["validations"], state["empty"]

    def _check_loss(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = output[CommonKeys.LOSS].item()
        if math.isfinite(loss):
            return
        batch: Any = engine.state.batch
        cases = ", ".join(sorted(set(map(str, batch.get("id", ["?"])))))
        where = f"epoch {engine.state.epoch}, step {engine.state.iteration}, cases {cases}"
        if not torch.isfinite(batch[CommonKeys.IMAGE]).all():
            raise DataError(f"{NO_LOSS} {loss} in {where}: {NOT_FINITE}; run `overtile audit`")
        raise DataError(f"{NO_LOSS} {loss} in {where}: {self._advice()}")

    def _check_weights(self, engine: Any) -> None:
        """Before they are validated or saved: the last step of an epoch has no loss after it."""
        if not all(torch.isfinite(weight).all() for weight in engine.network.parameters()):
            raise DataError(f"{NO_WEIGHTS} after epoch {engine.state.epoch}: {self._advice()}")

    def _advice(self) -> str:
        return (
            f"the steps are too long; lower `learning_rate` (now {self.learning_rate:g}) or set `clip_norm`, say to 1, "
            "and start again"
        )

    def _validation_started(self, _: Engine) -> None:
        self.predicted = self.referred = 0

    def _count(self, evaluator: Engine) -> None:
        outputs: Any = evaluator.state.output
        for output in outputs:
            self.predicted += foreground(output[CommonKeys.PRED])
            self.referred += foreground(output[CommonKeys.LABEL])

    def _validated(self, _: Engine) -> None:
        if self.validations is None:
            return
        counts = processes.gathered((self.predicted, self.referred))
        self.predicted, self.referred = map(sum, zip(*counts, strict=True))
        if self.predicted or not self.referred:
            self.validations = None  # it predicts something: from here on it is a matter of scores
            return
        self.empty += 1
        if self.empty >= self.validations:
            raise DataError(
                f"{NO_FOREGROUND} in the first {self.empty} validations, where the references have "
                f"{self.referred} pixels of it: look at the labels (`overtile audit`), raise `learning_rate` (now "
                f"{self.learning_rate:g}), or weigh the classes; `give_up_after` null goes on regardless"
            )


def plainly_failed(sentence: str) -> bool:
    """Whether an error's sentence is a `Watchdog`'s and speaks of the training, not of the data."""
    return sentence.startswith((NO_LOSS, NO_WEIGHTS, NO_FOREGROUND)) and NOT_FINITE not in sentence


def foreground(label: torch.Tensor) -> int:
    """Pixels of any class but 0: (1, ...) class indices or (classes, ...) one-hot."""
    return int(torch.count_nonzero(label if label.shape[0] == 1 else label[1:]))
