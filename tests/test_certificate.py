"""What a second reader finds in a SEG is what was to be written, or there is no file."""

import json

import numpy as np
import pytest
from pydicom import dcmread

from pipeline import dicom
from pipeline.certificate import certificate_path, write_certified
from pipeline.dicom import read_series
from pipeline.errors import DataError, InputError
from pipeline.read_back import read_back
from pipeline.seg import picture_segmentation, read_segmentation, segmentation, write_probabilities
from pipeline.terms import Release, Segment
from tests.test_dicom import DCMQI, HIGHDICOM, ORIENTATIONS, centre_mm, make_block, make_series
from tests.test_seg import projection

NAMES = ["liver", "tumour"]
ABOUT = {"segments": [Segment(name) for name in NAMES], "release": Release("Model", "1")}
KINDS = pytest.mark.parametrize("kind", ["seg", "labelmap"])


@pytest.fixture
def series(tmp_path):
    return read_series(make_series(tmp_path / "ct"))


def deliver(series, path, labels=None, **changes):
    labels = make_block() if labels is None else labels
    intended = {"labels": labels, "affine": series.affine, "names": NAMES} | changes
    return write_certified(segmentation(labels, series, **ABOUT), path, **intended)


@KINDS
@ORIENTATIONS
def test_the_second_reader_agrees_with_highdicom_s_own(tmp_path, affine, kind):
    series = read_series(make_series(tmp_path / "ct", affine))
    dicom.save(segmentation(make_block(), series, **ABOUT, kind=kind), tmp_path / "seg.dcm")
    labels, place = read_back(tmp_path / "seg.dcm")
    theirs, their_place = read_segmentation(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(labels, theirs)
    np.testing.assert_allclose(place, their_place, atol=1e-9)


@pytest.mark.parametrize(
    ("file", "voxels"), [(DCMQI / "liver.dcm", 107098), (HIGHDICOM / "seg_image_ct_binary.dcm", None)]
)
def test_files_by_others_are_read_as_highdicom_reads_them(file, voxels):
    if not file.is_file():
        pytest.skip(f"{file.name} is not at hand")
    labels, place = read_back(file)
    theirs, their_place = read_segmentation(file)
    assert voxels in (None, np.count_nonzero(labels))
    for value in np.unique(theirs):
        assert np.count_nonzero(labels == value) == np.count_nonzero(theirs == value)
        np.testing.assert_allclose(
            centre_mm(labels == value, place), centre_mm(theirs == value, their_place), atol=1e-3
        )


def test_a_certificate_says_what_was_found_where_and_names_no_patient(series, tmp_path):
    assert deliver(series, tmp_path / "a b/seg.dcm")
    text = certificate_path(tmp_path / "a b/seg.dcm").read_text()
    found = json.loads(text)
    assert found["verdict"] == "as intended"
    assert found["sop_instance_uid"] == dcmread(tmp_path / "a b/seg.dcm").SOPInstanceUID
    liver = found["classes"][0]
    assert (liver["name"], liver["voxels"], liver["voxels_intended"], liver["difference"]) == ("liver", 4, 4, 0)
    assert liver["volume_ml"] == pytest.approx(4 * 2 * 1.5 * 3 / 1000)
    assert liver["centroid"] == liver["centroid_intended"] == [10 - 1, 20 - 1.5, -30 + 3.5 * 3]
    assert "PHANTOM" not in text


def test_nothing_found_is_certified_too(series, tmp_path):
    assert deliver(series, tmp_path / "seg.dcm", np.zeros((4, 5, 6), np.uint8))
    liver = json.loads(certificate_path(tmp_path / "seg.dcm").read_text())["classes"][0]
    assert (liver["voxels"], liver["centroid"], liver["volume_ml"]) == (0, None, 0)


MIRRORED = make_block()[::-1]
MOVED = np.roll(make_block(), 1, axis=2)
FEWER = np.where(make_block() == 2, 0, make_block())
SWAPPED_VOXELS = make_block()
SWAPPED_VOXELS[0, 0, 3], SWAPPED_VOXELS[0, 1, 3], SWAPPED_VOXELS[0, 2, 4], SWAPPED_VOXELS[0, 1, 4] = 1, 0, 1, 0


@pytest.mark.parametrize(
    ("intended", "why"),
    [
        (MIRRORED, "liver lies 4 mm from its place"),
        (MOVED, "liver lies 3 mm from its place"),
        (FEWER, "tumour has 1 voxels, not 0"),
        (SWAPPED_VOXELS, "4 voxels differ"),  # as many, with the same centre
    ],
    ids=["mirrored", "moved", "fewer", "same moments"],
)
def test_what_is_not_as_intended_is_not_written(series, tmp_path, intended, why):
    with pytest.raises(DataError, match=rf"seg\.dcm: not written.*{why}"):
        write_certified(
            segmentation(make_block(), series, **ABOUT),
            tmp_path / "out/seg.dcm",
            labels=intended,
            affine=series.affine,
            names=NAMES,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_an_affine_off_by_a_hundredth_of_a_millimetre_is_noticed(series, tmp_path):
    for shift, passes in ((0.009, True), (0.011, False)):
        affine = series.affine + shift * np.eye(4, k=3)
        if passes:
            assert deliver(series, tmp_path / "a.dcm", affine=affine)
        else:
            with pytest.raises(DataError, match="lies 0.011 mm from its place"):
                deliver(series, tmp_path / "b.dcm", affine=affine)


def test_a_second_identical_run_leaves_the_file_as_it_is(series, tmp_path):
    path = tmp_path / "seg.dcm"
    assert deliver(series, path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    certificate_path(path).unlink()
    assert not deliver(series, path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert certificate_path(path).is_file()
    assert deliver(series, path, MOVED)  # another answer takes its place
    assert not deliver(series, path, MOVED)


def test_a_file_that_was_changed_behind_its_identifier_is_written_again(series, tmp_path, caplog):
    path = tmp_path / "seg.dcm"
    deliver(series, path)
    whole = path.read_bytes()
    for spoilt in (whole[:-2] + bytes([whole[-2] ^ 255]) + whole[-1:], whole[:-600]):  # a voxel; half of the file
        path.write_bytes(spoilt)
        caplog.clear()
        assert deliver(series, path)
        assert "not what its SOPInstanceUID stands for" in caplog.text
        assert not deliver(series, path)
    with pytest.raises(InputError, match=r"seg\.dcm: cannot be made .*; choose another folder"):
        deliver(series, path / "below.dcm")


@KINDS
def test_a_single_image_is_certified_in_pixels(tmp_path, kind):
    picture = dicom.read_image(projection(tmp_path / "dx.dcm"))
    labels = np.zeros((6, 4), np.uint8)
    labels[1, 2:4], labels[5, 0] = 1, 2
    made = picture_segmentation(labels, picture, **ABOUT, kind=kind)
    assert write_certified(made, tmp_path / "seg.dcm", labels=labels.T[..., None], affine=None, names=NAMES)
    found = json.loads(certificate_path(tmp_path / "seg.dcm").read_text())
    assert (found["unit"], found["classes"][0]["volume_ml"]) == ("px", None)
    assert found["classes"][0]["centroid"] == [2.5, 1, 0]


def test_what_is_no_label_map_is_refused(series, tmp_path):
    likely = np.zeros((2, 4, 5, 6), np.float32)
    write_probabilities(likely, series, tmp_path / "p.dcm", **ABOUT)
    with pytest.raises(InputError, match=r"p\.dcm: cannot be read back \(FRACTIONAL is no label map\)"):
        read_back(tmp_path / "p.dcm")
    (tmp_path / "x.dcm").write_bytes(b"no DICOM")
    with pytest.raises(InputError, match=r"x\.dcm: cannot be read back"):
        read_back(tmp_path / "x.dcm")
    if (DCMQI / "partial_overlaps.dcm").is_file():
        with pytest.raises(InputError, match="its segments overlap"):
            read_back(DCMQI / "partial_overlaps.dcm")
