import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from pipeline import headers
from pipeline.errors import InputError
from pipeline.header_file import KEYWORDS, Header, Passed, Refusal, read
from pipeline.headers import COPY, is_segmentation, scan
from pipeline.synthetic_series import write_series
from tests.conftest import real

MORE = ("InstitutionName", "StudyDescription", "PatientComments", "EchoTime", "PatientAge", "StudyDate")
PYDICOM_DATA = Path(pydicom.__file__).parent / "data"


@pytest.fixture
def slices(tmp_path):
    """Four slices of one series, 8 x 6 pixels."""
    volume = np.arange(8 * 6 * 4).reshape(8, 6, 4)
    return write_series(volume, tmp_path / "series", spacing_mm=(1.0, 1.0, 2.0), patient_id="Roe")


def same(ours, theirs):
    if theirs is None or theirs == "" or (not isinstance(theirs, str | int | float) and not len(theirs)):
        return ours is None
    texts = [theirs] if isinstance(theirs, str | int | float) else list(theirs)
    values = [value.strip() if isinstance(value, str) else value for value in texts]
    return (list(ours) if isinstance(ours, tuple) else [ours]) == values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", ["test_files", "charset_files"])
def test_every_file_of_pydicoms_own_tests_reads_as_pydicom_reads_it(folder):
    compared = 0
    for path in sorted((PYDICOM_DATA / folder).rglob("*")):
        header = read(str(path), MORE) if path.is_file() else None
        if isinstance(header, Header):
            dataset = dcmread(path, stop_before_pixels=True)
            for keyword in (*KEYWORDS, *MORE):
                theirs = dataset.get(keyword, dataset.file_meta.get(keyword))
                assert same(header.get(keyword), theirs), (path.name, keyword)
            compared += 1
    assert compared >= 12


def test_real_series_and_segmentations():
    folder = real("dicomseg_dcmqi")
    found = scan(folder)
    segs = {Path(h.filename).name: h.get("Segments") for h in found.headers if is_segmentation(h)}
    assert len(found.headers) == 9
    assert segs["liver.dcm"] == ((1, "Liver"),)
    assert len(segs["partial_overlaps.dcm"]) == 5
    assert found.refused == []


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_give_the_same_header(slices, syntax):
    before = read(str(slices[0]))
    dataset = dcmread(slices[0])
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    fresh = Dataset(dataset)
    fresh.file_meta = dataset.file_meta
    fresh.file_meta.TransferSyntaxUID = syntax
    fresh.save_as(slices[0], enforce_file_format=True)
    after = read(str(slices[0]))
    assert {**after.values, "TransferSyntaxUID": ""} == {**before.values, "TransferSyntaxUID": ""}


def test_an_implicit_length_that_looks_like_a_representation(slices):
    dataset = dcmread(slices[0])
    dataset.TextValue = "x" * 0x4142  # as bytes: BA
    fresh = Dataset(dataset)
    fresh.file_meta = dataset.file_meta
    fresh.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    fresh.save_as(slices[0], enforce_file_format=True)
    assert read(str(slices[0])).get("SeriesInstanceUID") == dataset.SeriesInstanceUID


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_is_never_taken_for_whole(slices, compressed):
    if compressed:
        dataset = dcmread(slices[0])
        dataset.compress(RLELossless)
        dataset.save_as(slices[0])
    whole = slices[0].read_bytes()
    for length in range(0, len(whole) - 1, 7):
        slices[0].write_bytes(whole[:length])
        assert isinstance(read(str(slices[0])), Refusal), length
    assert isinstance(read(str(slices[1])), Header)


def test_a_cut_file_says_its_series_and_what_is_missing(slices):
    uid = dcmread(slices[0]).SeriesInstanceUID
    slices[0].write_bytes(slices[0].read_bytes()[:-10])
    refused = scan(slices[0].parent).refused
    assert [(r.rule, r.file, r.series) for r in refused] == [("damaged file", slices[0].name, uid)]
    assert refused[0].message == (
        f"{slices[0].name} is damaged or cut short (10 of 96 bytes of pixels are missing): export it again or remove it"
    )


def test_pixels_that_do_not_fill_the_image_are_refused(slices):
    dataset = dcmread(slices[0])
    dataset.PixelData = dataset.PixelData[:50]
    dataset.save_as(slices[0])
    assert "50 bytes of pixels, 96 are needed" in read(str(slices[0])).message


def test_a_file_without_preamble_is_dicom_and_a_text_is_not(slices, tmp_path):
    expected = read(str(slices[0])).values
    slices[0].write_bytes(slices[0].read_bytes()[132:])
    (tmp_path / "series" / "notes").write_text("\x08\x00 no DICOM at all, though it begins so " * 9)
    assert read(str(slices[0])).values == expected
    assert read(str(tmp_path / "series" / "notes")) == Passed("not DICOM")


def test_what_is_no_image_is_passed_over_by_kind(slices):
    folder = slices[0].parent
    for name in ("rtstruct.dcm", "rtplan.dcm", "rtdose.dcm", "test-SR.dcm", "dicomdirtests/DICOMDIR"):
        shutil.copy(PYDICOM_DATA / "test_files" / name, folder)
    (folder / "readme.txt").write_text("a disc")
    (folder / "._00000.dcm").write_bytes(b"left by macOS")
    found = scan(folder)
    assert {kind: len(files) for kind, files in found.passed.items()} == {
        "not DICOM": 2,
        "DICOMDIR": 1,
        "RT Structure Set": 1,
        "RT Plan": 1,
        "RT Dose": 1,
        "Comprehensive SR": 1,
    }
    assert (len(found.headers), found.refused) == (4, [])


def test_a_copy_is_passed_over_and_an_instance_of_other_content_refused(slices):
    folder = slices[0].parent
    (folder / "sub").mkdir()
    shutil.copy(slices[0], folder / "sub" / "copy")
    content = slices[1].read_bytes()
    (folder / "sub" / "other").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = scan(folder)
    assert found.passed == {COPY: ["sub/copy"]}
    assert [(r.rule, r.file) for r in found.refused] == [("two files of one instance", "sub/other")]
    assert len(found.headers) == 4


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_file_without_an_identifier_is_refused(slices, keyword):
    dataset = dcmread(slices[0])
    del dataset[keyword]
    dataset.save_as(slices[0])
    assert [(r.rule, r.message) for r in scan(slices[0].parent).refused] == [
        ("missing attribute", f"{slices[0].name} has no {keyword}: export the original file")
    ]


def test_several_processes_say_the_same_as_one(slices, monkeypatch):
    for number in range(30):
        (slices[0].parent / f"{number}.txt").write_text("no image")
    alone = scan(slices[0].parent, ["StudyDate"])
    monkeypatch.setattr(headers, "PARALLEL_FROM", 1)
    monkeypatch.setattr(headers, "BATCH", 3)
    started = []
    pool = headers.ProcessPoolExecutor
    monkeypatch.setattr(
        headers, "ProcessPoolExecutor", lambda *words, **more: started.append(1) or pool(*words, **more)
    )
    monkeypatch.setattr(headers.os, "sched_getaffinity", lambda _: {0, 1})
    assert scan(slices[0].parent, ["StudyDate"]) == alone
    assert started


def test_a_keyword_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="'SeriesDescripton' is no DICOM keyword; did you mean SeriesDescription?"):
        scan(tmp_path, ["SeriesDescripton"])
    with pytest.raises(InputError, match="PatientName is no text or number, or a person's name; name another"):
        scan(tmp_path, ["PatientName"])
    with pytest.raises(InputError, match="no such folder"):
        scan(tmp_path / "none")
