import numpy as np

from pipeline.overlay import (
    BOTH_COLOUR,
    CAPTION_HEIGHT,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    TINT,
    cells,
    comparison,
    contours,
    errors,
    grey,
    tinted,
)

REFERENCE = np.zeros((12, 12), np.uint8)
REFERENCE[2:8, 2:8] = 1
PREDICTION = np.zeros((12, 12), np.uint8)
PREDICTION[2:8, 4:10] = 1


def test_errors_have_the_colour_of_who_is_alone():
    picture = errors(REFERENCE, PREDICTION)
    assert tuple(picture[4, 2]) == REFERENCE_COLOUR
    assert tuple(picture[4, 5]) == BOTH_COLOUR
    assert tuple(picture[4, 9]) == PREDICTION_COLOUR
    assert tuple(picture[0, 0]) == (0, 0, 0)


def test_contours_are_where_the_labels_end():
    picture = contours(np.zeros((1, 12, 12)), REFERENCE, PREDICTION)
    assert tuple(picture[4, 2]) == REFERENCE_COLOUR
    assert tuple(picture[4, 9]) == PREDICTION_COLOUR
    assert tuple(picture[2, 5]) == BOTH_COLOUR
    assert tuple(picture[4, 5]) == (0, 0, 0)


def test_grey_ignores_outliers_and_survives_a_constant():
    image = np.linspace(0, 1, 10_000).reshape(1, 100, 100)
    image[0, 0, 0] = 1e6
    assert grey(image)[50, 50, 0] == 128
    assert grey(np.full((1, 4, 4), 7.0)).max() == 0


def test_three_panels_with_captions():
    assert comparison(np.zeros((1, 12, 12)), REFERENCE, PREDICTION, "x").shape == (
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
