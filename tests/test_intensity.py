"""Intensities between two percentiles, or two fixed values, become -1 to 1; MONAI is the oracle."""

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRange, ScaleIntensityRangePercentiles

from pipeline.intensity import Scaled, percentiles_of

VOLUME = torch.rand(2, 9, 8, 7, generator=torch.Generator().manual_seed(0)) ** 3 * 1.7e6


def test_percentiles_of_each_channel_as_monai_has_them():
    theirs = ScaleIntensityRangePercentiles(0.5, 99.5, -1, 1, clip=True, channel_wise=True)(VOLUME.clone())
    ours = Scaled("image", percentiles=[0.5, 99.5])({"image": VOLUME.clone()})["image"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_window_has_precedence_as_monai_has_it():
    theirs = ScaleIntensityRange(1000, 9e5, -1, 1, clip=True)(VOLUME.clone())
    ours = Scaled("image", percentiles=[0.5, 99.5], window=[1000, 9.0e5])({"image": VOLUME.clone()})["image"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_nothing_is_copied_and_nothing_asked_for_changes_nothing():
    tensor = VOLUME.clone()
    assert Scaled("image")({"image": tensor})["image"] is tensor
    np.testing.assert_array_equal(tensor, VOLUME)
    assert Scaled("image", percentiles=[0, 100])({"image": tensor})["image"].data_ptr() == tensor.data_ptr()
    assert (float(tensor.min()), float(tensor.max())) == (-1, 1)


def test_a_constant_channel_becomes_zero():
    assert Scaled("image", percentiles=[0, 100])({"image": torch.full((1, 2, 2), 7.0)})["image"].unique() == 0


def test_of_a_large_volume_every_nth_voxel_is_asked(monkeypatch):
    monkeypatch.setattr("pipeline.intensity.SAMPLED", 50)
    assert percentiles_of(np.arange(101.0), (0, 100)) == (0, 99)  # every third: 0, 3, ... 99


@pytest.mark.parametrize("ends", [[5, 5], [1], "12", [99, 1]])
def test_ends_that_do_not_rise_are_refused(ends):
    with pytest.raises(ValueError, match="two rising numbers"):
        Scaled("image", window=ends)
    with pytest.raises(ValueError, match="from 0 to 100"):
        Scaled("image", percentiles=[-1, 99])
