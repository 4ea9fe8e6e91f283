import hashlib
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out

from pipeline import bundle, checkpoint
from pipeline.errors import DataError, InputError, user_error
from tests.conftest import ROOT

BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
EM = "neuron_em_segmentation"

METADATA_SCHEMA = {
    "type": "object",
    "required": [
        "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
        "task", "description", "authors", "copyright", "network_data_format", "changelog",
    ],
    "properties": {
        "network_data_format": {
            "required": ["inputs", "outputs"],
            "additionalProperties": {"additionalProperties": {"$ref": "#/$defs/tensor"}},
        }
    },
    "$defs": {
        "tensor": {"required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]},
    },
}  # fmt: skip
"""What the model zoo's schema asks for; MONAI would download that one."""


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(ROOT / "bundles" / EM, tmp_path / EM, ignore=shutil.ignore_patterns("models"))


def edit(folder, file, change):
    path = folder / "configs" / file
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_is_sound(folder):
    assert bundle.check(folder) == []


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_trains_in_several_processes_alike(folder):
    overlay = bundle.written(folder, "multi_gpu.yaml")
    assert overlay == bundle.written(bundle.find(EM), "multi_gpu.yaml")
    assert {*overlay} == {"distributed", "resume"} <= {*checkpoint.MAY_CHANGE}  # no record of a training shows it
    trained = bundle.written(folder, "train.yaml")
    assert trained["train"]["dataloader"]["_target_"] == "pipeline.shares.ShareLoader"
    assert trained["train"]["trainer"]["_target_"] == "pipeline.shares.ShareTrainer"
    assert "share_or_all" in trained["validate"]["data"]
    assert "$join(@device, @distributed)" in trained["initialize"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_metadata_passes_monais_check(folder, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(METADATA_SCHEMA))
    digest = hashlib.md5(schema.read_bytes()).hexdigest()
    verify_metadata(meta_file=str(folder / "configs/metadata.json"), filepath=str(schema), hash_val=digest)


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_network_takes_and_gives_what_the_metadata_says(folder):
    files = {"meta_file": folder / "configs/metadata.json", "config_file": folder / "configs/inference.yaml"}
    verify_net_in_out(net_id="network_def", device="cpu", **{key: str(path) for key, path in files.items()})
    parser = ConfigParser()
    parser.read_config(str(files["config_file"]))
    formats = json.loads(files["meta_file"].read_text())["network_data_format"]
    shapes = {}
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        sizes = [
            eval(size, {"n": 3}) if isinstance(size, str) else size for size in formats[side][name]["spatial_shape"]
        ]
        shapes[name] = (1, formats[side][name]["num_channels"], *sizes)
    network = parser.get_parsed_content("network_def").eval()
    assert network(torch.zeros(shapes["image"])).shape == shapes["pred"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_training_evaluation_and_deployment_share_one_definition(folder):
    deployed, *others = (
        yaml.safe_load((folder / "configs" / f"{name}.yaml").read_text()) for name in ("inference", "train", "evaluate")
    )
    assert deployed["postprocessing"]["transforms"] == ["@activation", "@discretisation"]
    for config in others:
        for key in ("network_def", "inferer", "preprocessing", "activation", "discretisation"):
            assert config[key] == f"%configs/inference.yaml::{key}"
        if config["postprocessing"] != "%configs/inference.yaml::postprocessing":
            steps = config["postprocessing"]["transforms"]  # the same, but for copies in between
            assert [step for step in steps if isinstance(step, str)] == ["@activation", "@discretisation"]
            assert {step["_target_"] for step in steps if not isinstance(step, str)} == {"CopyItemsd"}


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_metadata_names_the_installed_versions(folder):
    from importlib.metadata import version

    meta = json.loads((folder / "configs/metadata.json").read_text())
    wanted = meta["required_packages_version"] | {"monai": meta["monai_version"], "torch": meta["pytorch_version"]}
    assert {name: version(name).split("+")[0] for name in wanted} == wanted
    assert meta["version"] in meta["changelog"]


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("train.yaml", lambda c: c["loss"]["loss"].update(lambda_dise=1), "loss#loss: DiceCELoss: got an unexpected keyword argument 'lambda_dise'"),
        ("train.yaml", lambda c: c["optimizer"].pop("params"), "missing a required argument: 'params'"),
        ("train.yaml", lambda c: c["optimizer"].update(_target_="torch.optim.AdamV"), "'torch.optim.AdamV' cannot be imported"),
        ("train.yaml", lambda c: c["loss"].update(_target_="DiceLos"), "'DiceLos' cannot be imported"),
        ("train.yaml", lambda c: c["lr_scheduler"].update(T_max="@epoch"), "@epoch is defined nowhere"),
        ("train.yaml", lambda c: c.update(training="$@train#trainer.run("), "is no expression"),
        ("train.yaml", lambda c: c["initialize"].append("$set_determinsm(0)"), "uses 'set_determinsm', which nothing imports"),
        ("train.yaml", lambda c: c["imports"].append("$import torhc"), r"imports: '\$import torhc' fails"),
        ("train.yaml", lambda c: c.update(inferer="%configs/inference.yaml::infere"), "infere"),
        ("train.yaml", lambda c: c.update(learning_rate="1e-3"), r"^train.yaml: learning_rate: '1e-3' is text, not a number; write 1\.0e-3$"),
        ("train.yaml", lambda c: c["validate"]["dataloader"].update(num_workers="2"), "^train.yaml: validate#dataloader#num_workers: '2' is text"),
        ("train.yaml", lambda c: c.update(learning_rat=0.1), "^train.yaml: key 'learning_rat' is referenced nowhere$"),
        ("train.yaml", lambda c: c["train"].update(spare=None), "^train.yaml: key 'train#spare' is referenced nowhere$"),
        ("inference.yaml", lambda c: c.update(spare="$len(@spare)"), "^inference.yaml: key 'spare' is referenced nowhere$"),
    ],
)  # fmt: skip
def test_the_static_check_finds(copy, file, change, problem):
    edit(copy, file, change)
    found = bundle.check(copy)
    assert any(re.search(problem, sentence) for sentence in found), found


def test_keys_that_only_an_overlay_or_another_file_uses_are_used(copy):
    edit(copy, "train.yaml", lambda c: c.update(for_the_overlay=1, for_evaluation=2, for_nobody=3))
    edit(copy, "evaluate.yaml", lambda c: c["dataloader"].update(num_workers="%configs/train.yaml::for_evaluation"))
    overlay = {"val_interval": "@for_the_overlay", "train#dataloader#num_workers": 0, "epohcs": 5}
    (copy / "configs/quick.yaml").write_text(yaml.safe_dump(overlay))
    assert sorted(bundle.check(copy)) == [
        "quick.yaml: key 'epohcs' is referenced nowhere",
        "train.yaml: key 'for_nobody' is referenced nowhere",
    ]


def test_a_folder_called_2024_is_no_number_in_a_config_either(copy):
    edit(copy, "train.yaml", lambda c: c.update(output_dir="2024"))
    assert bundle.check(copy) == []


def test_codes_that_are_none_are_found(copy):
    path = copy / "configs/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"segments": {"1": {"label": "Membrane"}}}))
    first, second = bundle.check(copy)
    assert first.startswith("metadata.json: segments 1: category must be [scheme, value, meaning]")
    assert second.startswith("metadata.json: segments 1: type must be")


def test_a_missing_config_is_found(copy):
    (copy / "configs/evaluate.yaml").unlink()
    assert bundle.check(copy) == ["configs/evaluate.yaml is missing"]


def test_overrides_are_literals_or_text():
    words = ["--epochs", "5", "--amp=false", "--manifest", "a/b.json", "--learning_rate", "1e-3", "--match", "null"]
    assert bundle.parse_overrides(words) == {
        "epochs": 5, "amp": False, "manifest": "a/b.json", "learning_rate": 0.001, "match": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"), [(["epochs", "5"], "'epochs' is not an override"), (["--epochs"], "--epochs has no value")]
)
def test_words_that_are_no_overrides(words, sentence):
    with pytest.raises(InputError, match=sentence):
        bundle.parse_overrides(words)


def test_a_misspelt_override_is_refused():
    with pytest.raises(InputError, match=r"has no key 'epohcs' for training; did you mean 'epochs'\?"):
        bundle.prepare(bundle.find(EM), "training", {"epohcs": 5}, ())
    with pytest.raises(InputError, match="has no key 'train#trainer#max_epoch'"):
        bundle.prepare(bundle.find(EM), "training", {"train#trainer#max_epoch": 5}, ())
    bundle.prepare(bundle.find(EM), "training", {"train#trainer#max_epochs": 5}, ())


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("epochs", "five", "--epochs must be a number such as 100, got 'five'"),
        ("epochs", 0, "--epochs must be at least 1, got 0"),
        ("epochs", 1.5, "--epochs must be a whole number"),
        ("workers", -1, "--workers must be at least 0, got -1"),
        ("learning_rate", (0, 1), "--learning_rate must be a number"),
        ("learning_rate", float("nan"), "--learning_rate must be a number"),
        ("minutes", "an hour", "--minutes must be a number or null, got 'an hour'"),
        ("save_every", 0, "--save_every must be at least 1, got 0"),
        ("resume", "yes", "--resume must be True or False, got 'yes'"),
        ("epochs", None, "--epochs must be a number such as 100, got None"),
    ],
)
def test_numbers_are_numbers(key, value, sentence):
    with pytest.raises(InputError, match=sentence):
        bundle.prepare(bundle.find(EM), "training", {key: value}, ())


