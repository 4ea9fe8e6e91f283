"""The affine and the voxels of every good series are those of dcm2niix and of SimpleITK."""

import numpy as np
import pytest

from pipeline.orientation import to_ras
from pipeline.quirks import QUIRKS
from pipeline.synthetic_series import write_series
from tests.benchmarks import dicom_peers as peers
from tests.test_orientations_dicom import DIRECTIONS

ROUNDED_MM = 0.02
"""Positions that are rounded to 0.01 mm give every reader another affine."""

CANNOT = {
    ("dcm2niix", "deflated"): "dcm2niix does not inflate files",
    ("dcm2niix", "JPEG-LS"): "Debian's dcm2niix has no JPEG-LS",
    ("SimpleITK", "in two folders"): "GDCM takes the files of one folder",
    ("SimpleITK", "DICOMDIR"): "GDCM takes the files of one folder",
}


def theirs(name, folder):
    if name not in peers.at_hand():
        pytest.skip(f"{name} is not installed")
    return peers.READERS[name](folder)


def assert_equal(folder, peer, tolerance_mm=1e-3):
    ours, (volume,) = peers.ours(folder)[0], theirs(peer, folder)
    (values, affine), (their_values, their_affine) = to_ras(*ours[:2]), to_ras(*volume[:2])
    np.testing.assert_allclose(affine, their_affine, rtol=0, atol=tolerance_mm)
    np.testing.assert_array_equal(values, their_values)


@pytest.mark.parametrize("peer", ["dcm2niix", "SimpleITK"])
@pytest.mark.parametrize("name", QUIRKS)
def test_a_good_series_is_the_same_volume_to_its_peers(tmp_path, name, peer):
    if (peer, name) in CANNOT:
        pytest.skip(CANNOT[peer, name])
    QUIRKS[name](peers.good_series(tmp_path / "ct"))
    assert_equal(tmp_path / "ct", peer, ROUNDED_MM if name == "rounded decimals" else 1e-3)


@pytest.mark.parametrize("peer", ["dcm2niix", "SimpleITK"])
def test_so_is_one_in_each_of_24_orientations(tmp_path, peer):
    for number, direction in enumerate(DIRECTIONS):
        folder, upwards, modality = tmp_path / str(number), number % 2 * 2 - 1, ("CT", "MR")[number // 2 % 2]
        place = {"direction": direction * [1, 1, upwards], "spacing_mm": (1, 1.5, 2), "position_mm": (10, -20, 30)}
        write_series(np.arange(60).reshape(3, 4, 5), folder, patient_id="P", modality=modality, **place)
        assert_equal(folder, peer)


def test_a_reader_that_puts_voxels_elsewhere_is_found_out(tmp_path):
    folder = peers.good_series(tmp_path / "ct")
    truth = peers.places(folder)
    (good,) = peers.ours(folder)
    shifted = good.affine + 2 * np.eye(4)[:, [3, 1, 2, 0]] * [0, 0, 0, 1]  # 2 mm to the right
    for volume, said in [
        (good, "equal"),
        (good._replace(affine=shifted), "2.0 mm off"),
        (good._replace(values=good.values[:, :, :5]), "5 of 8 slices"),
        (good._replace(values=good.values + 5000), "other values"),
    ]:
        assert peers.words(peers.Answer([volume]), truth) == said
