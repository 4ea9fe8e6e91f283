import numpy as np
import pytest

from pipeline.overlay import CAPTION_HEIGHT, CLASS_COLOURS, GAP, REFERENCE_COLOUR
from pipeline.planes import AXIAL, LONGEST, PLANES, SIDE, SMALL, caption, cut, drawn, most, outlined, scaled, views

SHAPE = (6, 8, 10)
CORONAL, SAGITTAL = PLANES[1:]


def at(*corner):
    """A volume with one voxel."""
    volume = np.zeros(SHAPE, np.uint8)
    volume[corner] = 1
    return volume


@pytest.mark.parametrize(
    ("plane", "voxel", "place"),
    [
        (AXIAL, (5, 7, 3), (0, 0)),  # right and front: top left
        (AXIAL, (0, 0, 3), (7, 5)),  # left and back: bottom right
        (CORONAL, (5, 3, 9), (0, 0)),  # right and up
        (CORONAL, (0, 3, 0), (9, 5)),
        (SAGITTAL, (3, 7, 9), (0, 0)),  # front and up
        (SAGITTAL, (3, 0, 0), (9, 7)),
    ],
)
def test_slices_hang_as_radiologists_hang_them(plane, voxel, place):
    drawn = cut(at(*voxel), plane, voxel[plane.axis])
    assert np.argwhere(drawn).tolist() == [list(place)]


def test_the_letters_say_which_side_is_where():
    assert [plane.letters for plane in PLANES] == ["RLAP", "RLSI", "APSI"]
    assert caption(CORONAL, 2, SHAPE) == "coronal 3 of 8"


def test_planes_have_one_scale_in_mm():
    spacing = (1.0, 1.0, 4.0)  # 6 x 8 x 40 mm
    sizes = [scaled(cut(at(0, 0, 0), plane, 0), plane, SHAPE, spacing, 200).shape for plane in PLANES]
    assert sizes == [(40, 30), (200, 30), (200, 40)]
    assert scaled(cut(at(0, 0, 0), AXIAL, 0), AXIAL, SHAPE, None).shape == (round(8 * SIDE / 10), round(6 * SIDE / 10))
    assert set(np.unique(scaled(cut(3 * at(2, 2, 2), AXIAL, 2), AXIAL, SHAPE, None))) == {0, 3}


def test_the_slice_with_the_most_is_found_and_the_middle_without_any():
    mask = np.zeros(SHAPE, bool)
    mask[1, :3, 2:5] = mask[4, 0, 2] = True
    assert most(mask) == (1, 0, 2)
    assert most(mask & False) == (3, 4, 5)


def test_a_volume_is_drawn_where_it_is_most_wrong_not_where_there_is_most():
    image, reference = np.zeros((1, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8)
    reference[1:5, 1:7, 1:9] = 1
    prediction = reference.copy()
    prediction[4, 6, 2:8] = 0
    prediction[0, 0, 9] = 1
    found = views(image, reference, prediction, (1.0, 1.0, 1.0))
    assert [view.caption for view in found] == ["axial 3 of 10", "coronal 7 of 8", "sagittal 5 of 6"]
    picture = drawn(found, ["p1  Dice 0.98"])
    assert picture.shape[1] == 3 * SIDE + 2 * GAP
    axial = picture[2 * CAPTION_HEIGHT :, 2 * (SIDE + GAP) :]
    voxel = SIDE / 10
    missed = axial[round(1.2 * voxel) : round(1.8 * voxel), round(1.2 * voxel) : round(1.8 * voxel)].reshape(-1, 3)
    assert set(map(tuple, missed.tolist())) == {REFERENCE_COLOUR, (255, 255, 255)}  # at the right front
    assert views(image, reference, reference)[0].caption == "axial 2 of 10"  # nothing wrong: the most foreground


def test_what_is_outside_the_body_is_not_drawn_but_the_reference_is():
    image, body = np.full((1, 40, 40), 9.0, np.float32), np.zeros((40, 40), bool)
    image[0, 10:20, 10:20], body[10:20, 10:20] = np.arange(10), True
    reference, prediction = np.zeros((2, 40, 40), np.uint8)
    reference[12, 12], prediction[12:14, 12], prediction[30, 30], reference[5, 12] = 1, 1, 1, 1
    (view,) = views(image, reference, prediction, body=body)
    grey, truth, ours = view.layers
    assert view.layers.shape == (3, 19, 14)  # rows 5 to 19 and columns 10 to 19, two pixels around
    assert (truth.sum(), ours.sum(), grey[:7].max(), grey[7:17, 2:12].max()) == (2, 2, 0, 255)
    assert view.size == (SIDE, round(SIDE * 14 / 19))
    volume = views(image[..., None].repeat(3, 3), *(label[..., None].repeat(3, 2) for label in (reference, prediction)),
                   body=body[..., None].repeat(3, 2))  # fmt: skip
    assert [view.caption for view in volume] == ["axial 1 of 3", "coronal 13 of 40", "sagittal 6 of 40"]


def test_large_images_are_kept_as_small_as_they_are_drawn():
    image, label = np.zeros((1, 2000, 1000), np.float32), np.zeros((2000, 1000), np.uint8)
    label[500:, 500:] = 3
    (view,) = views(image, label, label)
    assert view.layers.shape == (3, LONGEST, LONGEST // 2)
    assert np.unique(view.layers[1]).tolist() == [0, 3]


def test_several_classes_have_a_legend():
    label = np.eye(12, dtype=np.uint8)
    found = views(np.zeros((1, 12, 12), np.float32), label, 2 * label)
    named = drawn(found, ["x"], {1: "left", 2: "right"})
    assert named.shape[0] == drawn(found, ["x"]).shape[0] + GAP + CAPTION_HEIGHT


def test_a_sheet_shows_the_largest_slice_outlined():
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 1:7, 3] = 2
    pictures = outlined(np.zeros((1, *SHAPE), np.float32), label, spacing_mm=(1.0, 1.0, 1.0))
    assert [picture.shape[1] for picture in pictures] == [SMALL] * 3
    rows, columns = np.nonzero((pictures[0][CAPTION_HEIGHT:] == CLASS_COLOURS[1]).all(axis=2))
    voxel = SMALL / 10
    assert [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1] == pytest.approx(
        [voxel, 7 * voxel, voxel, 5 * voxel], abs=1
    )


def test_colours_and_a_given_window_are_kept():
    image = np.stack([np.full(SHAPE, value, np.float32) for value in (100, 50, 0)])
    picture = outlined(image, None, span=(0, 100))[0][CAPTION_HEIGHT:]
    assert picture[20, 40].tolist() == [255, 127, 0]


def test_a_sample_that_may_be_mirrored_has_no_letters():
    flat = np.zeros((1, *SHAPE), np.float32)
    width = round(8 * SMALL / 10)
    shown = [outlined(flat, None, letters=letters)[2][CAPTION_HEIGHT:, :width] for letters in (True, False)]
    assert [picture.max() for picture in shown] == [255, 0]