@pytest.mark.parametrize("workflow", ["training", "evaluating", "predicting"])
@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("size", 0, "--size must be at least 1, got 0"),
        ("size", "abc", "--size must be a number or null, got 'abc'"),
        ("size", None, None),
        ("size", 512, None),
        ("in_channels", "x", "--in_channels must be a number such as 3, got 'x'"),
        ("width", 0, "--width must be at least 1, got 0"),
        ("depth", 2.5, "--depth must be a whole number such as 5"),
        ("act", ["leakyrelu", {}], None),
    ],
)
def test_numbers_are_numbers_in_every_workflow(workflow, key, value, sentence):
    folder = bundle.find("brain_mri_segmentation")
    if sentence is None:
        bundle.prepare(folder, workflow, {key: value}, ())
        return
    with pytest.raises(InputError, match=sentence):
        bundle.prepare(folder, workflow, {key: value}, ())


def test_monai_cannot_take_a_hash_in_a_path(tmp_path):
    for key in ("dataset_dir", "output_dir", "tracking_uri"):
        with pytest.raises(InputError, match=f"--{key} .*a#b: MONAI cannot take a `#` in a path"):
            bundle.prepare(bundle.find(EM), "training", {key: f"sqlite:///{tmp_path}/a#b"}, ())
    bundle.prepare(bundle.find(EM), "training", {"manifest": str(tmp_path / "m.json#2")}, ())


