import numpy as np
import torch

from pipeline.case_pictures import CasePictures, drawn
from pipeline.overlay import PREDICTION_COLOUR
from pipeline.scoring import Scored

CLASSES = ["background", "lung"]


def case(name, right=0, wrong=0, **arguments):
    """20 x 20 with 10 pixels of reference, of which `right` are found, and `wrong` ones beside."""
    reference, prediction = np.zeros((2, 20, 20), np.uint8)
    reference[5, :10] = prediction[5, :right] = prediction[9, :wrong] = 1
    return Scored(name, f"patient-{name}", np.zeros((1, 20, 20), np.float32), reference, prediction, **arguments)


def kept(*cases, **arguments):
    pictures = CasePictures(CLASSES, crop=False, **arguments)
    for one in cases:
        pictures.keep(one)
    return pictures


def test_worst_median_and_best_are_by_dice_and_then_by_wrong_pixels():
    pictures = kept(case("b", 0, 3), case("d", 10), case("a", 0, 5), case("c", 5), worst=3).pictures()
    assert [(one.rank, one.case, one.file) for one in pictures] == [
        ("worst 1", "a", "worst_1.png"),
        ("worst 2", "b", "worst_2.png"),
        ("worst 3", "c", "worst_3.png"),
        ("median", "b", "median.png"),
        ("best", "d", "best.png"),
    ]
    assert [one.dice for one in pictures[2:]] == [10 / 15, 0.0, 1.0]
    assert pictures[0].patient == "patient-a"


def test_one_case_is_worst_median_and_best_and_none_is_no_picture():
    assert list(kept(case("a")).drawn("epoch 3")) == ["worst.png", "median.png", "best.png"]
    assert kept().drawn() == {}
    pictures = kept(case("a"))
    pictures.clear()
    assert pictures.drawn() == {}


def test_a_kept_case_is_drawn_as_at_once_and_takes_no_room():
    volume = np.random.default_rng(0).integers(0, 2, (2, 40, 50, 60)).astype(np.uint8)
    one = Scored("v", "p", volume[None, 0].astype(np.float32), *volume, spacing_mm=(1.0, 1.0, 2.0))
    pictures = kept(one)
    assert sum(map(len, pictures.kept[0].layers)) < volume.size / 10
    (worst, *_) = pictures.pictures()
    title = f"v  Dice {worst.dice:.3f}, worst"
    np.testing.assert_array_equal(worst.pixels, drawn(one, title, CLASSES))


def test_what_lies_outside_the_body_is_counted_not_drawn():
    body = np.zeros((20, 20), bool)
    body[:8] = True
    assert case("a", 3, 7, body=body).notes == ["7 px outside the body not drawn"]
    assert case("a", 3, body=body).notes == []
    assert case("a", 1, body=body & False).notes == [
        "no body was found: the image is not shown",
        "1 px outside the body not drawn",
    ]
    picture = drawn(case("a", 10, 7, body=body), "a", CLASSES)
    assert not (picture == PREDICTION_COLOUR).all(2)[:, -300:].any()  # nothing added in the panel of errors


def test_a_batch_is_taken_as_the_engine_gives_it_and_its_body_is_looked_for_once(monkeypatch):
    image, label = torch.zeros(2, 64, 64), torch.zeros(1, 64, 64)
    image[1, 10:50, 10:50], label[:, 20:30, 20:30] = 5, 1
    pictures = CasePictures(CLASSES, channel=1)
    output = {"image": image, "label": label, "pred": torch.stack([1 - label[0], label[0]])}
    pictures.add({"id": "a", "patient": "p"}, output)
    first = pictures.drawn()
    assert pictures.pictures()[0].dice == 1
    monkeypatch.setattr("pipeline.body.mask", None)
    pictures.clear()
    pictures.add({"id": "a", "patient": "p"}, output)
    np.testing.assert_array_equal(pictures.drawn()["best.png"], first["best.png"])
    assert pictures.kept[0].views[0].layers.shape[1] in (44, 46)  # the body, 40 px, and what is around


def test_volumes_are_shown_in_three_planes():
    label = torch.zeros(2, 6, 8, 4)  # one-hot
    label[1, 2:4, 2:4, 1] = 1
    pictures = CasePictures(CLASSES, crop=False)
    pictures.add(
        {"id": "a", "patient": "p"}, {"image": torch.rand(1, 6, 8, 4), "label": label, "pred": label.roll(1, 1)}
    )
    assert [view.caption for view in pictures.kept[0].views] == ["axial 2 of 4", "coronal 3 of 8", "sagittal 3 of 6"]
