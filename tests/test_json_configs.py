"""A bundle in JSON, as a release has it, works with everything that works with one in YAML."""

import json
import shutil

import pytest

from pipeline import bundle
from pipeline.errors import InputError
from tests.conftest import ROOT
from tests.stand_in import expanded

BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = ROOT / "bundles" / "neuron_em_segmentation"
    return expanded(folder, tmp_path_factory.mktemp("json") / folder.name)


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_is_sound_in_json_too(folder, tmp_path):
    assert bundle.check(expanded(folder, tmp_path / folder.name)) == []


def test_settings_are_those_of_the_yaml(release):
    source = bundle.find("neuron_em_segmentation")
    settings = bundle.settings(release, "training")
    assert settings.keys() == bundle.settings(source, "training").keys()
    assert settings["learning_rate"] == bundle.settings(source, "training")["learning_rate"]
    assert bundle.base_config(release, "training") == "configs/train.json"
    assert bundle.configs(release) == ["evaluate.json", "inference.json", "train.json"]


def test_found_prepared_and_commanded(release):
    assert bundle.find(str(release)) == release
    files, settings = bundle.prepare(release, "training", {"epochs": 2, "manifest": "m.json"}, [])
    assert files == ["configs/train.json"]
    assert settings["manifest"].endswith("/m.json")
    assert "--config_file configs/train.json" in bundle.command(release, "training", {})
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        bundle.prepare(release, "training", {"epohcs": 2}, [])


def test_components_are_made(release):
    [network] = bundle.components(release, "predicting", {}, ["network_def"])
    [other] = bundle.components(bundle.find("neuron_em_segmentation"), "predicting", {}, ["network_def"])
    assert network.state_dict().keys() == other.state_dict().keys()


def test_a_training_runs(release, phantom_manifest, tmp_path):
    overrides = {"manifest": str(phantom_manifest), "output_dir": str(tmp_path), "epochs": 1, "patch": 48, "width": 4}
    small = {"depth": 2, "patches_per_case": 1, "workers": 0, "log_model": False, "give_up_after": None}
    bundle.run(release, "training", overrides | small)
    assert (tmp_path / "last.pt").is_file()


@pytest.fixture
def copy(release, tmp_path):
    return shutil.copytree(release, tmp_path / release.name)


def edit(folder, change, name="train.json"):
    path = folder / "configs" / name
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(learning_rate="1e-3"), "train.json: learning_rate: '1e-3' is text"),
        (lambda c: c.update(epohcs=3), "train.json: key 'epohcs' is referenced nowhere"),
        (lambda c: c["network_def"].update(widht=3), "unexpected keyword argument 'widht'"),
        (lambda c: c["network_def"].update(width="@widht"), "@widht is defined nowhere"),
    ],
)
def test_the_check_finds(copy, change, problem):
    edit(copy, change)
    assert problem in "\n".join(bundle.check(copy))


def test_a_config_in_both_formats_is_told(copy):
    (copy / "configs" / "train.yaml").write_text((copy / "configs" / "train.json").read_text())
    assert "configs/train.json is there twice" in "\n".join(bundle.check(copy))
