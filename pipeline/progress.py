"""How long work says how far it is: a function wrapped around what is iterated, and a handler for a training."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline import processes

logger = logging.getLogger("pipeline.progress")

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""(items, how many, what is being done) -> the same items."""


def silent(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show nothing."""
    return items


SOON_S = 10.0
"""Work that is done sooner than this needs no line that says how far it is."""


def logged(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """Show a bar on a terminal; elsewhere log how long it takes after the first item, and then at every tenth.

    Nothing is said of what takes less than `SOON_S`.
    """
    if sys.stdout.isatty():
        yield from tqdm(items, total=total, desc=description, file=sys.stdout, leave=False, delay=1)
        return
    start, told = time.monotonic(), -1
    for number, item in enumerate(items, start=1):
        yield item
        expected = (time.monotonic() - start) / number * total
        if expected >= SOON_S and 10 * number // total > told and number < total:
            told = 10 * number // total
            left = tqdm.format_interval(expected * (1 - number / total))
            logger.info("%d of %d %s, %s left", number, total, description, left)


SHOWN = ("loss", "learning_rate", "images_per_second")
"""Metrics of an epoch that its line tells, beside the validation's; the tracking store has them all."""


class TrainingProgress:
    """A handler of the training engine: a bar over the steps on a terminal, one plain line per epoch otherwise.

    Both tell the loss, the last validation, the images per second and the time left. Stands after the validation.

    Args:
        evaluator: the validation engine.
    """

    def __init__(self, evaluator: Engine) -> None:
        self.evaluator = evaluator
        self.bar: Any = None
        self._above_the_bar = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Follow an engine from its start to its end; of several processes the first one tells."""
        if not processes.is_first():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start(self, engine: Engine) -> None:
        self.start, self.first, self.images, self.last = time.monotonic(), engine.state.iteration, 0, ""
        if sys.stdout.isatty():
            self.bar = tqdm(
                total=_steps(engine),
                initial=engine.state.iteration,
                file=sys.stdout,
                bar_format="{bar:20}  {desc}",
                leave=False,
                dynamic_ncols=True,
            )
            loggers = [logging.getLogger(), logging.getLogger("pipeline")]
            self._above_the_bar.enter_context(logging_redirect_tqdm(loggers))

    def _step(self, engine: Engine) -> None:
        outputs: Any = engine.state.output
        self.images += len(outputs) * processes.count()
        if self.bar is not None:
            self.bar.total = _steps(engine)
            rate = self.images / (time.monotonic() - self.start)
            loss = float(outputs[0].get("loss", float("nan")))
            now = f"loss {loss:.3f}{self.last}  {rate:.1f} images/s  {self._left(engine)} left"
            self.bar.set_description_str(f"{_place(engine)}  {now}", refresh=False)
            self.bar.update()

    def _epoch(self, engine: Engine) -> None:
        values = {name: value for name, value in engine.state.metrics.items() if name in SHOWN}
        state: Any = self.evaluator.state
        if state.epoch == engine.state.epoch and state.key_metric_name:
            values[state.key_metric_name] = state.metrics[state.key_metric_name]
            values["best"] = state.best_metric
            self.last = f"  {state.key_metric_name} {values[state.key_metric_name]:.3f}"
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("%s  %s  %s left", _place(engine), shown, self._left(engine))

    def _left(self, engine: Engine) -> str:
        """Time to the end at the speed since the start, validations included."""
        seconds = (time.monotonic() - self.start) / max(engine.state.iteration - self.first, 1)
        return tqdm.format_interval(seconds * (_steps(engine) - engine.state.iteration))

    def _close(self, _: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self._above_the_bar.close()


def close_bars() -> None:
    """Close the bars that an exception has left open, so that what is said next stands on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _place(engine: Engine) -> str:
    return f"epoch {engine.state.epoch}/{engine.state.max_epochs}"


def _steps(engine: Engine) -> int:
    return (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
