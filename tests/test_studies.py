import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from pipeline.channel_rules import channel_rules
from pipeline.errors import InputError
from pipeline.studies import find
from pipeline.synthetic_series import write_series

PLANTED = "ROE^JANE"


def series(folder, number=1, patient="P1", seed=0, shift_mm=0.0, **attributes):
    """Six slices of 8 x 6 pixels; other numbers are other series of the same study."""
    files = write_series(
        np.zeros((8, 6, 6)),
        folder,
        spacing_mm=(1.0, 1.0, 2.0),
        patient_id=patient,
        seed=seed,
        position_mm=(0, 0, shift_mm),
    )
    for path in files:
        dataset = dcmread(path)
        dataset.PatientName = PLANTED
        dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID[:50]}.{number}"
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    return files


def image(path, number=1, sop_class=DigitalXRayImageStorageForPresentation, **attributes):
    """One projection, made of a slice."""
    file, *_ = series(path.parent / "made", number, SOPClassUID=sop_class, **attributes)
    dataset = dcmread(file)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
        del dataset[keyword]
    dataset.save_as(path)
    shutil.rmtree(path.parent / "made")
    return path


def rules(tree):
    return sorted((refusal.rule, refusal.file) for refusal in tree.refused)


def test_two_series_of_one_folder_are_two_and_one_over_two_folders_is_one(tmp_path):
    for number in (1, 2):
        for path in series(tmp_path / "made", number):
            home = tmp_path / "a" / ("deep" if number == 2 and path.stem < "00003" else "")
            home.mkdir(parents=True, exist_ok=True)
            path.rename(home / f"{number}_{path.name}")
    tree = find(tmp_path)
    assert sorted((case.images, len(case.headers[0])) for case in tree.cases) == [(("a",), 6), (("a",), 6)]
    assert len({case.series for case in tree.cases}) == 2
    assert (tree.refused, tree.series) == ([], 2)


def test_slices_are_in_order_whatever_the_files_are_called(tmp_path):
    files = series(tmp_path / "a")
    assert [header.filename for header in find(tmp_path).cases[0].headers[0]] == [str(path) for path in files]


def test_what_regular_refuses_is_refused_with_its_rule_and_file(tmp_path):
    files = series(tmp_path / "a")
    files[2].unlink()
    refused = find(tmp_path).refused[0]
    assert (refused.rule, refused.file) == ("missing slice", f"a/{files[3].name}")
    assert refused.message.startswith("a: 4.00 mm from")
    assert PLANTED not in refused.message


def test_a_number_that_is_none_matters_only_where_it_is_needed(tmp_path):
    file = series(tmp_path / "a")[2]
    content = file.read_bytes()
    file.write_bytes(content.replace(b"DS\x04\x002.0 ", b"DS\x04\x00two "))
    assert b"two " in file.read_bytes()
    assert len(find(tmp_path).cases) == 1
    file.write_bytes(content.replace(b"1.0\\1.0 ", b"1.0\\one "))
    assert rules(find(tmp_path)) == [("unreadable attribute", f"a/{file.name}")]


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SeriesDescription": "Topogram 0.6 T80s"}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "secondary capture"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture"),
    ],
)
def test_secondary_series_are_refused_by_what_they_are(tmp_path, attributes, rule):
    series(tmp_path / "a", **attributes)
    tree = find(tmp_path)
    assert [refusal.rule for refusal in tree.refused] == [rule]
    assert tree.cases == []


@pytest.mark.parametrize("sop_class", [DigitalXRayImageStorageForPresentation, ComputedRadiographyImageStorage])
def test_single_images_are_cases_of_one_file(tmp_path, sop_class):
    image(tmp_path / "a.dcm", 1, sop_class)
    image(tmp_path / "b.dcm", 1, sop_class, SOPInstanceUID="1.2.3")
    cases = find(tmp_path).cases
    assert [(case.images, case.series) for case in cases] == [(("a.dcm",), (None,)), (("b.dcm",), (None,))]


def test_a_damaged_file_takes_its_series_along_though_the_rest_looks_whole(tmp_path):
    last = series(tmp_path / "a", 1)[-1]
    series(tmp_path / "b", 2)
    last.write_bytes(last.read_bytes()[:-10])
    tree = find(tmp_path)
    assert [case.images for case in tree.cases] == [("b",)]
    assert rules(tree) == [("damaged file", f"a/{last.name}")]
    assert tree.refused[0].message.endswith("until then the other 5 files of its series are not used")


def test_a_file_without_a_readable_series_counts_to_the_only_series_of_its_folder(tmp_path):
    series(tmp_path / "a", 1)
    (tmp_path / "a" / "empty.dcm").touch()
    tree = find(tmp_path)
    assert (tree.cases, rules(tree)) == ([], [("damaged file", "a/empty.dcm")])
    for path in series(tmp_path / "made", 2):
        path.rename(tmp_path / "a" / f"2_{path.name}")
    assert len(find(tmp_path).cases) == 2


