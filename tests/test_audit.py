import shutil

import numpy as np
import pytest
import tifffile

from pipeline import manifest as manifests
from pipeline.audit import audit, checked_cases
from pipeline.errors import DataError, InputError
from tests.conftest import ROOT, edited, real

CLASSES = ["cell", "membrane"]


@pytest.fixture
def site(phantom_dir, phantom_manifest, tmp_path):
    """A copy of the phantom dataset that a test may spoil."""
    return shutil.copytree(phantom_dir, tmp_path / "site")


def rules(folder, thorough=True):
    found = audit(manifests.read(folder / "manifest.json"), folder, thorough=thorough)
    return {(finding.severity, finding.rule) for finding in found}


def rewrite(path, change):
    stack = tifffile.imread(path)
    tifffile.imwrite(path, change(stack), photometric="minisblack")


def set_page(stack, page, value):
    stack[page] = value
    return stack


def test_a_clean_dataset_has_no_findings(site):
    assert rules(site) == set()


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("label.tif", lambda s: s // 255, ("error", "unusable label")),
        ("label.tif", lambda s: np.where(s == 0, 1, s), ("error", "unusable label")),
        ("label.tif", lambda s: s[:, :60], ("error", "different shapes")),
        ("label.tif", lambda s: s[:2], ("error", "missing page")),
        ("image.tif", lambda s: set_page(s.astype(np.float32), 1, np.nan), ("error", "NaN or infinity")),
        ("image.tif", lambda s: set_page(s, 1, 7), ("warning", "constant image")),
        ("image.tif", lambda s: s + 1, ("error", "changed file")),
    ],
)
def test_spoiled_files(site, file, change, expected):
    rewrite(site / "patient-02" / file, change)
    assert expected in rules(site)


def test_missing_and_broken_files_are_cheap_to_find(site):
    (site / "patient-02" / "image.tif").unlink()
    (site / "patient-03" / "label.tif").write_bytes(b"broken")
    assert rules(site, thorough=False) == {("error", "missing file"), ("error", "unreadable file")}


def test_a_declared_class_that_no_case_has(site):
    edited(
        site / "manifest.json",
        site / "manifest.json",
        lambda m: (m["labels"].update({"2": "x"}), m["label_values"].update({"9": 2})),
    )
    assert rules(site) == {("error", "class without a case")}


def test_a_patient_in_two_partitions(site):
    edited(site / "manifest.json", site / "manifest.json", lambda m: m["test"].append(m["training"].pop()))
    assert rules(site, thorough=False) == {("error", "patient in two partitions")}


def test_equal_pixels_in_two_partitions_under_another_name(site):
    def clone(m):
        m["test"].append(m["training"][0] | {"id": "clone", "patient": "somebody else"})

    edited(site / "manifest.json", site / "manifest.json", clone)
    assert rules(site, thorough=False) == {("error", "equal pixels in two partitions")}


def test_sections_nearer_than_the_gap(site):
    def by_section(m):
        m["split"] = {"by": "section", "gap": 1, "because": "test"}
        m["test"].append(m["training"].pop(2))

    edited(site / "manifest.json", site / "manifest.json", by_section)
    assert rules(site, thorough=False) == {("error", "no gap between partitions")}


def test_training_takes_checked_cases_with_absolute_paths(site):
    cases = checked_cases(site / "manifest.json", None, "training", CLASSES, 1)
    assert len(cases) == 6
    assert cases[0]["image"].startswith(str(site))
    assert set(cases[0]) == {"id", "patient", "image", "label", "page"}


def test_training_refuses_what_the_audit_finds(site):
    (site / "patient-02" / "image.tif").unlink()
    with pytest.raises(DataError, match=r"3 errors; `overtile audit` lists them\n  missing file: .*patient-02"):
        checked_cases(site / "manifest.json", None, "training", CLASSES, 1)


def test_training_refuses_unassigned_cases_other_classes_and_other_folders(site):
    with pytest.raises(DataError, match="declares the classes cell, membrane; this bundle separates membrane, cell"):
        checked_cases(site / "manifest.json", None, "training", CLASSES[::-1], 1)
    with pytest.raises(InputError, match="dataset folder .* does not exist"):
        checked_cases(site / "manifest.json", site / "nowhere", "training", CLASSES, 1)
    edited(site / "manifest.json", site / "manifest.json", lambda m: m.update(unassigned=m.pop("training")))
    with pytest.raises(DataError, match="no case in `training`; `overtile split` deals unassigned patients"):
        checked_cases(site / "manifest.json", None, "training", CLASSES, 1)


def test_the_real_em_manifest_is_clean():
    folder = real("isbi2012_em")
    assert audit(manifests.read(ROOT / "data_manifest" / "neuron_em.json"), folder) == []
