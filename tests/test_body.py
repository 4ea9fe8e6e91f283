import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.body import box, covered, mask

SHAPE = (200, 240)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
HEAD = ((Y - 110) / 70) ** 2 + ((X - 120) / 60) ** 2 < 1


def letters(text, at, size=14):
    """(200, 240) bool of a text whose first letter is at (row, column)."""
    picture = Image.new("1", SHAPE[::-1])
    ImageDraw.Draw(picture).text(at[::-1], text, fill=1, font=ImageFont.load_default(size))
    return np.asarray(picture)


TEXT = letters("DOE^JANE 19700101", (4, 4)) | letters("SAINT MARY", (182, 140), 10) | letters("R", (60, 20), 24)


def head(noise=0.0):
    """A bright disc with dark holes, one of them open to the outside by a narrow passage, in air."""
    image = np.where(HEAD, 600.0, 0.0)
    image[90:120, 80:100] = image[90:120, 140:160] = 20
    image[40:60, 118:122] = 0
    field = np.random.default_rng(0).normal(0, 1, (2, *SHAPE))
    return np.hypot(image + noise * field[0], noise * field[1])[None].astype(np.float32)


def chest():
    """Lungs darker than the air, arms and abdomen that reach the edges, dark collimation below."""
    image = np.full(SHAPE, 200.0)
    image[:40] = 40
    image[:60, 100:140] = 210
    for left in (50, 130):
        image[60:140, left : left + 60] = 90
    image[170:] = 0
    return image[None].astype(np.float32)


def found(image, text=TEXT, shade=None):
    """The mask of an image in which letters were burnt."""
    burnt = image.copy()
    burnt[0, text] = image.max() if shade is None else shade
    return mask(burnt)


@pytest.mark.parametrize("noise", [0, 30, 90])
def test_letters_beside_a_head_are_no_body_and_its_dark_parts_are(noise):
    body = found(head(noise))
    assert not (body & TEXT).any()
    assert (HEAD & ~body).sum() < 0.02 * HEAD.sum()
    assert (body & ~HEAD).sum() < 0.05 * HEAD.sum()


@pytest.mark.parametrize("inverted", [False, True])
def test_letters_on_air_and_collimation_are_no_body_and_lungs_are(inverted):
    image, text = chest(), letters("DOE^JANE", (4, 4)) | letters("ID 4711", (180, 10), 12)
    body = found(image.max() - image if inverted else image, text, shade=0 if inverted else None)
    assert not (body & text).any()
    assert body[60:140, 50:110].all()
    assert body[60:140, 130:190].all()
    assert body[50:160, :5].all()


def test_a_slice_without_a_body_shows_nothing():
    noise = np.random.default_rng(0).rayleigh(1, (1, *SHAPE)).astype(np.float32)
    assert not mask(noise).any()
    assert not found(np.zeros((1, *SHAPE), np.float32), shade=1).any()
    assert not mask(np.full((1, *SHAPE), 7.0)).any()
    assert not mask(np.full((1, 20, 20, 20), np.nan)).any()


def test_a_crop_that_shows_tissue_everywhere_is_body_everywhere():
    from scipy.ndimage import gaussian_filter

    tissue = gaussian_filter(np.random.default_rng(0).normal(size=(36, 50, 36)), 3)
    assert mask(tissue[None]).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_letters_on_every_slice_of_a_volume_are_no_body(axis):
    flat, text = head()[0, ::2, ::2], TEXT[::2, ::2]
    volume, everywhere = (np.repeat(np.expand_dims(one, axis), 24, axis) for one in (np.where(text, 600, flat), text))
    volume.swapaxes(0, axis)[:4] *= everywhere.swapaxes(0, axis)[:4]  # the first slices hold letters alone
    body = mask(volume[None])
    assert not (body & everywhere).any()
    assert body.take(12, axis).sum() > 0.95 * HEAD[::2, ::2].sum()
    assert body.shape == volume.shape


def test_a_large_image_is_masked_in_its_own_size():
    image = head().repeat(5, 1).repeat(5, 2)[:, :-3, :-4]
    body = mask(image)
    assert body.shape == image.shape[1:]
    expected = HEAD.repeat(5, 0).repeat(5, 1)[:-3, :-4]
    assert (body != expected).mean() < 0.03


def test_covered_pixels_are_as_dark_as_the_body_gets_and_the_box_has_a_margin():
    image, body = np.arange(48, dtype=np.int16).reshape(1, 6, 8), np.zeros((6, 8), bool)
    body[2:4, 3:5] = True
    assert covered(image, body)[0, 2:4, 3:5].tolist() == [[19, 20], [27, 28]]
    assert (covered(image, body) == 19).sum() == 45
    assert covered(image, body).dtype == np.int16
    assert not covered(image, body & False).any()
    assert box(body, margin=1) == (slice(1, 5), slice(2, 6))
    assert box(body, margin=4) == (slice(0, 6), slice(0, 8))
    assert box(body & False) == (slice(0, 6), slice(0, 8))
