"""The Dice that validation goes by, and each class's own: a patient's slices pooled, then the mean over patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.utils import CommonKeys

from pipeline import processes
from pipeline.batches import cases_of
from pipeline.batches import classes as class_indices
from pipeline.errors import DataError
from pipeline.metric_names import of_class
from pipeline.metrics import dice, overlap_counts, pooled

CLASS_DICE = "val_dice"
"""Begins the name of a class's Dice among the validation's metrics."""


class PatientDice(Metric):
    """Mean per-patient Dice of an epoch, a value for `key_val_metric` of an evaluation engine.

    True positives, false positives and false negatives of all cases of a patient are added up, so a false positive on
    a slice without the class counts as the pixels that it is. (A mean over slices leaves such a slice out, or scores
    it 0 however small the false positive.) Then Dice per class but the background, the mean over the classes, and the
    mean over the patients. A class that a patient's reference lacks on every slice has no Dice and is left out, and so
    is a patient without any class.

    Beside it, `val_dice_CLASS` of every class but the background, the mean over the patients who have it; NaN where
    nobody does. The mean of these is the metric itself only if every patient has every class.

    It needs no `output_transform`: which patient a case is of stands in the engine's batch, not in its output.

    Args:
        classes: how many there are, background included, or their names.
    """

    def __init__(self, classes: int | Sequence[str]) -> None:
        self.names = [str(name) for name in (range(classes) if isinstance(classes, int) else classes)]
        self.classes = len(self.names)
        super().__init__()

    def reset(self) -> None:
        """Forget the counts of the last epoch."""
        self.counts: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Count the cases of a batch, each with the patient that its item names."""
        for item, output in cases_of(engine):
            prediction, reference = (
                class_indices(output[key].detach().cpu().numpy()) for key in (CommonKeys.PRED, CommonKeys.LABEL)
            )
            self.update((item["patient"], prediction, reference))

    def update(self, output: tuple[str, np.ndarray, np.ndarray]) -> None:
        """Count one case: its patient, prediction and reference, both class indices of one shape."""
        patient, prediction, reference = output
        counts = overlap_counts(prediction, reference, self.classes)
        self.counts[patient] = pooled([self.counts[patient], counts]) if patient in self.counts else counts

    def compute(self) -> float:
        """The mean over patients.

        Raises:
            DataError: no patient has a pixel of any class but the background.
        """
        self.counts = _together(processes.gathered(self.counts))
        defined = [values[~np.isnan(values)] for values in (dice(c)[1:] for c in self.counts.values())]
        patients = [float(values.mean()) for values in defined if values.size]
        if not patients:
            raise DataError("no case of the validation has a foreground pixel, so no Dice can say which epoch is best")
        return float(np.mean(patients))

    def completed(self, engine: Engine, name: str) -> None:
        """Write the mean, as Ignite does, and the classes' own."""
        super().completed(engine, name)
        engine.state.metrics |= by_class(self.names[1:], [dice(counts)[1:] for counts in self.counts.values()])


def _together(shares: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Patient -> counts, pooled over the processes that have validated some of the patient's cases."""
    counts: dict[str, np.ndarray] = {}
    for patient, more in (item for share in shares for item in share.items()):
        counts[patient] = pooled([counts[patient], more]) if patient in counts else more
    return counts


class ClassDice:
    """A handler of the validation engine: each class's Dice where MONAI's MeanDice is the metric, `val_dice_CLASS`.

    It is the mean over the images whose reference has the class, as MeanDice itself is over images and classes.

    Args:
        classes: their names, the background's first.
        metric: the name that MeanDice has, without the background, among the metrics.
    """

    def __init__(self, classes: Sequence[str], metric: str = "val_mean_dice") -> None:
        self.names = [str(name) for name in classes]
        self.metric = metric

    def attach(self, engine: Engine) -> None:
        """Follow an engine whose metric is attached already."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write them; MeanDice has kept its values, (images, classes without the background)."""
        values: Any = engine.state.metric_details[self.metric]  # type: ignore[attr-defined]
        engine.state.metrics |= by_class(self.names[1:], values.cpu().numpy())


def by_class(names: Sequence[str], values: Any) -> dict[str, float]:
    """Metric names of classes -> the mean over what is defined.

    Args:
        names: of the classes.
        values: (cases, classes), NaN where a reference lacks the class.
    """
    table = np.asarray(values, float).reshape(-1, len(names))
    columns = [column[~np.isnan(column)] for column in table.T]
    means = [float(column.mean()) if column.size else math.nan for column in columns]
    return {of_class(CLASS_DICE, name): mean for name, mean in zip(names, means, strict=True)}
