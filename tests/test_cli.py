import json
import re
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

from pipeline import manifest as manifests
from tests.conftest import edited

EM = "neuron_em_segmentation"
PATTERNS = ["--image", "{patient}/image.tif", "--label", "{patient}/label.tif"]
CLASSES = ["--class", "cell=255", "--class", "membrane=0"]


@pytest.fixture
def site(phantom_dir, phantom_manifest, tmp_path):
    return shutil.copytree(phantom_dir, tmp_path / "site")


def test_index_split_audit(overtile, tmp_path):
    data, manifest = tmp_path / "data", tmp_path / "data" / "m.json"
    assert overtile("phantom", "em", data, "--patients", 4, "--sections", 2, "--size", 48)[0] == 0
    code, output = overtile("index", data, "--name", "x", *PATTERNS, *CLASSES, "--out", manifest)
    assert (code, output.splitlines()[-1]) == (0, f"8 cases of 4 patients, 8 unassigned -> {manifest}")
    assert "patient-01" not in {case.patient for case in manifests.read(manifest).unassigned}
    code, output = overtile("split", manifest, "--fractions", 0.5, 0.25, 0.25)
    assert code == 0
    assert "training        4         2" in output
    code, output = overtile("audit", manifest, "--json", tmp_path / "findings.json")
    assert (code, output.splitlines()[-1]) == (0, f"0 errors, 0 warnings in {manifest}")
    assert json.loads((tmp_path / "findings.json").read_text()) == []


def test_public_names_and_a_key_contradict_each_other(overtile, phantom_dir, tmp_path):
    (tmp_path / "r.yaml").write_text("{name: x, image: '{patient}/image.tif', public: true}")
    words = ["index", phantom_dir, "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "m.json"]
    code, output = overtile(*words, "--key", tmp_path / "site.key")
    assert (code, "leave it out or say --no-public" in output) == (2, True)
    assert not list(tmp_path.glob("*.key"))
    code, output = overtile(*words, "--key", tmp_path / "site.key", "--no-public")
    left_out, said = output.splitlines()[-2:]
    assert (code, said) == (0, f"12 cases of 4 patients, 12 unassigned -> {tmp_path / 'm.json'}")
    assert left_out == "4 image files match no pattern, as patient-01/label.tif"
    assert manifests.read(tmp_path / "m.json").pseudonyms.startswith("key:")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gap", 2], "--gap goes with --by section"),
        (["--by", "section", "--because", "x", "--seed", 1], "--by section takes no --seed"),
    ],
)
def test_options_of_another_split_are_refused(overtile, phantom_manifest, words, sentence):
    code, output = overtile("split", phantom_manifest, *words)
    assert (code, sentence in output) == (2, True)


