"""Segmentations keep their numbers and their place in the patient, say what they are, and have identifiers of their own."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes

from pipeline import dicom
from pipeline.dicom import read_series
from pipeline.dicom_files import find_series
from pipeline.errors import InputError
from pipeline.seg import picture_segmentation, read_segmentation, segmentation, write_probabilities
from pipeline.synthetic_projection import write_projection
from pipeline.terms import Code, Release, Segment
from tests.test_dicom import (
    AXIAL,
    DCMQI,
    ORIENTATIONS,
    centre_mm,
    edit,
    make_block,
    make_series,
    make_volume,
    read_nrrd,
    real_series,
    write,
    write_seg,
)

LUNG = Segment("left lung", Code("SCT", "91723000", "Anatomical Structure"), Code("SCT", "39607008", "Lung"), "#ff0000")
TUMOUR = Segment("tumour")
RELEASE = Release("Lungs", "1.2.0", "ab" * 32)


def make(series, labels=None, **changes):
    about = {"segments": [LUNG, TUMOUR], "release": RELEASE} | changes
    return segmentation(make_block() if labels is None else labels, series, **about)


def projection(path, pixels=None):
    """A digital X-ray, by default of 6 rows and 4 columns, with a frame of reference but no place in it."""
    picture = np.zeros((6, 4), np.uint16) if pixels is None else pixels
    return write_projection(picture, path, patient_id="P", attributes={"FrameOfReferenceUID": "1.2.3"})


# ---- a segmentation, there and back


def test_an_empty_label_map_is_a_valid_segmentation(tmp_path, caplog):
    series = read_series(make_series(tmp_path / "ct"))
    path = write_seg(np.zeros((4, 5, 6), int), series, tmp_path / "seg.dcm")
    labels, affine = read_segmentation(path)
    assert labels.shape == (4, 5, 6)
    assert not labels.any()
    np.testing.assert_allclose(affine, AXIAL)
    assert [segment.SegmentLabel for segment in dcmread(path).SegmentSequence] == ["liver", "tumour"]
    assert caplog.text == ""


@ORIENTATIONS
def test_a_segmentation_lies_where_it_was_drawn(tmp_path, affine):
    series = read_series(make_series(tmp_path / "ct", affine))
    path = write_seg(make_block(), series, tmp_path / "seg.dcm")
    labels, place = read_segmentation(path)
    assert labels.shape == (4, 5, 2)  # slices 3 and 4 alone are stored
    for value in (1, 2):
        np.testing.assert_allclose(
            centre_mm(labels == value, place), centre_mm(make_block() == value, affine), rtol=0, atol=1e-9
        )


@ORIENTATIONS
def test_on_the_grid_of_its_series_a_segmentation_is_the_label_map(tmp_path, affine):
    series = read_series(make_series(tmp_path / "ct", affine))
    path = write_seg(make_block(), series, tmp_path / "seg.dcm")
    labels, place = read_segmentation(path, series=series)
    np.testing.assert_array_equal(labels, make_block())
    np.testing.assert_array_equal(place, series.affine)


def test_a_name_in_another_character_set_survives(tmp_path):
    folder = make_series(tmp_path / "ct")
    for path in find_series(folder):
        edit(path, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    seg = dcmread(write_seg(make_block(), read_series(folder), tmp_path / "seg.dcm"))
    assert (seg.SpecificCharacterSet, str(seg.PatientName)) == ("ISO_IR 192", "Müller^Jörg")


def test_headers_emptied_by_an_anonymiser_still_get_a_segmentation(tmp_path):
    folder = make_series(tmp_path / "ct")
    for path in find_series(folder):
        dataset = dcmread(path)
        del dataset.AccessionNumber, dataset.StudyID, dataset.PatientSex, dataset.StudyTime
        dataset.PatientName = "SINGLE"
        dataset.save_as(path)
    assert write_seg(make_block(), read_series(folder), tmp_path / "seg.dcm").is_file()


def test_odd_texts_in_a_header_reach_neither_warnings_nor_the_log(tmp_path, caplog):
    folder = make_series(tmp_path / "ct")
    for path in find_series(folder):
        raw = path.read_bytes()  # a family name alone, and identifiers with a part that begins with zero
        path.write_bytes(raw.replace(b"PHANTOM1^", b"PHANTOM1 ").replace(b".8.498.", b".8.098."))
    path = write_seg(make_block(), read_series(folder), tmp_path / "seg.dcm")
    assert read_segmentation(path)[0].max() == 2
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros((4, 6, 5), int), r"shape \(4, 6, 5\) do not lie on the volume of shape \(4, 5, 6\)"),
        (np.zeros((4, 5, 6)), "must be integers, got float64"),
        (make_block() * 2, "run from 0 to 4, but names are given for 1 to 2"),
        (make_block() - 1, "run from -1 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, sentence):
    series = read_series(make_series(tmp_path / "ct"))
    with pytest.raises(InputError, match=sentence):
        write_seg(labels, series, tmp_path / "seg.dcm")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    series = read_series(make_series(tmp_path / "ct"))
    path = write_seg(make_block(), series, tmp_path / "out" / "seg.dcm")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disc full")))
    with pytest.raises(OSError, match="disc full"):
        write_seg(make_block(), series, path)
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("seg.dcm", before)]


def test_a_segmentation_of_another_series_is_refused(tmp_path):
    series = read_series(make_series(tmp_path / "ct"))
    other = read_series(make_series(tmp_path / "other", seed=1))
    path = write_seg(make_block(), series, tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="has another frame of reference"):
        read_segmentation(path, series=other)


@pytest.mark.parametrize("start", [(1, 0, 0), (0, 2, 0), (0, 0, 4)], ids=["x", "y", "z"])
def test_a_segmentation_that_reaches_beyond_the_series_is_refused(tmp_path, start):
    series = read_series(make_series(tmp_path / "ct"))
    path = write_seg(make_block(), series, tmp_path / "seg.dcm")
    x, y, z = start
    rest = make_volume()[x:, y:, z:]
    moved = np.column_stack([AXIAL[:, :3], AXIAL @ [x, y, z, 1]])
    write(rest, tmp_path / "cut", moved)
    with pytest.raises(InputError, match=r"seg\.dcm reaches beyond the volume"):
        read_segmentation(path, series=read_series(tmp_path / "cut"))


def turned(degrees):
    """The axial grid turned about its first voxel in the plane of its slices."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return np.column_stack([turn @ AXIAL[:, :3], AXIAL[:, 3]])


