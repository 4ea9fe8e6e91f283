import json
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from pipeline import duplicates, loading
from pipeline import manifest as manifests
from pipeline.audit import audit, checked_cases
from pipeline.errors import DataError, InputError
from pipeline.index import index
from pipeline.pictures import read_page
from pipeline.recipe import Recipe
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


def test_a_file_is_decoded_once(site, monkeypatch):
    read = []
    for module in (loading, duplicates):
        monkeypatch.setattr(module, "read_page", lambda *page: read.append(page) or read_page(*page))
    cases = list(manifests.read(site / "manifest.json").cases())
    assert rules(site) == set()
    assert len(read) == len(set(read)) == 2 * len(cases)


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


def copied(site, change, partition, patient="somebody else"):
    """A changed copy of the first case of training, in a partition, under another patient's name."""
    first = json.loads((site / "manifest.json").read_text())["training"][0]
    image = tifffile.imread(site / first["image"], key=first["page"])
    tifffile.imwrite(site / "copy.tif", change(image), photometric="minisblack")
    label = tifffile.imread(site / first["label"], key=first["page"])
    tifffile.imwrite(site / "copy_label.tif", change(label), photometric="minisblack")
    row = {"id": "copy", "patient": patient, "image": "copy.tif", "label": "copy_label.tif"}
    edited(site / "manifest.json", site / "manifest.json", lambda m: m[partition].append(row))
    return first["id"]


def test_a_mirrored_copy_under_another_name_in_two_partitions(site, overtile):
    twin = copied(site, lambda image: image[:, ::-1], "test")
    code, output = overtile("audit", site / "manifest.json")
    told = (
        f"warning  near-duplicate in two partitions  {twin} in training and copy in test correlate by 1.0000 (mirrored)"
    )
    picture = site / "manifest_near_duplicates.png"
    assert code == 0
    assert told in output
    assert f"side by side, the most alike first -> {picture}" in output
    with Image.open(picture) as panels:
        assert panels.size == (3 * 256 + 2 * 4, 256 + 18 + 4)
        assert np.asarray(panels)[40:250, 530:].max() == 0  # after registration nothing differs


def test_a_copy_in_the_same_partition_hints_at_one_patient_under_two_names(site, tmp_path):
    copied(site, lambda image: image[::-1], "training")
    found = audit(manifests.read(site / "manifest.json"), site, picture=tmp_path / "pairs.png")
    assert [(finding.severity, finding.rule) for finding in found] == [("warning", "near-duplicate")]
    assert found[0].message.endswith("may be one")
    assert (tmp_path / "pairs.png").exists()


def test_without_near_duplicates_there_is_no_picture(site):
    audit(manifests.read(site / "manifest.json"), site, picture=site / "pairs.png")
    assert not (site / "pairs.png").exists()


def test_a_copy_of_ones_own_slice_is_no_leak(site):
    patient = json.loads((site / "manifest.json").read_text())["training"][0]["patient"]
    copied(site, lambda image: image[:, ::-1], "training", patient)
    assert rules(site) == set()


def test_near_duplicates_in_two_folds(site):
    copied(site, lambda image: image[:, ::-1], "test")

    def into_folds(m):
        rows = [case | {"fold": 1} for case in m.pop("training") + m.pop("validation")]
        m["unassigned"] = rows + [case | {"fold": 2} for case in m.pop("test")]
        m["split"] = {"by": "patient", "folds": 2, "seed": 1, "validation": 0.5}

    edited(site / "manifest.json", site / "manifest.json", into_folds)
    assert rules(site) == {("warning", "near-duplicate in two folds")}


def test_tiles_of_one_picture_in_two_partitions_where_no_patient_is_known(tmp_path):
    whole = np.random.default_rng(1).integers(0, 255, (64, 128), np.uint8)
    whole = ndimage.gaussian_filter(whole, 2)
    rows = []
    for number, name in enumerate(("left", "right")):
        tifffile.imwrite(tmp_path / f"{name}.tif", whole[:, 64 * number : 64 * (number + 1)])
        tifffile.imwrite(tmp_path / f"{name}_label.tif", np.zeros((64, 64), np.uint8))
        rows.append({"id": name, "patient": name, "image": f"{name}.tif", "label": f"{name}_label.tif"})
    fields = {"labels": {"0": "all"}, "label_values": {"0": 0}, "training": rows[:1], "test": rows[1:]}
    tiles = manifests.Manifest(name="tiles", modality={"0": "light"}, split={"by": "image"}, **fields)
    (found,) = audit(tiles, tmp_path)
    assert found.rule == "adjoining images in two partitions"
    assert "right in test lies to the right of left in training: tiles of one picture" in found.message


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


def test_a_sequence_that_is_missing_in_some_patients_is_a_warning(tmp_path):
    rng = np.random.default_rng(0)

    def found(**equal):
        for patient, alike in equal.items():
            image = rng.integers(0, 255, (2, 16, 16), dtype=np.uint8)
            image[1] = image[0] if alike else image[1]
            tifffile.imwrite(tmp_path / f"{patient}.tif", image, photometric="minisblack", planarconfig="separate")
        recipe = Recipe(name="x", image="{patient}.tif", modality=["T1", "FLAIR"])
        return [f for f in audit(index(tmp_path, recipe), tmp_path) if f.rule == "equal channels"]

    (finding,) = found(a=False, b=True, c=False)
    assert (finding.severity, finding.case) == ("warning", "b")
    assert finding.message.startswith("the channels T1 and FLAIR are equal in 1 of 3 cases, of patient b:")
    assert found(a=True, b=True, c=True) == []  # grey images stored as colours: nothing is missing