def test_two_patients_in_one_study_are_refused(tmp_path):
    series(tmp_path / "a", 1)
    series(tmp_path / "b", 2, PatientID="P2")
    assert [rule for rule, _ in rules(find(tmp_path))] == ["two patients", "two patients"]


T1 = {"SeriesDescription": "t1.*", "ContrastBolusAgent": "absent"}
FLAIR = {"SeriesDescription": ".*flair", "ImageType": "ORIGINAL", "EchoTime": "90|100"}


@pytest.fixture
def study(tmp_path):
    """T1, T1 with contrast, FLAIR, on one grid."""
    series(tmp_path / "1", 1, SeriesDescription="T1 axial")
    series(tmp_path / "2", 2, SeriesDescription="T1 axial", ContrastBolusAgent="Gd")
    series(tmp_path / "3", 3, SeriesDescription="AX FLAIR ", EchoTime="90.0")
    return tmp_path


def test_channels_are_what_the_rules_say(study):
    tree = find(study, channel_rules({"T1": T1, "FLAIR": FLAIR, "T1c": {"ContrastBolusAgent": "present"}}))
    assert [(case.images, case.resampled) for case in tree.cases] == [(("1", "3", "2"), ())]
    assert tree.refused == []


@pytest.mark.parametrize(
    ("channels", "rule", "sentence"),
    [
        (
            {"T1": {"SeriesDescription": "T1.*"}},
            "several series for a channel",
            "2 series fit channel T1 (SeriesDescription: T1.*): 'T1 axial' in 1; 'T1 axial' in 2: narrow its rule",
        ),
        ({"T2": {"SeriesDescription": "T2"}}, "no series for a channel", "there is 'T1 axial' in 1; 'T1 axial' in 2;"),
        ({"T1": T1, "B": {"SeriesDescription": "T1 axial", "ContrastBolusAgent": "absent"}}, "one series for two channels", "fits two channels, B is the second"),
    ],
)  # fmt: skip
def test_a_study_that_leaves_a_choice_is_refused(study, channels, rule, sentence):
    tree = find(study, channel_rules(channels))
    assert [(r.rule, r.patient) for r in tree.refused] == [(rule, "P1")]
    assert sentence in tree.refused[0].message
    assert tree.cases == []


@pytest.mark.parametrize("shift_mm", [0.02, 0.5])
def test_another_grid_is_resampled_only_where_the_rule_says_so(tmp_path, shift_mm):
    series(tmp_path / "1", 1, SeriesDescription="T1")
    series(tmp_path / "2", 2, SeriesDescription="T2", shift_mm=shift_mm)
    channels = {"T1": {"SeriesDescription": "T1"}, "T2": {"SeriesDescription": "T2"}}
    tree = find(tmp_path, channel_rules(channels))
    assert [r.rule for r in tree.refused] == ["another grid"]
    assert f"lies up to {shift_mm:.2f} mm elsewhere" in tree.refused[0].message
    channels["T2"]["resample"] = True
    assert [case.resampled for case in find(tmp_path, channel_rules(channels)).cases] == [(1,)]


def test_rounded_headers_are_one_grid_and_another_frame_of_reference_never_is(tmp_path):
    series(tmp_path / "1", 1, SeriesDescription="T1")
    series(tmp_path / "2", 2, SeriesDescription="T2", shift_mm=0.005)
    channels = channel_rules({name: {"SeriesDescription": name, "resample": True} for name in ("T1", "T2")})
    assert [case.resampled for case in find(tmp_path, channels).cases] == [()]
    shutil.rmtree(tmp_path / "2")
    series(tmp_path / "2", 2, SeriesDescription="T2", FrameOfReferenceUID="1.2.3")
    assert "another frame of reference" in find(tmp_path, channels).refused[0].message


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ({"T1": {"SeriesDescription": "(t1"}}, "SeriesDescription: '.t1' is no regular expression"),
        ({"T1": {}}, "name at least one DICOM attribute"),
        ({"T1": "t1.*"}, "write NAME: {KEYWORD: pattern} for each channel"),
        (["T1"], "write NAME"),
    ],
)
def test_a_rule_that_is_none_is_said(channels, sentence):
    with pytest.raises(InputError, match=sentence):
        channel_rules(channels)


def test_a_rule_over_an_unknown_attribute_is_said(tmp_path):
    with pytest.raises(InputError, match="'SeriesDescriptin' is no DICOM keyword; did you mean SeriesDescription"):
        find(tmp_path, channel_rules({"T1": {"SeriesDescriptin": "x"}}))


def test_paths_below_the_working_directory(tmp_path, monkeypatch):
    series(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert [find(Path(root)).cases[0].images for root in (".", "../" + tmp_path.name, "a")] == [("a",), ("a",), (".",)]