@pytest.mark.parametrize(
    "affine",
    [AXIAL + 0.5 * np.eye(4, k=3), AXIAL @ np.diag([1, 1, 0.5, 1]), turned(45), turned(0.1)],
    ids=["shifted", "thinner", "turned", "turned by 0.1 degrees"],
)
def test_a_segmentation_on_another_grid_is_refused(tmp_path, affine):
    series = read_series(make_series(tmp_path / "ct"))
    path = write_seg(make_block(), series, tmp_path / "seg.dcm")
    with pytest.raises(InputError, match=r"seg\.dcm lies on another grid"):
        read_segmentation(path, series=read_series(make_series(tmp_path / "other", affine)))


def test_empty_slices_beyond_the_series_are_cut_off(tmp_path):
    series = read_series(make_series(tmp_path / "ct"))
    path = write_seg(np.zeros((4, 5, 6), int), series, tmp_path / "seg.dcm")  # stores all six slices
    write(make_volume()[:, :, :5], tmp_path / "cut")
    labels, _ = read_segmentation(path, series=read_series(tmp_path / "cut"))
    assert labels.shape == (4, 5, 5)


def test_an_image_is_no_segmentation(tmp_path):
    folder = make_series(tmp_path / "ct")
    with pytest.raises(InputError, match=r"00000\.dcm cannot be read as a label map"):
        read_segmentation(folder / "00000.dcm")


# ---- what it says of itself