def test_a_folder_called_2024_is_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overrides = bundle.parse_overrides(["--output_dir", "2024", "--tracking_uri", "sqlite:///runs.db"])
    _, settings = bundle.prepare(bundle.find(EM), "training", overrides, ())
    assert settings == {"output_dir": str(tmp_path / "2024"), "tracking_uri": f"sqlite:///{tmp_path}/runs.db"}


def test_null_reaches_monai():
    _, settings = bundle.prepare(bundle.find(EM), "training", {"norm": None, "give_up_after": None}, ())
    assert settings == {"norm": "$None", "give_up_after": "$None"}
    assert "--norm '$None'" in bundle.command(bundle.find(EM), "training", {"norm": None})


def test_unknown_bundles_workflows_and_overlays_are_named():
    with pytest.raises(
        InputError, match="no bundle 'brain'; there is brain_mri_segmentation, chest_xray_segmentation, hippocampus_"
    ):
        bundle.find("brain")
    with pytest.raises(InputError, match=r"no workflow 'trainig'; did you mean 'training'\?"):
        bundle.base_config(bundle.find(EM), "trainig")
    with pytest.raises(InputError, match=r"has no configs/papre\.yaml; overlays are: .*paper"):
        bundle.prepare(bundle.find(EM), "training", {}, ["papre"])


def test_relative_paths_are_the_callers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, settings = bundle.prepare(bundle.find(EM), "training", {"manifest": "data/m.json"}, ())
    assert settings["manifest"] == str(tmp_path / "data/m.json")
    _, settings = bundle.prepare(bundle.find("nuclei_segmentation"), "training", {"encoder_weights": "w.pth"}, ())
    assert settings["encoder_weights"] == str(tmp_path / "w.pth")


def test_the_printed_command_runs_the_same_in_monai(phantom_manifest, tmp_path):
    overrides = {"manifest": str(phantom_manifest), "output_dir": str(tmp_path / "a folder"), "epochs": 1}
    overrides |= {"patch": 64, "patches_per_case": 1, "workers": 0}
    line = bundle.command(bundle.find(EM), "training", overrides).replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a folder" / "model.pt").exists()


def test_monais_own_command_speaks_plainly_too(tmp_path):
    line = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.yaml"]
    done = subprocess.run(
        [*line, "--manifest", str(tmp_path / "none.json")],
        cwd=ROOT / "bundles" / EM, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("none.json: no such manifest; `overtile index` makes one")
    assert "Traceback" not in done.stderr


def test_a_users_mistake_is_found_behind_other_errors():
    def wrapped():
        try:
            raise DataError("p1.tif is broken")
        except DataError as error:
            raise RuntimeError("applying transform") from error

    with pytest.raises(RuntimeError) as caught:
        wrapped()
    assert str(user_error(caught.value)) == "p1.tif is broken"
    text = "Caught RuntimeError in worker\nTraceback ...\npipeline.errors.DataError: p2.tif is broken\n\nTraceback ..."
    assert str(user_error(RuntimeError(text))) == "p2.tif is broken"
    assert user_error(RuntimeError("a defect")) is None
