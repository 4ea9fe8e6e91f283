"""Slices are one regular volume, in order, or refused by the rule and the file at fault."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError, user_error
from pipeline.regular import Refused, in_order


class Header(dict):
    """A header without a DICOM library: values by keyword, and the file they come from."""

    def __init__(self, filename, **values):
        super().__init__(values)
        self.filename = filename


def make_headers(**changes):
    """Six axial slices 3 mm apart, in files of which the name does not tell the order."""
    names = ["d.dcm", "a.dcm", "e.dcm", "b.dcm", "f.dcm", "c.dcm"]
    common = {"FrameOfReferenceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "Rows": 5, "Columns": 4}
    common |= {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": ["1.5", "2"], **changes}
    places = [{"ImagePositionPatient": [-10, -20, -30 + 3 * z]} for z in range(6)]
    return [Header(f"ct/{name}", **common, **place) for name, place in zip(names, places, strict=True)]


def refusal(headers):
    with pytest.raises(Refused) as caught:
        in_order(headers, "ct")
    return caught.value


@pytest.mark.parametrize(
    ("orientation", "names"),
    [([1, 0, 0, 0, 1, 0], "daebfc"), ([-1, 0, 0, 0, 1, 0], "cfbead")],
    ids=["head first", "the normal points to the feet"],
)
def test_slices_come_in_the_order_of_the_normal(orientation, names):
    ordered = in_order(sorted(make_headers(ImageOrientationPatient=orientation), key=lambda h: h.filename), "ct")
    assert "".join(Path(header.filename).stem for header in ordered) == names


def test_numbers_may_be_rounded():
    headers = make_headers()
    headers[2]["ImageOrientationPatient"] = [1, 0.00001, 0, 0, 1, 0]
    headers[3]["PixelSpacing"] = ["1.500001", "2.0"]
    headers[4]["ImagePositionPatient"] = [-10, -20.01, -18.02]
    assert in_order(headers, "ct") == headers


@pytest.mark.parametrize(
    ("values", "rule", "sentence"),
    [
        ({"ImagePositionPatient": None}, "missing attribute", "b.dcm has no ImagePositionPatient"),
        ({"FrameOfReferenceUID": ""}, "missing attribute", "b.dcm has no FrameOfReferenceUID"),
        ({"PixelSpacing": ["1.5", "wide"]}, "unreadable attribute", "of b.dcm, could not convert string to float"),
        ({"PixelSpacing": [1.5]}, "unreadable attribute", "of b.dcm, PixelSpacing is not 2 numbers"),
        ({"PixelSpacing": [0, 2]}, "unreadable attribute", "of b.dcm, PixelSpacing is not positive"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "unreadable attribute", "no.* unit vectors at right angles"),
        ({"ImagePositionPatient": [0, 0, float("nan")]}, "unreadable attribute", "is not 3 numbers"),
        ({"NumberOfFrames": 40}, "multi-frame", "b.dcm is multi-frame: export it as one file per slice"),
        ({"SamplesPerPixel": 3}, "colour", "b.dcm is in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour", "b.dcm is in colour"),
        ({"SharedFunctionalGroupsSequence": [{}]}, "multi-frame", "b.dcm is multi-frame"),
        ({"SeriesInstanceUID": "1.9"}, "two series", "d.dcm and b.dcm are of two series"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "mixed orientation", r"has 1\\0\\0\\0\\1\\0, b.dcm has 1"),
        ({"Rows": 6}, "different sizes", "differ in Rows, d.dcm has 5, b.dcm has 6"),
        ({"PixelSpacing": [1.5, 2.1]}, "different spacings", r"d.dcm has 1.5\\2, b.dcm has 1.5\\2.1"),
        ({"FrameOfReferenceUID": "9"}, "different frames of reference", "d.dcm has 1.2.3, b.dcm has 9"),
        ({"ImagePositionPatient": [-10, -20, -24]}, "slice twice", "e.dcm and b.dcm lie at the same place"),
        ({"ImagePositionPatient": [-10, -20, -20]}, "uneven slices", r"4\.00 mm from e.dcm to b.dcm, but 3\.00 mm"),
        ({"ImagePositionPatient": [-10, -19, -21]}, "tilted gantry", r"b.dcm lies 1\.00 mm from its place"),
    ],
)
def test_what_fits_no_volume_is_refused_by_rule_and_file(values, rule, sentence):
    headers = make_headers()
    headers[3].update(values)  # ct/b.dcm
    with pytest.raises(Refused, match=rf"^ct: .*{sentence}") as caught:
        in_order(headers, "ct")
    assert (caught.value.rule, caught.value.file) == (rule, "ct/b.dcm")


def test_a_localizer_is_at_fault_wherever_it_stands():
    headers = make_headers()
    headers[0]["ImageOrientationPatient"] = [0, 1, 0, 0, 0, -1]
    assert refusal(headers).file == "ct/d.dcm"


@pytest.mark.parametrize(
    ("left", "sentence"),
    [
        ([0, 1, 3, 4, 5], "6.00 mm from a.dcm to b.dcm, but 3.00 mm between most slices"),
        ([0, 3, 4, 5], "9.00 mm from d.dcm to b.dcm"),
        ([0, 2, 3], "6.00 mm from d.dcm to e.dcm"),
    ],
)
def test_a_missing_slice_is_refused_with_its_neighbours(left, sentence):
    headers = make_headers()
    refused = refusal([headers[z] for z in left])
    assert refused.rule == "missing slice"
    assert sentence in str(refused)


def test_one_slice_and_none():
    assert (refusal(make_headers()[:1]).rule, refusal([]).rule) == ("single slice", "no slice")


@pytest.mark.parametrize("degrees", [2, 20])
def test_a_tilted_gantry_is_refused(degrees):
    headers = make_headers()
    for z, header in enumerate(headers):
        header["ImagePositionPatient"] = [-10, -20 + 3 * z * np.tan(np.radians(degrees)), -30 + 3 * z]
    refused = refusal(headers)
    assert (refused.rule, refused.file) == ("tilted gantry", "ct/c.dcm")


def test_a_refusal_survives_the_way_from_another_process():
    refused = pickle.loads(pickle.dumps(refusal(make_headers()[:1])))
    assert isinstance(refused, InputError)
    assert (refused.rule, refused.file) == ("single slice", "ct/d.dcm")
    assert str(refused).startswith("ct holds one slice")


def test_a_refusal_in_a_loading_process_is_still_a_sentence():
    text = "Traceback (most recent call last):\npipeline.regular.Refused: ct holds one slice\n"
    assert str(user_error(RuntimeError(text))) == "ct holds one slice"
