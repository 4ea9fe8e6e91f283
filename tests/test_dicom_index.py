import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import SegmentationStorage, generate_uid

from pipeline import manifest as manifests
from pipeline.dicom import read_series
from pipeline.dicom_index import index_dicom
from pipeline.errors import DataError, InputError
from pipeline.patients import pseudonym, read_key
from pipeline.recipe import recipe
from pipeline.seg import write_segmentation
from tests.conftest import real
from tests.test_studies import PLANTED, image, series


def plan(**fields):
    dicom = {name: fields.pop(name) for name in ("channels", "reference", "columns") if name in fields}
    return recipe({"name": "x", "dicom": dicom, **fields})


def segmentation(home, path, labels=None, **attributes):
    """A DICOM SEG of a series, one voxel of class 1."""
    source = read_series(home)
    if labels is None:
        labels = np.zeros(source.volume.shape, np.uint8)
        labels[1, 2, 3] = 1
    write_segmentation(labels, source, path, class_names=["lesion"], version="1")
    dataset = dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    if attributes:  # another object; equal labels alone make an equal identifier
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two patients of one CT each; the first has a SEG, the second a series without a slice besides."""
    folder = tmp_path / "tree"
    attributes = {
        "PatientAge": "067Y",
        "PatientSex": "F",
        "Manufacturer": "Siemens",
        "InstitutionName": "St. Elsewhere",
    }
    series(folder / "a", patient=PLANTED + "-1", **attributes)
    series(folder / "b", patient=PLANTED + "-2", PatientAge="011M")
    series(folder / "c", 2, patient=PLANTED + "-2")[2].unlink()
    segmentation(folder / "a", folder / "a_seg.dcm")
    return folder


def test_a_tree_becomes_a_manifest_under_pseudonyms_with_a_report(tree, tmp_path, overtile):
    out = tmp_path / "m.json"
    code, output = overtile("index", tree, "--name", "x", "--out", out)
    manifest = manifests.read(out)
    first, second = manifest.unassigned
    key = read_key(tmp_path / "overtile.key")
    instances = sorted(dcmread(path).SOPInstanceUID for path in (tree / "a").iterdir())
    assert code == 0
    assert first.patient == pseudonym(key, PLANTED + "-1")
    assert (first.image, first.label, second.label) == ("a", "a_seg.dcm", None)
    assert first.series == dcmread(next((tree / "a").iterdir())).SeriesInstanceUID
    assert first.pixels == "instances " + hashlib.sha256("\n".join(instances).encode()).hexdigest()
    assert first.model_extra == {"modality": "CT", "manufacturer": "SIEMENS", "sex": "F", "age_band": "60-79"}
    assert second.model_extra["age_band"] == "0-19"
    assert (manifest.labels, manifest.label_values) == ({"0": "background", "1": "lesion"}, {"0": 0, "1": 1})
    report = json.loads((tmp_path / "m_report.json").read_text())
    assert [(r["rule"], r["file"]) for r in report["refused"]] == [("missing slice", "c/00001.dcm")] or report[
        "refused"
    ]
    assert "refused (missing slice): c: " in output or "c: " in output
    assert "3 series found, 1 refusals" in output
    assert "2 cases of 2 patients, 1 with a reference" in output


def test_no_name_and_no_study_of_a_patient_leaves_the_headers(tree, tmp_path, overtile):
    image(tree / "no_patient.dcm", 7, PatientID="")
    recipe_file = tmp_path / "r.yaml"
    channels = {"CT": {"SeriesDescription": "absent", "Modality": "CT"}}
    study = dcmread(next((tree / "a").iterdir())).StudyInstanceUID
    for dicom in ({}, {"channels": channels}, {"channels": {"T1": {"SeriesDescription": "T1"}}}):
        recipe_file.write_text(yaml.safe_dump({"name": "x", "dicom": dicom, "patient_id": ".*"}))
        _, output = overtile("index", tree, "--recipe", recipe_file, "--out", tmp_path / "m.json")
        written = "".join(path.read_text() for path in tmp_path.glob("m*.json"))
        for word in (PLANTED, "ROE", "JANE", study, "20000101"):
            assert word not in output + written
    assert "refused" in output


def test_nothing_usable_is_exit_code_1_with_a_report(tree, tmp_path, overtile):
    for name in ("a", "b"):
        shutil.rmtree(tree / name)
    code, output = overtile("index", tree, "--name", "x", "--out", tmp_path / "m.json")
    assert code == 1
    assert "no series can be used, 1 refusals; the first: c: " in output
    assert json.loads((tmp_path / "m_report.json").read_text())["cases"] == []
    assert not (tmp_path / "m.json").exists()


def test_a_second_index_keeps_partitions(tree, tmp_path):
    out, key = tmp_path / "m.json", b"k" * 32
    manifest, _ = index_dicom(tree, plan(), key=key)
    fields = manifest.model_dump(exclude_unset=True)
    fields["training"], fields["unassigned"] = fields["unassigned"][:1], []
    manifests.write(manifests.Manifest(**fields), out)
    after, _ = index_dicom(tree, plan(), key=key, previous=out)
    assert [case.image for case in after.training] == ["a"]
    assert [case.image for case in after.unassigned] == ["b"]
    shutil.rmtree(tree / "a")
    with pytest.raises(InputError, match="1 cases that have a partition were not found again"):
        index_dicom(tree, plan(), key=key, previous=out)


def test_channels_are_lists_in_the_manifest(tmp_path):
    for number, name in ((1, "T1"), (2, "FLAIR")):
        series(tmp_path / name, number, SeriesDescription=name, shift_mm=float(number))
    channels = {name: {"SeriesDescription": name, "resample": True} for name in ("T1", "FLAIR")}
    manifest, _ = index_dicom(tmp_path, plan(channels=channels), key=b"k" * 32)
    case = manifest.unassigned[0]
    assert (case.image, case.resampled, manifest.modality) == (["T1", "FLAIR"], [1], {"0": "T1", "1": "FLAIR"})
    assert len(case.series) == 2
    assert case.id == f"{case.patient}_{case.study}"


def test_two_segmentations_are_refused_unless_a_rule_chooses(tree):
    segmentation(tree / "a", tree / "second.dcm", SeriesDescription="reader 2")
    refused = index_dicom(tree, plan(), key=b"k" * 32)[1].refused
    assert [(r.rule, r.message.split(":")[1]) for r in refused if r.rule == "several segmentations"] == [
        ("several segmentations", " a_seg.dcm and second.dcm were both drawn on it")
    ]
    chosen, told = index_dicom(tree, plan(reference={"SeriesDescription": "reader 2"}), key=b"k" * 32)
    assert chosen.unassigned[0].label == "second.dcm"
    assert told.passed == {"segmentation of no case": ["a_seg.dcm"]}


def test_a_segmentation_is_found_by_its_instances_where_it_names_no_series(tree):
    dataset = dcmread(tree / "a_seg.dcm")
    del dataset.ReferencedSeriesSequence
    dataset.save_as(tree / "a_seg.dcm")
    assert dataset.SOPClassUID == SegmentationStorage
    assert index_dicom(tree, plan(), key=b"k" * 32)[0].unassigned[0].label == "a_seg.dcm"


def test_declared_classes_want_a_reference_of_every_case(tree):
    manifest, told = index_dicom(tree, plan(classes={"background": 0, "lesion": 1}), key=b"k" * 32)
    assert [case.image for case in manifest.unassigned] == ["a"]
    assert ("no reference", "b") in [(refusal.rule, refusal.file) for refusal in told.refused]


def test_masks_beside_the_tree_are_matched_by_patient(tmp_path):
    for number, name in ((0, "P1"), (1, "P2")):
        series(tmp_path / "dicom" / name, patient=name, seed=number)
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((8, 6, 6), np.uint8), np.eye(4)), tmp_path / "masks" / "P2.nii.gz")
    fields = {"label": "masks/{patient}.nii.gz", "classes": {"background": 0, "lesion": 1}}
    manifest, told = index_dicom(tmp_path, plan(**fields), key=b"k" * 32)
    assert [(case.image, case.label) for case in manifest.unassigned] == [("dicom/P2", "masks/P2.nii.gz")]
    assert [refusal.rule for refusal in told.refused] == ["no mask"]
    with pytest.raises(InputError, match=r"say what its raw values mean, class 0 first"):
        index_dicom(tmp_path, plan(label="masks/{patient}.nii.gz"))
    with pytest.raises(InputError, match=r"use \{patient\}, \{study\}, \{series\}, at least one"):
        index_dicom(tmp_path, plan(label="masks/{case}.nii.gz", classes=fields["classes"]))


def test_single_images_are_cases(tmp_path):
    image(tmp_path / "chest.dcm", Modality="DX")
    manifest, _ = index_dicom(tmp_path, plan(), key=b"k" * 32)
    case = manifest.unassigned[0]
    assert (case.image, case.series, manifest.modality) == ("chest.dcm", None, {"0": "DX"})


def test_patients_without_an_id(tmp_path):
    series(tmp_path / "a", PatientID="")
    with pytest.raises(DataError, match="a has no PatientID: say --patient NAME if all are of one, or --patients-unk"):
        index_dicom(tmp_path, plan())
    assert index_dicom(tmp_path, plan(patient="P"))[0].unassigned[0].patient == "P"
    unknown, _ = index_dicom(tmp_path, plan(patients_unknown=True), key=b"k" * 32)
    assert unknown.split == {"by": "image"}


def test_two_spellings_are_refused_by_file(tmp_path):
    series(tmp_path / "a", patient="Roe-1", seed=1)
    series(tmp_path / "b", patient="roe 01", seed=2)
    with pytest.raises(DataError, match="the PatientIDs of a and b differ only in spelling"):
        index_dicom(tmp_path, plan())
    with pytest.raises(InputError, match="a: its PatientID does not match `patient_id`"):
        index_dicom(tmp_path, plan(patient_id=r"\d+"))


def test_further_columns_are_asked_for_and_none_leads_to_a_patient(tree):
    manifest, _ = index_dicom(tree, plan(columns={"institution": "InstitutionName"}), key=b"k" * 32)
    assert manifest.unassigned[0].institution == "ST. ELSEWHERE"
    for keyword in ("PatientID", "StudyDate", "StudyInstanceUID", "PatientName", "AccessionNumber", "PatientComments"):
        with pytest.raises(InputError, match=keyword):
            index_dicom(tree, plan(columns={"x": keyword}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dicom": {"chanels": {}}}, "field `dicom.chanels`: Extra inputs are not permitted; there is channels, ref"),
        ({"dicom": {"columns": {"patient": "PatientSex"}}}, "may not be called 'patient'"),
        ({"dicom": {"channels": {"T1": {"SeriesDescription": "("}}}}, "is no regular expression"),
        ({"dicom": {}, "image": "{patient}.tif"}, "leave one of them out"),
    ],
)
def test_a_wrong_section_of_a_recipe_is_said(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        recipe({"name": "x"} | fields)


def test_real_series_with_their_segmentations(tmp_path):
    folder = real("dicomseg_dcmqi")
    chosen = plan(reference={"SegmentLabel": "Liver"}, classes={"background": 0, "liver": 1})
    manifest, told = index_dicom(folder, chosen, key=b"k" * 32)
    assert {case.label for _, case in manifest.cases()} >= {"23x38x3/label.seg"}
    assert told.series == 2
