import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.handlers.mean_dice import MeanDice
from monai.transforms import AsDiscreted, Compose

from pipeline.errors import DataError
from pipeline.patient_dice import ClassDice, PatientDice


def row(*values):
    return torch.tensor(values)[None, None]  # (1, 1, W), as an image of one line


def dice_of(metric, *cases, classes=2):
    return metrics_of(metric, *cases, classes=classes)["val_mean_dice"]


def metrics_of(metric, *cases, classes=2, handlers=()):
    """Of cases (patient, reference, prediction), as a bundle's validation engine computes it, batches of 2."""
    items = [
        {"id": f"{patient}{number}", "patient": patient, "image": prediction.float(), "label": reference}
        for number, (patient, reference, prediction) in enumerate(cases)
    ]
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(items, batch_size=2),
        torch.nn.Identity(),
        postprocessing=Compose([AsDiscreted(["pred", "label"], to_onehot=classes)]) if classes else None,
        key_val_metric={"val_mean_dice": metric},
        val_handlers=handlers,
    )
    evaluator.run()
    return evaluator.state.metrics


PERFECT = ("p", row(1, 1, 1, 0), row(1, 1, 1, 0))
HALF_FOUND = ("p", row(1, 1, 0, 0), row(1, 0, 0, 0))
FALSE_POSITIVE = ("p", row(0, 0, 0, 0), row(0, 0, 1, 1))


def test_slices_of_a_patient_are_pooled():
    assert dice_of(PatientDice(2), PERFECT, HALF_FOUND) == pytest.approx(2 * 4 / (3 + 3 + 2 + 1))
    of_slices = dice_of(MeanDice(include_background=False, output_transform=from_engine(["pred", "label"])), PERFECT,
                        HALF_FOUND)  # fmt: skip
    assert of_slices == pytest.approx((1 + 2 / 3) / 2)


def test_a_false_positive_on_an_empty_slice_counts():
    assert dice_of(PatientDice(["background", "tumour"]), PERFECT, FALSE_POSITIVE) == pytest.approx(6 / 8)
    of_slices = dice_of(MeanDice(include_background=False, output_transform=from_engine(["pred", "label"])), PERFECT,
                        FALSE_POSITIVE)  # fmt: skip
    assert of_slices == 1


def test_the_mean_is_over_patients_however_many_slices_they_have():
    other = ("q", row(1, 1, 1, 1), row(1, 0, 0, 0))
    assert dice_of(PatientDice(2), PERFECT, PERFECT, PERFECT, other) == pytest.approx((1 + 2 / 5) / 2)


def test_classes_and_patients_without_a_reference_are_left_out():
    three = ("p", row(1, 1, 2, 2), row(1, 1, 2, 1))
    without_2 = ("q", row(1, 1, 1, 0), row(1, 1, 0, 0))
    healthy = ("r", row(0, 0, 0, 0), row(0, 0, 1, 1))
    p, q = (4 / 5 + 2 / 3) / 2, 4 / 5
    assert dice_of(PatientDice(3), three, without_2, healthy, classes=3) == pytest.approx((p + q) / 2)
    with pytest.raises(DataError, match="no case of the validation has a foreground pixel"):
        dice_of(PatientDice(2), healthy)


def test_class_indices_serve_as_well_as_one_hot_and_every_epoch_begins_anew():
    metric = PatientDice(2)
    assert dice_of(metric, PERFECT, HALF_FOUND, classes=None) == pytest.approx(8 / 9)
    assert dice_of(metric, PERFECT, classes=None) == 1
    metric.reset()
    metric.update(("p", np.array([1, 0]), np.array([1, 1])))
    assert metric.compute() == pytest.approx(2 / 3)


def test_volumes_are_scored_as_images_are():
    volume = torch.zeros(1, 1, 4, 5, 6)
    volume[..., 1:3] = 1
    shifted = volume.roll(1, -1)
    assert dice_of(PatientDice(2), ("p", volume, volume), ("q", volume, shifted)) == pytest.approx((1 + 0.5) / 2)


THREE = [("p", row(1, 1, 2, 2), row(1, 1, 2, 1)), ("q", row(1, 1, 1, 0), row(1, 1, 0, 0))]


def test_each_class_has_a_dice_over_the_patients_who_have_it():
    found = metrics_of(PatientDice(["background", "tumour/core", "50 % oedema"]), *THREE, classes=3)
    assert found == pytest.approx(
        {
            "val_mean_dice": ((4 / 5 + 2 / 3) / 2 + 4 / 5) / 2,
            "val_dice_tumour_core": (4 / 5 + 4 / 5) / 2,
            "val_dice_50___oedema": 2 / 3,
        }
    )
    found = metrics_of(PatientDice(["background", "lung", "heart"]), THREE[1], classes=3)
    assert found["val_dice_lung"] == found["val_mean_dice"]
    assert np.isnan(found["val_dice_heart"])  # which is not logged


def test_each_class_has_a_dice_where_monais_is_the_metric():
    monais = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    found = metrics_of(monais, *THREE, classes=3, handlers=[ClassDice(["background", "a", "b"])])
    assert found["val_mean_dice"] == pytest.approx(((4 / 5 + 2 / 3) / 2 + 4 / 5) / 2)
    assert [found["val_dice_a"], found["val_dice_b"]] == pytest.approx([4 / 5, 2 / 3])
