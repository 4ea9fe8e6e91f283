import shutil

import numpy as np
import pytest
import torch

from pipeline import reference_case
from pipeline.errors import InputError
from pipeline.release_files import REFERENCE_ABOUT, REFERENCE_EXPECTED, STATE


@pytest.fixture
def copy(unpacked, tmp_path):
    return shutil.copytree(unpacked, tmp_path / unpacked.name)


def change(folder, **arrays):
    with np.load(folder / REFERENCE_EXPECTED) as old:
        np.savez(folder / REFERENCE_EXPECTED, **{**old, **arrays})


def test_the_device_that_made_it_reproduces_it(unpacked):
    assert reference_case.reproduce(unpacked) == (0.0, reference_case.TOLERANCES["cpu"], True)


def test_a_weight_that_was_changed_shows(copy):
    state = torch.load(copy / STATE, weights_only=True)
    name = next(name for name in state if name.endswith("weight"))
    state[name] *= 1.05
    torch.save(state, copy / STATE)
    found = reference_case.reproduce(copy)
    assert found.largest_difference > found.tolerance
    assert not found.passed


def test_classes_are_compared_where_there_is_no_doubt(copy):
    with np.load(copy / REFERENCE_EXPECTED) as arrays:
        likely, labels = arrays["probabilities"], arrays["labels"]
    assert likely.shape == (2, 96, 80)
    assert labels.shape == (96, 80)
    lead = np.abs(likely[0] - likely[1])
    certain = np.unravel_index(lead.argmax(), lead.shape)
    wrong = labels.copy()
    wrong[certain] ^= 1
    change(copy, labels=wrong)
    assert reference_case.reproduce(copy)[::2] == (0.0, False)


def test_another_shape_is_no_reproduction(copy):
    change(copy, probabilities=np.zeros((3, 96, 80), np.float32))
    assert reference_case.reproduce(copy)[::2] == (float("inf"), False)


def test_a_missing_case_is_told(copy):
    (copy / REFERENCE_ABOUT).unlink()
    with pytest.raises(InputError, match=r"reference.json: missing; a release has a reference case"):
        reference_case.reproduce(copy)


@pytest.mark.parametrize(("channels", "dims", "shape"), [(3, 2, (3, 96, 80)), (1, 3, (1, 40, 48, 32))])
def test_the_image_fits_the_network(channels, dims, shape):
    image = reference_case.image(channels, dims)
    assert (image.shape, image.min(), image.max()) == (shape, 0, 255)
    assert len({channel.tobytes() for channel in image}) == channels
