"""Where the time of an epoch goes: reading, augmenting, waiting for data, computing, validating."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

from pipeline.seeding import SeededDataset
from pipeline.stopwatch import TimedCacheDataset

WAITING, COMPUTING, VALIDATING = "seconds_waiting", "seconds_computing", "seconds_validating"
"""Wall time of the training process. The first two add up to the time from the start of an epoch to its last step."""

LOADING, AUGMENTING = "seconds_loading", "seconds_augmenting"
"""Time of work, added up over the loader's processes: with several of them more than the epoch may have lasted."""


class EpochClock:
    """A handler of the training engine: puts where an epoch's seconds went into its metrics.

    - `seconds_waiting`: the training has no batch and waits for one, the start of the loader's processes included.
    - `seconds_computing`: the rest of the steps: batch to the device, forward, loss, backward, optimizer, and what
      handlers do at a step. A GPU computes behind the program's back; it is waited for once, at the end of the epoch,
      so the sum is right. (The watchdog waits for every step's loss, so a step is at most one backward pass early.)
    - `seconds_validating`, among the validation's metrics: from its start until its metrics are known and the
      weights, if they are the best, are saved.
    - `seconds_augmenting`: the random transforms, beside the training where the loader has processes of its own, else
      part of the waiting.
    - `seconds_loading`: reading and preparing cases. What is cached is read before the first epoch begins, training
      and validation cases alike, and counts there, also after a resume; in later epochs only taking cases out of the
      cache does. Without a cache it is part of every epoch, as augmenting is.

    Waiting, computing and validating add up to the epoch's wall time, but for what stands after the validation: the
    checkpoint, and a line of progress. Stands before the handler that writes the metrics.

    Args:
        dataset: of the training.
        evaluator: the validation engine.
        cached: datasets that read their cases before the training began.
        clock: seconds since whenever.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        evaluator: Engine,
        cached: Sequence[TimedCacheDataset] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.dataset = dataset
        self.evaluator = evaluator
        self.clock = clock
        self.told = {LOADING: -sum(cases.seconds for cases in cached), AUGMENTING: 0.0}

    def attach(self, engine: Engine) -> None:
        """Follow an engine and its validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._batch_wanted)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._batch_got)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        self.evaluator.add_event_handler(Events.STARTED, self._validation_started)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _epoch_started(self, _: Engine) -> None:
        self.seconds = {WAITING: 0.0, COMPUTING: 0.0}
        self.doing = WAITING
        self.mark = self.clock()

    def _batch_wanted(self, _: Engine) -> None:
        self._turn_to(WAITING)

    def _batch_got(self, _: Engine) -> None:
        self._turn_to(COMPUTING)

    def _turn_to(self, what: str) -> None:
        now = self.clock()
        self.seconds[self.doing] += now - self.mark
        self.doing, self.mark = what, now

    def _epoch_completed(self, engine: Engine) -> None:
        device: Any = getattr(engine.state, "device", None)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self._turn_to(WAITING)
        done = {LOADING: self.dataset.loading.total(), AUGMENTING: self.dataset.augmenting.total()}
        engine.state.metrics |= self.seconds | {name: done[name] - self.told[name] for name in done}
        self.told = done

    def _validation_started(self, _: Engine) -> None:
        self.validation_start = self.clock()

    def _validated(self, evaluator: Engine) -> None:
        evaluator.state.metrics[VALIDATING] = self.clock() - self.validation_start
