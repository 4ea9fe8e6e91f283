"""Whatever habits a vendor or an archive has, the voxels of a good series are read, and at the same place."""

import numpy as np
import pytest
from pydicom import dcmread

from pipeline.dicom import read_series
from pipeline.dicom_files import is_dicom
from pipeline.quirks import QUIRKS, slices
from pipeline.synthetic_series import write_series

C, S = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[-C, S, 0], [-S, -C, 0], [0, 0, 1]])
VALUES = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 6))
UNCHANGED = [name for name in QUIRKS if name != "padding -2000"]


def quirky(folder, name):
    place = {"direction": OBLIQUE, "position_mm": (10, -20, 30), "spacing_mm": (2, 1.5, 3)}
    write_series(VALUES, folder, patient_id="P", **place)
    good = read_series(folder)
    QUIRKS[name](folder)
    return good


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_quirk_moves_no_voxel(tmp_path, name):
    good = quirky(tmp_path / "ct", name)
    series = read_series(tmp_path / "ct")
    np.testing.assert_array_equal(series.volume, VALUES)
    np.testing.assert_allclose(series.affine, good.affine, atol=0.01 if name == "rounded decimals" else 1e-9)


def test_what_begins_like_a_file_without_preamble_is_no_dicom_yet(tmp_path):
    quirky(tmp_path / "ct", "no preamble")
    (tmp_path / "ct" / "table.bin").write_bytes(b"\x02\0\0\0\x04\0\0\0" + bytes(range(256)) * 8)
    np.testing.assert_array_equal(read_series(tmp_path / "ct").volume, VALUES)
    assert is_dicom(tmp_path / "ct" / "00001.dcm") and not is_dicom(tmp_path / "ct" / "table.bin")


def test_padding_is_what_the_file_stores(tmp_path):
    quirky(tmp_path / "ct", "padding -2000")
    volume = read_series(tmp_path / "ct").volume
    assert (volume[0, 0] == -3024).all()  # -2000 with the intercept -1024
    np.testing.assert_array_equal(volume[1:], VALUES[1:])


def test_slices_are_numbered_down_or_at_random(tmp_path):
    quirky(tmp_path / "down", "numbered down")
    assert [dataset.InstanceNumber for _, dataset in slices(tmp_path / "down")] == [6, 5, 4, 3, 2, 1]
    quirky(tmp_path / "random", "out of order")
    numbers = [dataset.InstanceNumber for _, dataset in slices(tmp_path / "random")]
    names = [path.name for path, _ in slices(tmp_path / "random")]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6] != numbers
    assert names != sorted(names) != names[::-1]


def test_a_disc_has_a_catalogue_of_its_files(tmp_path):
    quirky(tmp_path / "ct", "DICOMDIR")
    catalogue = dcmread(tmp_path / "ct" / "DICOMDIR")
    named = [record.ReferencedFileID for record in catalogue.DirectoryRecordSequence if "ReferencedFileID" in record]
    assert len(named) == 6
    assert all((tmp_path / "ct").joinpath(*parts).is_file() for parts in named)


def test_compressed_files_say_how(tmp_path):
    names = {"RLE": "1.2.840.10008.1.2.5", "JPEG-LS": "1.2.840.10008.1.2.4.80", "JPEG 2000": "1.2.840.10008.1.2.4.90"}
    for name, syntax in names.items():
        quirky(tmp_path / name, name)
        assert {data.file_meta.TransferSyntaxUID for _, data in slices(tmp_path / name)} == {syntax}