def test_a_segmentation_says_who_made_it_from_what(tmp_path):
    series = read_series(make_series(tmp_path / "ct"))
    seg = make(series)
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("Lungs", "1.2.0")
    assert "ab" * 32 in algorithm.AlgorithmParameters
    assert (seg.SegmentationType, seg.PatientID) == ("BINARY", "PHANTOM1")
    assert seg.StudyInstanceUID == series.sources[0].StudyInstanceUID
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.sources[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == {
        source.SOPInstanceUID for source in series.sources
    }


def test_segments_carry_their_codes(tmp_path):
    first, second = make(read_series(make_series(tmp_path / "ct"))).SegmentSequence
    assert (first.SegmentLabel, first.SegmentedPropertyTypeCodeSequence[0].CodeValue) == (
        "left lung",
        codes.SCT.Lung.value,
    )
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == codes.SCT.AnatomicalStructure.value
    assert "RecommendedDisplayCIELabValue" in first
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def every_uid(dataset):
    return [str(element.value) for element in dataset.iterall() if element.VR == "UI"]


@pytest.mark.parametrize("kind", ["seg", "labelmap"])
def test_the_same_answer_has_the_same_identifiers(tmp_path, kind):
    series = read_series(make_series(tmp_path / "ct"))
    assert every_uid(make(series, kind=kind)) == every_uid(make(series, make_block().astype(np.uint8), kind=kind))


def two_series_of_a_study(folder):
    series, other = (read_series(make_series(folder / str(seed), seed=seed)) for seed in (0, 1))
    for source in other.sources:
        source.StudyInstanceUID = series.sources[0].StudyInstanceUID
    return series, other


def test_another_answer_has_another_identifier(tmp_path):
    series, other = two_series_of_a_study(tmp_path)
    moved = np.roll(make_block(), 1, axis=0)
    made = [
        make(series),
        make(series, moved),
        make(series, kind="labelmap"),
        make(series, release=replace(RELEASE, digest="cd" * 32)),
        make(series, segments=[LUNG, replace(TUMOUR, label="nodule")]),
        make(series, further=other.sources),
        make(other),
    ]
    assert len({seg.SOPInstanceUID for seg in made}) == len({seg.SeriesInstanceUID for seg in made}) == 7


def test_images_of_other_channels_are_referenced_too(tmp_path):
    series, other = two_series_of_a_study(tmp_path)
    seg = make(series, further=other.sources)
    assert str(other.sources[0].SOPInstanceUID) in every_uid(seg)
    assert read_segmentation_of(seg, tmp_path).tolist() == make_block()[:, :, 3:5].tolist()


def read_segmentation_of(seg, folder):
    dicom.save(seg, folder / "seg.dcm")
    return read_segmentation(folder / "seg.dcm")[0]


def test_a_labelmap_is_read_as_a_binary_segmentation_is(tmp_path):
    series = read_series(make_series(tmp_path / "ct"))
    dicom.save(make(series, kind="labelmap"), tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", series=series)[0], make_block())


def test_probabilities_have_an_identifier_that_follows_from_them(tmp_path):
    series = read_series(make_series(tmp_path / "ct"))
    likely = np.full((1, 4, 5, 6), 0.25, np.float32)
    for name, values in (("a", likely), ("again", likely), ("other", likely + 0.25)):
        write_probabilities(values, series, tmp_path / f"{name}.dcm", segments=[LUNG], release=RELEASE)
    first, again, other = (dcmread(tmp_path / f"{name}.dcm").SOPInstanceUID for name in ("a", "again", "other"))
    assert first == again != other


# ---- on a single image


@pytest.mark.parametrize("kind", ["seg", "labelmap"])
def test_a_segmentation_of_a_single_image_refers_to_it_and_claims_no_place(tmp_path, kind):
    picture = dicom.read_image(projection(tmp_path / "dx.dcm"))
    labels = np.zeros((6, 4), np.uint8)
    labels[1, 2:4], labels[5, 0] = 1, 2
    seg = picture_segmentation(labels, picture, segments=[LUNG, TUMOUR], release=RELEASE, kind=kind)
    assert "FrameOfReferenceUID" not in seg
    (referenced,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert referenced.ReferencedSOPInstanceUID == picture.header.SOPInstanceUID
    pixels = seg.pixel_array if kind == "labelmap" else seg.pixel_array[0] + 2 * seg.pixel_array[1]
    np.testing.assert_array_equal(pixels.squeeze(), labels)
    assert "FrameOfReferenceUID" in picture.header  # the header of the image itself is left as it was


# ---- judged by others

AGE_OF_DCIODVFY = {
    "Error - Information Object Not found",
    "Error - SegmentNumber not monotonically increasing from one by one - have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
}
"""What dciodvfy of 2022 says of every LABELMAP, a kind of 2024: it does not know it, nor that background has a number."""


def complaints(path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian dicom3tools) is not installed")
    told = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    return {line for line in (told.stdout + told.stderr).splitlines() if re.search("Error|Warning", line)}


@pytest.mark.parametrize(("kind", "known"), [("seg", set()), ("labelmap", AGE_OF_DCIODVFY)])
def test_dciodvfy_has_no_complaint_but_of_its_own_age(tmp_path, kind, known):
    series = read_series(make_series(tmp_path / "ct"))
    for name, labels in (("full", make_block()), ("empty", np.zeros((4, 5, 6), int))):
        dicom.save(make(series, labels, kind=kind), tmp_path / f"{name}.dcm")
        assert complaints(tmp_path / f"{name}.dcm") == known


def test_dciodvfy_has_no_complaint_about_a_segmentation_of_a_single_image(tmp_path):
    picture = dicom.read_image(projection(tmp_path / "dx.dcm"))
    labels = np.eye(6, 4, dtype=np.uint8)
    dicom.save(picture_segmentation(labels, picture, segments=[LUNG], release=RELEASE), tmp_path / "seg.dcm")
    assert complaints(tmp_path / "seg.dcm") == set()


@pytest.mark.parametrize("kind", ["seg", "labelmap"])
@ORIENTATIONS
def test_dcmqi_reads_the_same_voxels_at_the_same_place(tmp_path, affine, kind):
    program = Path(sys.executable).with_name("segimage2itkimage")
    if not program.is_file():
        pytest.skip("dcmqi (PyPI dcmqi) is not installed")
    SimpleITK = pytest.importorskip("SimpleITK")  # noqa: N806
    series = read_series(make_series(tmp_path / "ct", affine))
    dicom.save(make(series, kind=kind), tmp_path / "seg.dcm")
    line = [
        program,
        "--inputDICOM",
        tmp_path / "seg.dcm",
        "--outputDirectory",
        tmp_path,
        "--prefix",
        "x",
        "-t",
        "nii",
        "--mergeSegments",
    ]
    subprocess.run(line, check=True, capture_output=True)
    (found,) = tmp_path.glob("x*.nii.gz")
    theirs = SimpleITK.ReadImage(str(found))
    corner = dicom.LPS_TO_RAS @ series.affine
    whole = SimpleITK.GetImageFromArray(np.zeros((6, 5, 4), np.uint8))  # dcmqi leaves out what highdicom did
    spacing = np.linalg.norm(corner[:3, :3], axis=0)
    whole.SetSpacing(spacing.tolist())
    whole.SetOrigin(corner[:3, 3].tolist())
    whole.SetDirection((corner[:3, :3] / spacing).ravel().tolist())
    resampled = SimpleITK.Resample(theirs, whole, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(resampled).T, make_block())


def test_a_real_series_and_its_segmentation_by_dcmqi(tmp_path):
    series = read_series(real_series(DCMQI, ["01.dcm", "02.dcm", "03.dcm"], tmp_path))
    assert series.volume.shape == (512, 512, 3)
    assert (series.volume.min(), series.volume.max()) == (-3024, 1381)  # -3024: padding -2000 and intercept
    np.testing.assert_allclose(series.spacing_mm, (0.810547, 0.810547, 1))  # the header says 1.25 mm thick
    labels, affine = read_segmentation(DCMQI / "liver.dcm", series=series)
    assert np.count_nonzero(labels) == 107098
    again, _ = read_segmentation(write_seg(labels, series, tmp_path / "again.dcm"), series=series)
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [235.199997, 226.800003, -128.690002, 1])


def test_a_segmentation_by_dcmqi_equals_the_map_it_was_made_from(tmp_path):
    series = read_series(real_series(DCMQI, ["01.dcm", "02.dcm", "03.dcm"], tmp_path))
    labels, _ = read_segmentation(DCMQI / "liver.dcm", series=series)
    np.testing.assert_array_equal(labels, read_nrrd(DCMQI / "liver_seg.nrrd"))


def test_the_small_series_of_dcmqi(tmp_path):
    series = read_series(real_series(DCMQI / "23x38x3", ["IMG0001.dcm", "IMG0002.dcm", "IMG0003.dcm"], tmp_path))
    labels, _ = read_segmentation(DCMQI / "23x38x3" / "label.seg", series=series)
    assert labels.shape == series.volume.shape == (23, 38, 3)
