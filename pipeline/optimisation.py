"""How the weights are moved: the learning rate over the epochs, and the length of a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

SCHEDULES = ("cosine", "plateau", "constant")


class Cosine:
    """The share of the first learning rate that is left after some epochs: (1 + cos(pi epoch / epochs)) / 2."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __call__(self, epoch: int) -> float:
        """1 before the first epoch, 0 after the last one."""
        return (1 + math.cos(math.pi * min(epoch, self.epochs) / self.epochs)) / 2


def lr_scheduler(
    kind: str, optimizer: torch.optim.Optimizer, *, epochs: int, factor: float = 0.5, patience: int = 10
) -> LRScheduler:
    """The learning rate from epoch to epoch.

    Args:
        kind: `cosine` (falls to 0 after `epochs`; Loshchilov and Hutter, arXiv 1608.03983, without restarts),
            `plateau` (times `factor` when the validation metric has not risen for `patience` validations) or
            `constant`.
        optimizer: whose learning rate it is.
        epochs: of the whole training.
        factor: of one fall on a plateau, below 1.
        patience: validations without a rise before the rate falls.

    Raises:
        ValueError: there is no such kind, or the factor is not between 0 and 1.
    """
    if kind == "cosine":
        return LambdaLR(optimizer, Cosine(epochs))
    if kind == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    if kind != "plateau":
        raise ValueError(f"`lr_schedule` must be one of {', '.join(SCHEDULES)}, got {kind!r}")
    if not 0 < factor < 1:
        raise ValueError(f"`lr_factor` must be between 0 and 1, got {factor!r}: 0.5 is common")
    return ReduceLROnPlateau(optimizer, mode="max", factor=factor, patience=patience)


def set_epochs(scheduler: LRScheduler, epochs: int) -> None:
    """Tell a schedule that knows how long the training lasts that it lasts otherwise."""
    for part in getattr(scheduler, "lr_lambdas", ()):
        if isinstance(part, Cosine):
            part.epochs = epochs


class StepSchedule:
    """A handler of the training engine: moves the learning rate after each epoch; stands after the validation.

    Args:
        scheduler: from `lr_scheduler`.
        evaluator: the validation engine, whose key metric tells a plateau; an epoch without validation tells nothing.
    """

    def __init__(self, scheduler: LRScheduler, evaluator: Engine) -> None:
        self.scheduler = scheduler
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Follow an engine."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Move it."""
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
            return
        state: Any = self.evaluator.state
        if state.epoch == engine.state.epoch:
            self.scheduler.step(float(state.metrics[state.key_metric_name]))


class ClipGradients:
    """A handler of the training engine: the gradient of no step is longer than `norm`; how long it was, is recorded.

    It is measured, then shortened, once, when the optimizer is about to step: with accumulation, that is the sum over
    the batches. `gradient_norm` among the engine's metrics is the mean over an epoch's steps of the Euclidean length
    over all parameters, before it was shortened. Stands before the handler that writes the metrics.

    Args:
        optimizer: whose parameters' gradients are meant.
        norm: the greatest length; None clips nothing.

    Raises:
        ValueError: `norm` is not positive.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, norm: float | None) -> None:
        if norm is not None and norm <= 0:
            raise ValueError(f"`clip_norm` must be positive or null, got {norm!r}")
        self.optimizer = optimizer
        self.norm = norm
        self._lengths: list[torch.Tensor] = []  # on the device: to read each one would make the program wait for it

    def attach(self, engine: Engine) -> None:
        """Follow the optimizer's steps and an engine's epochs."""
        self.optimizer.register_step_pre_hook(self._step)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._lengths.clear())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.norm is None:
            length = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            length = torch.nn.utils.clip_grad_norm_(parameters, self.norm)
        self._lengths.append(length.detach())

    def _epoch_completed(self, engine: Engine) -> None:
        if self._lengths:
            engine.state.metrics["gradient_norm"] = torch.stack(self._lengths).mean().item()
