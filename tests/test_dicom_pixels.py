"""Pixels of DICOM files become the values that they stand for, whatever the transfer syntax, or a sentence."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from pipeline import dicom_pixels
from pipeline.dicom_pixels import can_decode, presented, read_stack, read_values
from pipeline.regular import Refused

STORED = np.array([[0, 1, 2], [100, 1000, 4095]], np.uint16)  # 12 bits


def write_image(path, stored=STORED, bits=12, **attributes):
    """A file of one grey frame, and its header as it is read back."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.Modality = "DX"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.set_pixel_data(stored, "MONOCHROME2", bits)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return dcmread(path, stop_before_pixels=True)


def look_up_table(first, values, bits=8):
    """The one item of a modality or VOI LUT sequence: stored value `first` becomes values[0], and so on."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], np.array(values, "<u2").tobytes()
    item.ModalityLUTType = "US"
    return Sequence([item])


def slices(tmp_path, frames, **attributes):
    """Headers of one file per frame; of an attribute given as a list each slice has its own value."""
    return [
        write_image(
            tmp_path / f"{z}.dcm", frame, **{k: v[z] if isinstance(v, list) else v for k, v in attributes.items()}
        )
        for z, frame in enumerate(frames)
    ]


# ---- the type of a volume


@pytest.mark.parametrize(
    ("attributes", "expected", "dtype"),
    [
        ({}, [0, 4095], "int16"),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, [-1024, 3071], "int16"),
        ({"RescaleSlope": 8, "RescaleIntercept": 0}, [0, 32760], "int16"),
        ({"RescaleSlope": 8, "RescaleIntercept": 8}, [8, 32768], "float32"),  # one too high
        ({"RescaleSlope": [1, 0.5], "RescaleIntercept": 0}, [0, 2047.5], "float32"),  # PET: each slice has its own
        ({"RescaleSlope": 1, "RescaleIntercept": 0.25}, [0.25, 4095.25], "float32"),
        ({"ModalityLUTSequence": look_up_table(1000, [7, 9])}, [7, 9], "int16"),
    ],
)
def test_whole_numbers_that_fit_stay_16_bit(tmp_path, attributes, expected, dtype):
    low, high = np.zeros((2, 3), np.uint16), np.full((2, 3), 4095, np.uint16)
    stack = read_stack(slices(tmp_path, [low, high], **attributes))
    assert stack.dtype == dtype
    assert [stack[0, 0, 0], stack[1, 0, 0]] == expected


def test_slices_read_before_one_that_does_not_fit_keep_their_values(tmp_path):
    frames = [np.full((2, 3), value, np.uint16) for value in (5, 32767, 32768, 65535, 7)]
    stack = read_stack(slices(tmp_path, frames, bits=16))
    np.testing.assert_array_equal(stack, frames)
    assert stack.dtype == np.float32


def test_padding_keeps_its_value(tmp_path):
    header = write_image(tmp_path / "1.dcm", PixelPaddingValue=0, RescaleSlope=1, RescaleIntercept=-1024)
    assert read_values(header)[0, 0] == -1024


def test_signed_values_of_12_bits_keep_their_sign_whatever_the_bits_above(tmp_path):
    header = write_image(tmp_path / "1.dcm", np.array([[0x0FFF, 0x7800]], np.int16), bits=16)
    dataset = dcmread(header.filename)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(header.filename)
    np.testing.assert_array_equal(read_values(dcmread(header.filename)), [[-1, -2048]])


# ---- transfer syntaxes, in files by other software


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_compressed_pixels_are_those_of_the_file_that_was_compressed(name):
    plain, compressed = (dcmread(get_testdata_file(file)) for file in ("MR_small.dcm", name))
    np.testing.assert_array_equal(read_values(compressed), plain.pixel_array)


def test_a_deflated_file_is_read():
    values = read_values(dcmread(get_testdata_file("image_dfl.dcm")))
    assert (values.shape, values.min(), values.max()) == ((512, 512), 0, 255)


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("dcmcjpeg", "+e1", "JPEG Lossless"),
        ("dcmcjpeg", "+eb", "JPEG Baseline"),
        ("dcmcjpls", "+el", "JPEG-LS Lossless"),
        ("dcmcrle", "+r", "RLE Lossless"),
    ],
)
def test_pixels_compressed_by_dcmtk(tmp_path, command, option, name):
    if shutil.which(command) is None:
        pytest.skip(f"{command} (Debian dcmtk) is not installed")
    grey = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    plain = write_image(tmp_path / "plain.dcm", grey, bits=8)
    options = [] if command == "dcmcrle" else [option]
    subprocess.run([command, *options, plain.filename, tmp_path / "small.dcm"], check=True, capture_output=True)
    small = dcmread(tmp_path / "small.dcm", stop_before_pixels=True)
    assert small.file_meta.TransferSyntaxUID.name.startswith(name)
    np.testing.assert_allclose(read_values(small), grey, atol=3 if name == "JPEG Baseline" else 0)


# ---- what cannot be read


def refusal(header):
    with pytest.raises(Refused) as caught:
        read_values(header)
    assert caught.value.file == header.filename
    return caught.value.rule, str(caught.value)


def test_pixels_cut_short_are_a_sentence_in_bytes():
    rule, sentence = refusal(dcmread(get_testdata_file("MR_truncated.dcm"), stop_before_pixels=True))
    assert (rule, "it has 8130 of 8192 bytes of pixels" in sentence) == ("cut short", True)


def test_compressed_pixels_that_are_damaged_are_a_sentence():
    rule, sentence = refusal(dcmread(get_testdata_file("JPEG-lossy.dcm"), stop_before_pixels=True))
    assert rule == "damaged pixels"
    assert "A misplaced marker segment was found" in sentence


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
@pytest.mark.parametrize("lost", [300, 2000])
def test_a_compressed_file_cut_short_is_a_sentence(tmp_path, name, lost):
    (tmp_path / "cut.dcm").write_bytes(Path(get_testdata_file(name)).read_bytes()[:-lost])
    assert refusal(dcmread(tmp_path / "cut.dcm", stop_before_pixels=True))[0] == "cut short"


def test_a_file_without_pixels_is_a_sentence(tmp_path):
    header = write_image(tmp_path / "1.dcm")
    dataset = dcmread(header.filename)
    del dataset.PixelData
    dataset.save_as(header.filename)
    assert refusal(header)[0] == "cut short"


@pytest.mark.parametrize(
    ("name", "rule"),
    [("SC_rgb_rle.dcm", "colour"), ("examples_palette.dcm", "colour"), ("waveform_ecg.dcm", "no image")],
)
def test_what_is_no_grey_image_is_refused(name, rule):
    assert refusal(dcmread(get_testdata_file(name), stop_before_pixels=True))[0] == rule


def test_a_transfer_syntax_that_is_not_read_is_named(tmp_path):
    header = write_image(tmp_path / "1.dcm")
    video = "1.2.840.10008.1.2.4.102"
    dataset = dcmread(header.filename)
    dataset.file_meta.TransferSyntaxUID = video
    dataset.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    dataset.save_as(header.filename)
    rule, sentence = refusal(header)
    assert rule == "transfer syntax"
    assert f"MPEG-4 AVC/H.264 High Profile / Level 4.1 ({video})" in sentence
    assert (can_decode(video), can_decode("1.2.840.10008.1.2.4.90")) == (False, True)


# ---- as a reader sees it


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"WindowCenter": 1000, "WindowWidth": 500},
        {"WindowCenter": [1000, 5], "WindowWidth": [500, 5], "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 1000, "WindowWidth": 500},
        {"VOILUTSequence": look_up_table(90, list(range(0, 200, 10))), "WindowCenter": 7, "WindowWidth": 5},
        {"ModalityLUTSequence": look_up_table(90, list(range(0, 200, 10)))},
    ],
)
def test_windows_and_tables_are_pydicom_s(tmp_path, attributes):
    header = write_image(tmp_path / "1.dcm", **attributes)
    expected = apply_voi_lut(apply_modality_lut(STORED, header), header)
    np.testing.assert_allclose(presented(read_values(header), header), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "total"),
    [
        ({}, 4095),
        ({"WindowCenter": 1000, "WindowWidth": 500}, 4095),
        ({"RescaleSlope": 2, "RescaleIntercept": -100}, 2 * 4095 - 200),
        ({"VOILUTSequence": look_up_table(90, [0, 10, 20])}, 255),
        ({"ModalityLUTSequence": look_up_table(90, [0, 10, 20], bits=16)}, 65535),
    ],
)
def test_monochrome1_is_inverted_within_the_range_of_the_header(tmp_path, attributes, total):
    plain = write_image(tmp_path / "1.dcm", **attributes)
    inverse = write_image(tmp_path / "2.dcm", **attributes, PhotometricInterpretation="MONOCHROME1")
    pixels = presented(read_values(inverse), inverse)
    np.testing.assert_allclose(pixels + presented(read_values(plain), plain), total)


def test_signed_pixels_are_inverted_about_minus_a_half(tmp_path):
    stored = np.array([[-2048, 0, 2047]], np.int16)
    header = write_image(tmp_path / "1.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(presented(read_values(header), header), [[2047, -1, -2048]])


def test_a_window_that_breaks_the_rules_is_a_sentence(tmp_path):
    header = write_image(tmp_path / "1.dcm", WindowCenter=5, WindowWidth=0)
    with pytest.raises(Refused, match=r"window or look-up table of .*1\.dcm cannot be applied.*greater than or equal"):
        presented(read_values(header), header)


def test_a_large_stack_lies_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.scratch.LARGE", 20)
    assert isinstance(dicom_pixels.read_stack(slices(tmp_path, [STORED, STORED])), np.memmap)
