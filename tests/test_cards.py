"""What the model cards say agrees with the results that lie beside them."""

import json

import pytest

from tests.conftest import ROOT

CARDS = {path.parents[1].name: path for path in (ROOT / "bundles").glob("*/docs/README.md")}


def test_the_card_of_nuclei_speaks_of_no_patients():
    assert "patient" not in CARDS["nuclei_segmentation"].read_text().lower()


@pytest.mark.parametrize(
    ("bundle", "file", "measure", "name"),
    [
        ("brain_mri_segmentation", "cross_validation.json", "dice", "abnormality"),
        ("chest_xray_segmentation", "evaluation_test.json", "dice", "lung"),
        ("chest_xray_segmentation", "evaluation_test.json", "miou", None),
        ("nuclei_segmentation", "evaluation_test.json", "dice", "nucleus"),
        ("hippocampus_mri_segmentation", "evaluation_test.json", "dice", "anterior"),
        ("hippocampus_mri_segmentation", "evaluation_test.json", "dice", "posterior"),
    ],
)
def test_the_figures_of_a_card_are_those_of_its_file(bundle, file, measure, name):
    summary = json.loads((CARDS[bundle].parent / file).read_text())["summary"]["network"]
    value, interval = summary[measure], summary["interval_95"][measure]
    if name is not None:
        value, interval = value[name], interval[name]
    rows = [line for line in CARDS[bundle].read_text().splitlines() if line.startswith("|")]
    assert any(f"{value:.3f}" in row and f"{interval[0]:.3f} to {interval[1]:.3f}" in row for row in rows)


def test_aggregated_objects_of_the_card_are_those_of_its_file():
    folder = CARDS["nuclei_segmentation"].parent
    mean = json.loads((folder / "evaluation_test.json").read_text())["instances"]["mean"]
    text = CARDS["nuclei_segmentation"].read_text()
    assert all(f"{mean[score]:.3f}" in text for score in ("aji", "ap_50"))


def test_the_surfaces_of_the_card_are_those_of_its_file():
    folder = CARDS["hippocampus_mri_segmentation"].parent
    found = json.loads((folder / "evaluation_test.json").read_text())["surface_distances"]["mean"]
    text = CARDS["hippocampus_mri_segmentation"].read_text()
    assert all(f"| {found['hd95'][part]:.2f} |" in text for part in ("anterior", "posterior"))
    assert all(f"| {found['surface_dice'][part]:.3f} |" in text for part in ("anterior", "posterior"))