def test_an_error_of_the_audit_is_exit_code_1(overtile, site, tmp_path):
    labels = tifffile.imread(site / "patient-02/label.tif")
    tifffile.imwrite(site / "patient-02/label.tif", labels // 255, photometric="minisblack")
    code, output = overtile("audit", site / "manifest.json", "--json", tmp_path / "findings.json")
    assert code == 1
    assert re.search(
        r"error    unusable label  patient-02_000: .*label\.tif, page 0: raw label values 1 are not", output
    )
    rules = {finding["rule"] for finding in json.loads((tmp_path / "findings.json").read_text())}
    assert rules == {"changed file", "unusable label"}


def test_evaluate_prints_patients_beside_otsu(overtile, trained, phantom_manifest, tmp_path):
    code, output = overtile(
        "evaluate", "--bundle", EM, "--manifest", phantom_manifest,
        "--checkpoint", trained / "model.pt", "--output", tmp_path,
    )  # fmt: skip
    assert code == 0, output
    table = json.loads((tmp_path / "evaluation.json").read_text())
    (patient,) = table["patients"]
    assert patient["cases"] == 3
    assert f"{patient['network']['dice']['membrane']:.3f}" in output
    assert f"{patient['otsu']['dice']['membrane']:.3f}" in output
    assert (tmp_path / "worst.png").exists()
    assert "Cells separated where the probability of membrane is above 0.5 (default, not tuned):" in output
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        ((status, value),) = store.execute(
            "select status, value from runs join metrics using (run_uuid) where key = 'test_dice_membrane'"
        ).fetchall()
    assert (status, value) == ("FINISHED", pytest.approx(patient["network"]["dice"]["membrane"]))


def test_predict_writes_and_says_where(overtile, trained, phantom_dir, tmp_path):
    code, output = overtile(
        "predict", "--bundle", EM, "--input", phantom_dir / "patient-01/image.tif",
        "--checkpoint", trained / "model.pt", "--output", tmp_path / "out",
    )  # fmt: skip
    assert (code, output.splitlines()[-1]) == (0, f"Label maps: {tmp_path / 'out'}")
    assert tifffile.imread(tmp_path / "out/image.tif").shape == (3, 64, 64)


def test_training_refuses_a_dataset_with_errors(overtile, site, tmp_path):
    (site / "patient-02/image.tif").unlink()
    words = ["--manifest", site / "manifest.json", "--output_dir", tmp_path / "out"]
    code, output = overtile("run", EM, "training", *words)
    assert code == 1
    assert "3 errors; `overtile audit` lists them" in output
    assert not (tmp_path / "out").exists()


def test_a_label_spoiled_after_the_audit_never_reaches_the_loss(overtile, site, tmp_path):
    labels = tifffile.imread(site / "patient-02/label.tif")
    tifffile.imwrite(site / "patient-02/label.tif", np.where(labels == 0, 128, labels), photometric="minisblack")
    words = ["--manifest", site / "manifest.json", "--output_dir", tmp_path / "out", "--workers", 0]
    code, output = overtile("run", EM, "training", *words)
    assert code == 1
    assert "raw label values 128 are not declared (declared: 0, 255)" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["split", "{tmp}/none.json"], "none.json: no such manifest"),
        (["audit", "{tmp}/none.json"], "none.json: no such manifest"),
        (["index", "{tmp}/none", "--name", "x", "--image", "{patient}.tif", "--out", "{tmp}/m.json"], "no such folder"),
        (["run", "neuron", "training"], "no bundle 'neuron'; there is brain_mri_segmentation, chest_xray_segmentation, hippocampus_mri_segmentation, neu"),
        (["run", EM, "train"], "no workflow 'train'; did you mean 'training'?"),
        (["run", EM, "training", "--epohcs", "5"], "did you mean 'epochs'?"),
        (["check", "nothing"], "no bundle 'nothing'"),
        (["predict", "--bundle", EM, "--input", "{tmp}", "--output", "{tmp}/o", "--checkpoint", "{tmp}/no.pt"],
         "no.pt: no such checkpoint"),
        (["split"], "Missing argument 'manifest'"),
        (["splitt"], "No such command 'splitt'"),
        (["index", "{tmp}", "--name", "x", "--image", "{patient}.tif", "--out", "{tmp}/m.json", "--class", "cell"],
         "write NAME=RAW VALUE"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_sentence_and_exit_code_2(overtile, tmp_path, words, sentence):
    code, output = overtile(*(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert code == 2
    assert sentence in output
    assert "Traceback" not in output


def test_a_broken_checkpoint_is_a_sentence(overtile, phantom_dir, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"not weights")
    code, output = overtile(
        "predict",
        "--bundle",
        EM,
        "--input",
        phantom_dir,
        "--output",
        tmp_path / "o",
        "--checkpoint",
        tmp_path / "model.pt",
    )
    assert (code, output.splitlines()[-1]) == (2, f"error: {tmp_path / 'model.pt'}: not a readable checkpoint")


def test_split_by_section_is_recorded(overtile, phantom_dir, phantom_manifest, tmp_path):
    path = edited(
        phantom_manifest,
        tmp_path / "m.json",
        lambda m: m.update(
            split=None, unassigned=m["training"] + m["validation"] + m["test"], training=[], validation=[], test=[]
        ),
    )
    words = ["split", path, "--by", "section", "--fractions", 0.5, 0.5, 0]
    assert overtile(*words)[0] == 2
    code, _ = overtile(*words, "--because", "a test of three sections")
    assert code == 0
    assert manifests.read(path).split["because"] == "a test of three sections"


def test_evaluation_refuses_a_dataset_with_errors(overtile, trained, site, tmp_path):
    (site / "patient-02/image.tif").unlink()
    words = ["--manifest", site / "manifest.json", "--checkpoint", trained / "model.pt", "--output", tmp_path / "out"]
    code, output = overtile("evaluate", "--bundle", EM, *words)
    assert code == 1
    assert "3 errors; `overtile audit` lists them" in output


def test_a_training_never_leaves_the_weights_of_an_earlier_one(overtile, site, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt").write_bytes(b"of an earlier training")
    words = ["--manifest", site / "manifest.json", "--output_dir", tmp_path / "out", "--workers", 0, "--patch", 50]
    code, output = overtile("run", EM, "training", *words)
    assert (code, "the nearest valid sizes are 48 and 64" in output) == (2, True)
    assert {path.name for path in (tmp_path / "out").glob("*.pt")} == {"previous_model.pt", "last.pt"}
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["epoch"] == 0


def test_keys_of_the_network_are_handed_on(overtile, phantom_dir, trained, tmp_path):
    words = [
        "--input",
        phantom_dir / "patient-01/image.tif",
        "--output",
        tmp_path,
        "--checkpoint",
        trained / "model.pt",
    ]
    code, output = overtile("predict", "--bundle", EM, *words, "--width", 8)
    assert (code, "weights of another network" in output) == (2, True)
    code, output = overtile("predict", "--bundle", EM, *words[:-1], trained / "last.pt")
    assert (code, "is the state of a training; the weights to use are beside it" in output) == (2, True)


def test_the_ct_phantom_and_brackets_in_paths(overtile, tmp_path):
    code, output = overtile("phantom", "ct", tmp_path / "[a]")
    assert (code, output) == (0, f"20 slices, a lesion of 676 voxels -> {tmp_path / '[a]'}\n")


def test_a_manifest_with_a_leak_is_not_dealt_on(overtile, phantom_manifest, tmp_path):
    path = edited(phantom_manifest, tmp_path / "m.json", lambda m: m["test"].append(m["training"].pop()))
    before = path.read_text()
    code, output = overtile("split", path)
    assert (code, "that is a leak" in output, path.read_text()) == (2, True, before)


def test_check_is_clean(overtile):
    assert overtile("check", EM) == (0, "neuron_em_segmentation: 0 problems\n")


def test_runs_of_a_folder_without_any(overtile, tmp_path):
    code, output = overtile("runs", tmp_path)
    assert code == 2
    assert f"{tmp_path}: no mlflow.db in it; give the output folder of a training, or a tracking URI" in output


def test_help_loads_nothing_that_takes_long():
    code = "import sys; from pipeline.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"torch", "monai", "pandas", "numpy", "scipy", "mlflow", "matplotlib", "pydicom", "rich", "ssl", "asyncio"}
    assert "crossvalidate" in said and not heavy & set(said.split())
