"""The steps of the public model zoo's verification (ci/verify_bundle.py of Project-MONAI/model-zoo) on our release.

Its last one, the export to TorchScript, is not among them: PyTorch has deprecated that, and the network is not made for it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from zipfile import ZipFile

import pytest
import tifffile
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.bundle.workflows import BundleWorkflow

from pipeline import bundle
from pipeline.evaluate import TABLE
from tests.conftest import ROOT
from tests.test_bundle import METADATA_SCHEMA

TEXTS = ("version", "task", "description", "authors", "copyright", "data_source", "data_type", "image_classes",
         "label_classes", "pred_classes", "intended_use")  # fmt: skip
SCHEMA = METADATA_SCHEMA | {
    "properties": METADATA_SCHEMA["properties"]
    | {key: {"type": "string"} for key in TEXTS}
    | {key: {"type": "object"} for key in ("changelog", "eval_metrics", "supported_apps")}
    | {"references": {"type": "array", "items": {"type": "string"}}}
}
"""With the types of the zoo's own schema."""


@pytest.fixture
def zoo(unpacked, tmp_path):
    """A checkout of the zoo with our release as its only bundle: `models/NAME` and `models/model_info.json`."""
    shutil.copytree(unpacked, tmp_path / "models" / unpacked.name)
    (tmp_path / "models/model_info.json").write_text(json.dumps({f"{unpacked.name}_v0.2.0": {}}))
    return tmp_path / "models" / unpacked.name


def files(folder):
    configs = {"meta_file": folder / "configs/metadata.json", "config_file": folder / "configs/inference.json"}
    return {key: str(path) for key, path in configs.items()}


def test_the_directory_has_what_a_bundle_must_have(zoo):
    for file in ("configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md", "LICENSE"):
        assert (zoo / file).is_file()
    assert not list(zoo.glob("large_files.*"))


def test_the_version_is_in_the_changelog_and_new(zoo):
    metadata = json.loads((zoo / "configs/metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert f"{zoo.name}_v{metadata['version']}" not in json.loads((zoo.parent / "model_info.json").read_text())


def test_the_metadata_follow_the_schema(zoo):
    schema = zoo / "eval/schema.json"
    schema.parent.mkdir()
    schema.write_text(json.dumps(SCHEMA))
    digest = hashlib.md5(schema.read_bytes()).hexdigest()
    verify_metadata(meta_file=files(zoo)["meta_file"], filepath=str(schema), hash_val=digest)


@pytest.mark.parametrize("config", ["inference", "train", "evaluate"])
def test_the_network_takes_and_gives_what_the_metadata_say(zoo, config):
    places = files(zoo) | {"config_file": str(zoo / f"configs/{config}.json")}
    verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(zoo), **places)


def test_metadata_that_lie_are_found(zoo):
    path = zoo / "configs/metadata.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"authors": 5}))
    with pytest.raises(ValueError, match="5 is not of type 'string'"):
        test_the_metadata_follow_the_schema(zoo)
    told["network_data_format"]["outputs"]["pred"]["num_channels"] += 1
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="output channel number"):
        test_the_network_takes_and_gives_what_the_metadata_say(zoo, "inference")


def with_data(folder, manifest):
    """The manifest where the release's configs look for it, beside its files."""
    shutil.copytree(manifest.parent, folder / "data")
    return folder


@pytest.mark.parametrize(("config", "kind"), [("evaluate", "infer"), ("train", "train")])
def test_monai_finds_the_properties_that_it_requires(zoo, phantom_manifest, monkeypatch, config, kind):
    monkeypatch.chdir(with_data(zoo, phantom_manifest))
    workflow = ConfigWorkflow(f"configs/{config}.json", workflow_type=kind, logging_file=False, bundle_root=str(zoo))
    workflow.initialize()
    assert BundleWorkflow.check_properties(workflow) == []
    assert workflow.version == "0.3.0"


def monai(folder, *words):
    """`python -m monai.bundle run ...` in the unpacked release, where no source tree is."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "monai.bundle", "run", *map(str, words)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_commands_of_the_card_run_in_the_unpacked_folder(zoo, phantom_manifest):
    with_data(zoo, phantom_manifest)
    signed = {file: (zoo / file).read_bytes() for file in ("models/model.pt", "configs/train.json")}
    monai(zoo, "training", "--config_file", "configs/train.json", "--epochs", 1, "--patches_per_case", 1)
    assert (zoo / "training/model.pt").is_file()
    monai(zoo, "evaluating", "--config_file", "configs/evaluate.json", "--partition", "validation")
    assert json.loads((zoo / "evaluation" / TABLE).read_text())["partition"] == "validation"
    image = next(phantom_manifest.parent.glob("*/image.tif"))
    words = ["predicting", "--config_file", "configs/inference.json", "--source", image, "--output_dir", "answers"]
    monai(zoo, *words)
    assert tifffile.imread(zoo / "answers/image.tif").shape == tifffile.imread(image).shape
    assert signed == {file: (zoo / file).read_bytes() for file in signed}


def test_our_own_commands_take_the_unpacked_folder(zoo, phantom_manifest, overtile, tmp_path):
    with_data(zoo, phantom_manifest)
    assert bundle.check(zoo) == []
    code, said = overtile("run", zoo, "training", "--epochs", 1, "--patches_per_case", 1, "--log_model", False)
    assert code == 0, said
    assert (zoo / "training/model.pt").is_file()
    image = next(phantom_manifest.parent.glob("*/image.tif"))
    code, said = overtile("predict", "--bundle", zoo, "--input", image, "--output", tmp_path / "labels")
    assert code == 0, said
    code, said = overtile(
        "evaluate", "--bundle", zoo, "--manifest", phantom_manifest, "--checkpoint", zoo / "models/model.safetensors",
        "--output", tmp_path / "test",
    )  # fmt: skip
    assert code == 0, said


def test_a_release_can_be_released_again(zoo, trained, tmp_path):
    from pipeline.release import release

    again = release(zoo, trained, tmp_path, key=tmp_path / "site.key", version="0.4.0")
    with ZipFile(again) as archive:
        for config in ("train.json", "evaluate.json", "inference.json"):
            assert archive.read(f"{zoo.name}/configs/{config}") == (zoo / "configs" / config).read_bytes()
        metadata = json.loads(archive.read(f"{zoo.name}/configs/metadata.json"))
    assert list(metadata["changelog"])[:2] == ["0.4.0", "0.3.0"]
