import numpy as np

from pipeline.overlay import (
    CAPTION_HEIGHT,
    CLASS_COLOURS,
    CONFUSED_COLOUR,
    DARKENED,
    LINE_COLOUR,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    TINT,
    beside,
    captioned,
    cells,
    class_colour,
    comparison,
    contours,
    errors,
    fitted,
    grey,
    heat,
    legend,
    outlined,
    shown,
    stack_rows,
    tinted,
)

REFERENCE = np.zeros((12, 12), np.uint8)
REFERENCE[2:8, 2:8] = 1
PREDICTION = np.zeros((12, 12), np.uint8)
PREDICTION[2:8, 4:10] = 1


BLACK = np.zeros((12, 12, 3), np.uint8)


def test_errors_lie_on_the_darkened_image_and_are_told_apart_without_colours():
    picture = errors(BLACK + 100, REFERENCE, PREDICTION)
    assert tuple(picture[4, 5]) == tuple(picture[0, 0]) == (int(100 * DARKENED),) * 3  # both right
    assert {tuple(one) for one in picture[2:8, 2:4].reshape(-1, 3)} == {REFERENCE_COLOUR, (255, 255, 255)}
    assert {tuple(one) for one in picture[2:8, 8:10].reshape(-1, 3)} == {PREDICTION_COLOUR}
    other = errors(BLACK, REFERENCE, 2 * PREDICTION)[2:8, 4:8].reshape(-1, 3)
    assert {tuple(one) for one in other} == {CONFUSED_COLOUR, (0, 0, 0)}


def test_the_reference_ends_in_a_line_and_the_prediction_in_dashes():
    picture = contours(BLACK, REFERENCE, PREDICTION)
    assert (picture[2:8, 2] == LINE_COLOUR).all()
    assert {tuple(one) for one in picture[2:8, 9]} == {PREDICTION_COLOUR, (0, 0, 0)}
    assert tuple(picture[4, 5]) == (0, 0, 0)
    classes = contours(BLACK, REFERENCE, 2 * PREDICTION, by_class=True)
    assert (classes[2:8, 2] == CLASS_COLOURS[0]).all()
    assert CLASS_COLOURS[1] in {tuple(one) for one in classes[2:8, 9]}


def test_grey_ignores_outliers_and_survives_a_constant():
    image = np.linspace(0, 1, 10_000).reshape(1, 100, 100)
    image[0, 0, 0] = 1e6
    assert grey(image)[50, 50, 0] == 128
    assert grey(np.full((1, 4, 4), 7.0)).max() == 0


def test_three_panels_with_captions():
    assert comparison(BLACK, REFERENCE, PREDICTION, "x").shape == (
        12 + CAPTION_HEIGHT,
        3 * 12 + 2 * 4,
        3,
    )


def test_a_label_has_one_colour_and_the_image_shines_through():
    image, labels = np.zeros((1, 4, 6)), np.repeat([[0, 1, 1, 2, 7, 7]], 4, axis=0)
    picture = cells(image, labels)
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4
    np.testing.assert_array_equal(cells(image, np.full((4, 6), 7))[0, 0], picture[0, 4])
    image[0, :, 1] = 1
    assert (cells(image, labels)[0, 1] > cells(image, labels)[0, 2]).all()


def test_masks_tint_an_image_only_where_they_are():
    masks = {REFERENCE_COLOUR: REFERENCE == 1, PREDICTION_COLOUR: PREDICTION == 5}
    picture = tinted(np.zeros((1, 12, 12)), masks)
    np.testing.assert_array_equal(picture.any(axis=2), REFERENCE == 1)
    assert tuple(picture[REFERENCE == 1][0]) == tuple(int(TINT * value) for value in REFERENCE_COLOUR)


def test_three_channels_are_colours_in_one_window():
    image = np.zeros((3, 2, 2))
    image[0] = 1000
    image[1] = 500
    assert shown(image, (0, 1000))[0, 0].tolist() == [255, 127, 0]
    assert shown(image[1:2], (0, 1000))[0, 0].tolist() == [127, 127, 127]
    assert shown(image[1:2] - 1500, (-1000, 0))[0, 0].tolist() == [0, 0, 0]


def test_classes_are_outlined_in_their_colours_with_a_dark_rim():
    label = np.zeros((12, 12), np.uint8)
    label[2:6, 2:10] = 1
    label[6:10, 2:10] = 2
    picture = outlined(np.full((12, 12, 3), 200, np.uint8), label)
    assert tuple(picture[2, 5]) == tuple(picture[5, 5]) == CLASS_COLOURS[0]
    assert tuple(picture[6, 5]) == tuple(picture[9, 5]) == CLASS_COLOURS[1]
    assert picture[4, 5].tolist() == [200, 200, 200]
    assert picture[1, 5].tolist() == [100, 100, 100]
    assert picture[0, 0].tolist() == [200, 200, 200]


def test_an_eighth_class_has_the_first_colour_again():
    assert class_colour(8) == class_colour(1) == CLASS_COLOURS[0]


def test_heat_goes_from_black_to_white_and_ignores_rounding():
    assert heat(np.array([[1.0, 4.0, 7.0, 10.0]]), 1, 10).tolist() == [
        [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255] * 3]
    ]
    assert heat(np.array([[1.0, 1.0 + 1e-6]]), 1, 1 + 1e-6).max() == 0
    assert heat(np.zeros((1, 1)), 0, 0).max() == 0


def test_pictures_are_fitted_by_their_longer_side_and_labels_keep_their_values():
    label = np.array([[0, 7], [7, 0]], np.uint8)
    np.testing.assert_array_equal(fitted(label, 6, smooth=False), label.repeat(3, 0).repeat(3, 1))
    assert fitted(np.zeros((2000, 1000, 3), np.uint8), 256).shape == (256, 128, 3)
    assert fitted(np.zeros((4000, 3, 3), np.uint8), 256).shape == (256, 1, 3)


def test_a_long_caption_stays_above_its_picture_and_keeps_both_ends():
    black = np.zeros((4, 100, 3), np.uint8)
    sheet = captioned(black, "patient-1_" * 20 + "17", "x")
    assert sheet.shape == (4 + 2 * CAPTION_HEIGHT, 100, 3)
    np.testing.assert_array_equal(sheet[:CAPTION_HEIGHT, :16], captioned(black, "patient-1")[:CAPTION_HEIGHT, :16])
    ends = [captioned(black, "patient-1_" * 20 + end)[:CAPTION_HEIGHT] for end in ("17", "18")]
    assert (ends[0] != ends[1]).any()


def test_pictures_of_several_sizes_are_padded_with_white():
    row = beside([np.zeros((4, 6, 3), np.uint8), np.zeros((8, 6, 3), np.uint8)])
    assert row.shape == (8, 16, 3)
    assert row[7, 0].tolist() == [255] * 3
    assert stack_rows([row, row[:, :5]]).shape == (24, 16, 3)


def test_the_legend_has_every_colour_and_breaks_its_line():
    names = {1: "left", 2: "right"}
    line = legend(names, 300)
    assert line.shape == (CAPTION_HEIGHT, 300, 3)
    assert {class_colour(1), class_colour(2)} <= set(map(tuple, line.reshape(-1, 3).tolist()))
    assert legend(names, 60).shape == (2 * CAPTION_HEIGHT, 60, 3)
