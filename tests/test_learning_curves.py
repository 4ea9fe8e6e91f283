import numpy as np

from pipeline import learning_curves
from pipeline.learning_curves import draw, figure, record, svg

HISTORY = {
    "loss": [(1, 2.0), (2, 1.0), (3, 0.5)],
    "loss_dice": [(1, 1.2), (2, 0.6), (3, 0.3)],
    "loss_ce": [(1, 0.8), (2, 0.4), (3, 0.2)],
    "learning_rate": [(1, 0.1), (2, 0.05), (3, 0.0)],
    "gradient_norm": [(1, 9.0), (2, 3.0), (3, 1.0)],
    "val_mean_dice": [(1, 0.2), (2, 0.7), (3, 0.6)],
    "val_dice_anterior": [(1, 0.3), (2, 0.8), (3, 0.7)],
    "val_dice_posterior": [(1, 0.1), (2, 0.6), (3, 0.5)],
    "seconds_loading": [(1, 4.0)],
}


def panels(history, best_epoch=None):
    """Title -> its curves' labels."""
    return {
        axes.get_title(loc="left"): [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
        for axes in figure(history, best_epoch).axes
        if axes.axison
    }


def test_every_curve_has_its_panel_and_the_best_epoch_is_told():
    assert panels(HISTORY, best_epoch=2) == {
        "loss of the training": ["loss", "its Dice part", "its cross-entropy part"],
        "validation; best in epoch 2: 0.700": ["mean Dice", "anterior", "posterior"],
        "learning rate": ["learning rate"],
        "gradient norm, before clipping": ["gradient norm, before clipping"],
    }
    assert "validation" in panels(HISTORY, best_epoch=-1)  # none yet


def test_what_is_drawn_is_kept_and_an_epoch_that_is_told_again_counts_once():
    history = {}
    for epoch, loss in ((1, 2.0), (2, 1.5), (2, 1.0)):
        record(history, {"loss": loss, "val_dice_lung": 0.5, "seconds_loading": 3.0}, epoch)
    assert history == {"loss": [(1, 2.0), (2, 1.0)], "val_dice_lung": [(1, 0.5), (2, 0.5)]}


def test_what_says_nothing_new_is_not_drawn():
    weighted = {"loss": [(1, 1.0)], "loss_ce": [(1, 1.0)], "val_mean_dice": [(1, 0.5)], "val_dice_lung": [(1, 0.5)]}
    assert panels(weighted) == {"loss of the training": ["loss"], "validation: Dice of lung": ["mean Dice"]}


def test_of_many_classes_the_lowest_are_drawn():
    many = {"val_mean_dice": [(1, 0.5)]} | {f"val_dice_{number}": [(1, number / 9)] for number in range(9)}
    assert panels(many) == {"validation, the 6 lowest of 9 classes": ["mean Dice", *"012345"]}


def test_no_two_curves_of_a_panel_share_a_dash_pattern():
    colours, dashes = zip(*learning_curves.STYLES, strict=True)
    assert len(set(colours)) == len(set(map(str, dashes))) == len(colours)
    for axes in figure(HISTORY).axes:
        assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in axes.lines}) == len(axes.lines)


def test_the_picture_is_one_and_neither_an_epoch_alone_nor_none_is_an_error():
    for history in (HISTORY, {"loss": [(1, 0.5)]}, {}):
        pixels = draw(history, 1)
        assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (990, 3))
        assert (pixels < 100).any()


def test_the_svg_has_text_and_is_the_same_every_time():
    text = svg(HISTORY, 2)
    assert text.startswith("<svg")
    assert "validation; best in epoch 2: 0.700" in text
    assert text == svg(HISTORY, 2)
