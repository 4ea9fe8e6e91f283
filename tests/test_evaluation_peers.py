"""Overlap in our tables, in MONAI's and in nnU-Net's, of one set of NIfTI files."""

import importlib.util
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot
from scipy.ndimage import gaussian_filter

from pipeline.loading import LoadCased
from pipeline.volumes import write_volume
from tests.test_evaluate import evaluated

NAMES = ["background", "anterior", "posterior"]

GRID = np.array([[0, -0.9, 0, 40], [-0.9, 0, 0, 50], [0, 0, 3, -20], [0, 0, 0, 1.0]])
"""Voxels along the patient's back, then left, then up: every reader turns them in its own way."""

NNUNET = """
import json, sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
if __name__ == "__main__":
    found = compute_metrics_on_folder(*sys.argv[1:3], None, SimpleITKIO(), ".nii.gz", [1, 2], num_processes=1)
    print("FOUND" + json.dumps([case["metrics"] for case in found["metric_per_case"]]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders of references and predictions, three cases each: one of them without class 2, one of them missing it."""
    folder = tmp_path_factory.mktemp("peers")
    for number in range(3):
        field = gaussian_filter(np.random.default_rng(number).normal(size=(24, 20, 12)), 3)
        reference = np.digitize(field / field.std(), (0.5, 1.2)).astype(np.uint8)
        moved = np.roll(reference, (1, 2), (0, 1))
        labels = {"reference": reference, "prediction": moved}
        if number > 0:
            empty = labels["reference" if number == 1 else "prediction"]
            empty[empty == 2] = 0
        for name, label in labels.items():
            (folder / name).mkdir(exist_ok=True)
            write_volume(label, GRID, folder / name / f"case{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def ours(files):
    """Every case's scores in evaluation.json."""
    load = LoadCased(["label"], {"0": 0, "1": 1, "2": 2})
    cases = [
        (f"p{n}", *(load({"label": files / name / f"case{n}.nii.gz"})["label"] for name in ("reference", "prediction")))
        for n in range(3)
    ]
    table, _ = evaluated(files / "out", cases, NAMES, batch_size=1)
    return [case["network"] for case in table["cases"]]


def test_dice_is_monais(files, ours):
    of = [
        torch.stack([torch.as_tensor(nib.load(files / name / f"case{n}.nii.gz").get_fdata())[None] for n in range(3)])
        for name in ("prediction", "reference")
    ]
    theirs = DiceMetric(include_background=False, reduction="none")(*(one_hot(label, 3) for label in of))
    np.testing.assert_allclose([list(map(_number, case["dice"].values())) for case in ours], theirs, rtol=1e-6)
    assert np.isnan(theirs.numpy()).sum() == 1


def test_dice_counts_and_volumes_are_nnunets(files, ours):
    if importlib.util.find_spec("nnunetv2") is None:
        pytest.skip(
            "nnU-Net is not installed: tests/benchmarks/nnunet_evaluation.py installs it into a folder and runs this"
        )
    command = [sys.executable, "-c", NNUNET, str(files / "reference"), str(files / "prediction")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    theirs = json.loads(output.split("FOUND")[1])
    for case, found in zip(ours, theirs, strict=True):
        for index, name in enumerate(NAMES[1:], start=1):
            of = found[str(index)]
            assert case["counts"][index] == [of["TP"], of["FP"], of["FN"]]
            assert case["dice_empty_scored"][name] == pytest.approx(of["Dice"], rel=1e-12)
            assert case["iou"][name] in (None, pytest.approx(of["IoU"], rel=1e-12))
            assert case["volume_ml"][name]["prediction"] == pytest.approx(of["n_pred"] * 0.9 * 0.9 * 3 / 1000)


def _number(value):
    return np.nan if value is None else value
