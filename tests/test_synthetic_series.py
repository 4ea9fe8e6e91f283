"""Synthetic series and projections are what they say, by the judgement of other readers of DICOM."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from pipeline.errors import InputError
from pipeline.synthetic_projection import write_projection
from pipeline.synthetic_series import write_series

VOLUME = np.arange(4 * 5 * 6).reshape(4, 5, 6)
PICTURE = np.arange(30).reshape(5, 6) * 100  # 0 to 2900 of 4095
RISING = np.arange(4096) * 16 + 15  # 4095 becomes 65535


def series(folder, **options):
    return [dcmread(path) for path in write_series(VOLUME, folder, spacing_mm=(2, 1.5, 3), patient_id="P", **options)]


def projection(path, **options):
    return dcmread(write_projection(PICTURE, path / "chest.dcm", patient_id="P", **options))


def test_a_ct_has_hounsfield_units_by_rescale(tmp_path):
    first, *_ = series(tmp_path, intercept_hu=-1000)
    assert (first.Modality, first.PixelRepresentation, first.SOPClassUID.name) == ("CT", 1, "CT Image Storage")
    assert pixel_array(first)[2, 3] == 1000 + VOLUME[3, 2, 0]
    np.testing.assert_array_equal(apply_modality_lut(pixel_array(first), first), VOLUME[:, :, 0].T)


def test_an_mr_stores_what_it_is_given_and_says_how_it_was_scanned(tmp_path):
    first, *_ = series(
        tmp_path, modality="MR", attributes={"SeriesDescription": "FLAIR", "ContrastBolusAgent": "Gadovist"}
    )
    assert (first.Modality, first.PixelRepresentation, first.SOPClassUID.name) == ("MR", 0, "MR Image Storage")
    assert (first.SeriesDescription, first.ContrastBolusAgent) == ("FLAIR", "Gadovist")
    assert (first.ScanningSequence, first.EchoTime) == (["GR", "IR"], 2.98)
    assert "RescaleSlope" not in first
    np.testing.assert_array_equal(pixel_array(first), VOLUME[:, :, 0].T)


def test_series_of_one_study_share_its_frame_of_reference(tmp_path):
    one, two, other = (
        series(tmp_path / name, **options)[0] for name, options in [("1", {}), ("2", {"series": 2}), ("3", {"seed": 1})]
    )
    same = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID", "SOPInstanceUID")
    assert [one[key].value == two[key].value for key in same] == [True, True, False, False]
    assert [one[key].value == other[key].value for key in same] == [False] * 4
    assert (one.SeriesNumber, two.SeriesNumber) == (1, 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modality": "US"}, "CT or MR"),
        ({"modality": "MR", "volume": -VOLUME}, "series of MR .*stores 0 to 65535, got -119 to 0"),
    ],
)
def test_a_series_that_cannot_be_is_refused(tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        write_series(**{"volume": VOLUME, "spacing_mm": (1, 1, 1), "patient_id": "P"} | options, folder=tmp_path / "x")


# ---- projections


@pytest.mark.parametrize("modality", ["DX", "CR"])
def test_inverted_or_not_a_viewer_shows_the_same_picture(tmp_path, modality):
    bright, dark = (
        projection(tmp_path, modality=modality, photometric=photometric)
        for photometric in ("MONOCHROME2", "MONOCHROME1")
    )
    np.testing.assert_array_equal(pixel_array(bright), PICTURE)
    np.testing.assert_array_equal(pixel_array(dark), 4095 - PICTURE)
    assert dark.PhotometricInterpretation == "MONOCHROME1"
    assert bright.SOPClassUID != "" and bright.Modality == modality


def test_tables_and_windows_are_those_of_the_standard(tmp_path):
    table = projection(tmp_path, voi_lut=RISING)
    np.testing.assert_array_equal(apply_voi_lut(pixel_array(table), table), PICTURE * 16 + 15)
    modality = projection(tmp_path, modality="CR", modality_lut=RISING)
    np.testing.assert_array_equal(apply_modality_lut(pixel_array(modality), modality), PICTURE * 16 + 15)
    window = projection(tmp_path, attributes={"WindowCenter": 2048, "WindowWidth": 1024})
    shown = apply_voi_lut(pixel_array(window), window)
    assert (shown[0, 0], shown[-1, -1]) == (0, 4095)  # below 1536 is black, above 2559 white


def test_where_the_spacing_was_measured_is_said(tmp_path):
    header = projection(tmp_path, attributes={"EstimatedRadiographicMagnificationFactor": 1.25})
    assert header.ImagerPixelSpacing == [0.2, 0.2]
    assert header.EstimatedRadiographicMagnificationFactor == 1.25
    assert "PixelSpacing" not in header
    assert "ImagerPixelSpacing" not in projection(tmp_path, detector_spacing_mm=None)


def test_a_projection_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="8 bits needs whole numbers .* from 0 to 255"):
        projection(tmp_path, bits=8)
    with pytest.raises(InputError, match="take DX or CR, MONOCHROME1 or 2"):
        projection(tmp_path, photometric="RGB")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian dicom3tools) is not installed")
@pytest.mark.parametrize("modality", ["CT", "MR", "DX", "CR"])
def test_dciodvfy_has_no_complaint(tmp_path, modality):
    if modality in ("CT", "MR"):
        series(tmp_path, modality=modality)
    else:
        projection(tmp_path, modality=modality)
    file = min(tmp_path.iterdir())
    told = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=True)
    assert not re.search("Error|Warning", told.stdout + told.stderr)
