"""The Dice that validation goes by: a patient's slices pooled, then the mean over patients, never over slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.utils import CommonKeys

from pipeline.batches import cases_of
from pipeline.batches import classes as class_indices
from pipeline.errors import DataError
from pipeline.metrics import dice, overlap_counts, pooled


class PatientDice(Metric):
    """Mean per-patient Dice of an epoch, a value for `key_val_metric` of an evaluation engine.

    True positives, false positives and false negatives of all cases of a patient are added up, so a false positive on
    a slice without the class counts as the pixels that it is. (A mean over slices leaves such a slice out, or scores
    it 0 however small the false positive.) Then Dice per class but the background, the mean over the classes, and the
    mean over the patients. A class that a patient's reference lacks on every slice has no Dice and is left out, and so
    is a patient without any class.

    It needs no `output_transform`: which patient a case is of stands in the engine's batch, not in its output.

    Args:
        classes: how many there are, background included, or their names.
    """

    def __init__(self, classes: int | Sequence[str]) -> None:
        self.classes = classes if isinstance(classes, int) else len(classes)
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
        defined = [values[~np.isnan(values)] for values in (dice(c)[1:] for c in self.counts.values())]
        patients = [float(values.mean()) for values in defined if values.size]
        if not patients:
            raise DataError("no case of the validation has a foreground pixel, so no Dice can say which epoch is best")
        return float(np.mean(patients))
