"""A volume at another voxel size covers the same millimetres, and the answer comes back on its own grid."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from nibabel.affines import apply_affine
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.orientation import spacing_mm
from pipeline.spacing import SpacingInferer, ToSpacingd, resample, size_at

AFFINE = np.array([[1.0, 0, 0, -20], [0, 2, 0, 7], [0, 0, 4, 3], [0, 0, 0, 1]])


def volume(shape=(16, 10, 6)):
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    ramp = apply_affine(AFFINE, np.stack([x, y, z], -1)) @ (1.0, 10.0, 100.0)  # a value for every place in mm
    return MetaTensor(torch.as_tensor(ramp, dtype=torch.float32)[None], affine=torch.as_tensor(AFFINE))


def test_a_place_keeps_its_value():
    image = ToSpacingd("image", [2, 2, 2])({"image": volume()})["image"]
    assert image.shape == (1, 8, 10, 12)
    np.testing.assert_allclose(spacing_mm(image.affine.numpy()), [2, 2, 2])
    inner = np.array([2, 2, 3]) + np.argwhere(np.ones((4, 6, 6)))  # away from the edge, beyond which nothing is known
    expected = apply_affine(image.affine.numpy(), inner) @ (1.0, 10.0, 100.0)
    np.testing.assert_allclose(image[0].numpy()[tuple(inner.T)], expected, rtol=1e-5)


def test_enlarging_is_torch_s_own_trilinear_interpolation():
    coarse = torch.rand(2, 3, 5, 6, 7)
    theirs = functional.interpolate(coarse, (10, 9, 8), mode="trilinear", align_corners=False)
    torch.testing.assert_close(resample(coarse, (10, 9, 8)), theirs)


def test_shrinking_means_first_so_a_fine_stripe_becomes_grey():
    stripes = torch.arange(32.0).remainder(2).view(1, 1, 32, 1, 1).expand(1, 1, 32, 4, 4)
    small = resample(stripes, (8, 4, 4))
    assert float((small[:, :, 1:-1] - 0.5).abs().max()) < 0.07


def test_a_label_is_not_mixed():
    label = MetaTensor(torch.randint(0, 3, (1, 16, 10, 6), dtype=torch.uint8), affine=torch.as_tensor(AFFINE))
    turned = ToSpacingd("label", [0.5, 1, 2], "nearest")({"label": label})["label"]
    assert turned.shape == (1, 32, 20, 12)
    torch.testing.assert_close(turned.as_tensor()[:, ::2, ::2, ::2], label.as_tensor())


def test_the_network_sees_the_spacing_and_the_answer_has_the_volumes_grid():
    seen = []

    def network(x):
        seen.append(tuple(x.shape[2:]))
        return torch.cat([x, -x], 1)

    batch = MetaTensor(volume()[None].as_tensor(), affine=torch.as_tensor(AFFINE)[None])
    answer = SpacingInferer(SimpleInferer(), [2, 2, 4])(batch, network)
    assert seen == [(8, 10, 6)]
    assert answer.shape == (1, 2, 16, 10, 6)
    torch.testing.assert_close(answer[0, 0, 3:-3], volume()[0].as_tensor()[3:-3])
    assert SpacingInferer(SimpleInferer(), None)(batch, network).shape == (1, 2, 16, 10, 6)
    assert size_at((16, 10, 6), AFFINE, (2, 2, 4)) == (8, 10, 6)


def test_without_a_voxel_size_there_is_nothing_to_go_by():
    with pytest.raises(InputError, match="set it to null"):
        SpacingInferer(SimpleInferer(), [1, 1, 1])(torch.zeros(1, 1, 4, 4, 4), torch.nn.Identity())
