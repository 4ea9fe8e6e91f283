import numpy as np

from pipeline.overlay import (
    BOTH_COLOUR,
    CAPTION_HEIGHT,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    comparison,
    contours,
    errors,
    grey,
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
