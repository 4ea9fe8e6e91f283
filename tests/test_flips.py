import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from pipeline.errors import InputError
from pipeline.flips import FlipInferer, mirrorings
from pipeline.inferers import OverlapTileInferer
from pipeline.networks import UNet
from pipeline.spacing import SpacingInferer

IMAGES = [torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0)), torch.rand(1, 2, 4, 3, 5)]


def gradient(x):
    """A network that knows left from right: differences along every axis, a class each."""
    return torch.cat([x.roll(1, axis) - x for axis in range(2, x.ndim)], 1)


def test_a_volume_has_eight_mirror_images():
    assert mirrorings(range(3)) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


@pytest.mark.parametrize("image", IMAGES)
def test_without_flips_the_answer_is_the_same_object(image):
    answer = gradient(image)
    assert FlipInferer(SimpleInferer(), False)(image, lambda x: answer) is answer


@pytest.mark.parametrize("image", IMAGES)
def test_the_answer_is_the_mean_of_the_logits(image):
    every = [[axis + 2 for axis in axes] for axes in mirrorings(range(image.ndim - 2))]
    flipped = [gradient(image.flip(axes)).flip(axes) for axes in every]
    torch.testing.assert_close(FlipInferer(SimpleInferer(), True)(image, gradient), torch.stack(flipped).mean(0))


@pytest.mark.parametrize("image", IMAGES)
def test_the_answer_to_a_flipped_image_is_the_flipped_answer(image):
    inferer = FlipInferer(SimpleInferer(), True)
    for axis in range(2, image.ndim):
        torch.testing.assert_close(inferer(image.flip(axis), gradient), inferer(image, gradient).flip(axis))
        assert not torch.allclose(gradient(image.flip(axis)), gradient(image).flip(axis))


def test_only_the_axes_that_are_given_are_flipped():
    image = IMAGES[1]
    answer = FlipInferer(SimpleInferer(), True, axes=[1])(image, gradient)
    torch.testing.assert_close(answer, (gradient(image) + gradient(image.flip(3)).flip(3)) / 2)
    with pytest.raises(InputError, match=r"different ones of \[0, 1\], got \[2\]"):
        FlipInferer(SimpleInferer(), True, axes=[2])(IMAGES[0], gradient)


@pytest.mark.parametrize("image", IMAGES)
def test_flips_change_nothing_for_a_network_that_does_not_mind(image):
    before = image.clone()
    torch.testing.assert_close(FlipInferer(SimpleInferer(), True)(image, lambda x: x), image)
    assert torch.equal(image, before)


def test_the_network_sees_one_image_at_a_time():
    seen = []
    FlipInferer(SimpleInferer(), True)(torch.arange(8.0).reshape(1, 1, 2, 2, 2), lambda x: seen.append(x.clone()) or x)
    assert [tuple(x.shape) for x in seen] == [(1, 1, 2, 2, 2)] * 8
    assert sorted(int(x.flatten()[0]) for x in seen) == list(range(8))  # every corner came first once


def test_a_mirrored_volume_keeps_the_size_of_its_voxels():
    volume = MetaTensor(torch.rand(1, 1, 4, 4, 6), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    seen = []
    inside = FlipInferer(SpacingInferer(SimpleInferer(), (2, 2, 2)), True)
    assert inside(volume, lambda x: seen.append(tuple(x.shape)) or x).shape == volume.shape
    assert seen == [(1, 1, 2, 2, 6)] * 8


def test_tiles_leave_no_trace_under_flips():
    network = UNet(2, 1, 2, width=2, depth=2, padding="zeros").eval()
    image = MetaTensor(torch.rand(1, 1, 40, 30))
    with torch.no_grad():
        tiled = FlipInferer(OverlapTileInferer(tile=20), True)(image, network)
        whole = FlipInferer(SimpleInferer(), True)(image, network)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
