import json

from pipeline.patient_flow import flow
from pipeline.report_sections import parts, split, steps
from tests.conftest import edited

REPORT = {
    "series_found": 9,
    "cases": [{"id": "x", "image": "Mueller_Anna/1.dcm"}],
    "passed_over": [{"what": "DICOMDIR", "files": 2, "examples": ["Mueller_Anna/DICOMDIR"]}],
    "refused": [
        {"rule": "missing slice", "file": "Mueller_Anna/2.dcm", "sentence": "Mueller_Anna/2.dcm: lacks a slice"},
        {"rule": "missing slice", "file": "Mueller_Anna/3.dcm", "sentence": "Mueller_Anna/3.dcm: lacks a slice"},
        {"rule": "two studies", "file": "Mueller_Anna/4.dcm", "sentence": "Mueller_Anna/4.dcm: two studies"},
    ],
}


def test_patients_are_counted_from_what_was_found_to_the_partitions(phantom_manifest, tmp_path):
    """Four patients with three sections each: 2, 1 and 1."""
    manifest = edited(phantom_manifest, tmp_path / "m.json", lambda fields: None)
    (tmp_path / "m_report.json").write_text(json.dumps(REPORT))
    found = flow(manifest)
    assert found["refused"] == {"missing slice": 2, "two studies": 1}
    assert found["indexed"] == {"patients": 4, "cases": 12}
    assert [found["partitions"][name]["patients"] for name in ("training", "validation", "test")] == [2, 1, 1]
    assert "Mueller" not in json.dumps(found)
    assert steps(found) == [
        ("Found", "9 series", ["2 files passed over: DICOMDIR"]),
        ("Refused", "3 times", ["missing slice: 2", "two studies: 1"]),
        ("Usable", "4 patients, 12 cases", []),
    ]
    assert parts(found)[2] == ("Test", "1 patient, 3 cases", "held back for the test")
    assert split(found).startswith("Data set phantom_em, divided by patient, in an order drawn with seed 1")


def test_without_a_report_nothing_is_said_of_refusals(phantom_manifest):
    found = flow(phantom_manifest)
    assert "refused" not in found
    assert [what for what, _, _ in steps(found)] == ["Usable"]


def test_a_fold_has_partitions_of_its_own(phantom_manifest, tmp_path):
    def into_folds(fields):
        cases = [case for name in ("training", "validation", "test") for case in fields.pop(name)]
        patients = sorted({case["patient"] for case in cases})
        fields["unassigned"] = [case | {"fold": 1 + patients.index(case["patient"]) // 2} for case in cases]
        fields["split"] = {"by": "patient", "seed": 1, "folds": 2, "validation": 0.5}

    manifest = edited(phantom_manifest, tmp_path / "m.json", into_folds)
    (tmp_path / "m_report.json").write_text(json.dumps(REPORT))
    found = flow(f"{manifest}#2")
    assert found["partitions"]["test"] == {"patients": 2, "cases": 6}
    assert found["found"] == {"series": 9}
    assert split(found).endswith("This is fold 2 of 2.")
