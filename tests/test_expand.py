import importlib
import json

import pytest

from pipeline import bundle, expand
from pipeline.configuration import flattened, pathless
from pipeline.errors import InputError
from tests.conftest import ROOT

EM = bundle.find("neuron_em_segmentation")
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))


def recorded(overlays=(), **changes):
    """What last.pt keeps of a run with these values."""
    parser = bundle._parser(EM, ["configs/train.yaml", *(f"configs/{name}.yaml" for name in overlays)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EM)
        parser.resolve_macro_and_relative_ids()
    for key, value in changes.items():
        parser[key.replace("__", "::")] = value
    return flattened(pathless({key: value for key, value in parser.config.items() if key != "_meta_"}))


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_every_target_is_imported_by_its_full_name(folder):
    for config in expand.release_configs(folder, {}).values():
        for place, value in bundle.walk(config):
            assert not (isinstance(value, str) and value.startswith("%")), place
            if place.endswith("_target_"):
                module, _, name = value.rpartition(".")
                assert hasattr(importlib.import_module(module), name), value


def test_names_are_the_shortest():
    config = bundle.fully_named([{"_target_": name} for name in ("Compose", "DiceCELoss", "torch.optim.AdamW")])
    assert [part["_target_"] for part in config] == [
        "monai.transforms.Compose",
        "monai.losses.DiceCELoss",
        "torch.optim.AdamW",
    ]


def test_a_run_without_overrides_is_the_bundle():
    own = bundle.expanded(EM, "training")
    assert expand.as_run(own, recorded()) == own


def test_all_three_have_what_the_training_was_run_with():
    run = recorded(width=4, norm="$None", epochs=7, patch=(32, 48), train__dataloader__num_workers=3)
    train, evaluate, inference = expand.release_configs(EM, run).values()
    assert [config["width"] for config in (train, evaluate, inference)] == [4, 4, 4]
    assert [config["norm"] for config in (train, evaluate, inference)] == [None, None, None]
    assert (train["epochs"], train["patch"], train["train"]["dataloader"]["num_workers"]) == (7, [32, 48], 3)
    assert (evaluate["network"], inference["network"]) == ("$load_weights(@network_def, @checkpoint).to(@device)",) * 2


def test_an_overlay_is_part_of_the_run():
    train = expand.release_configs(EM, recorded(["paper"]))["train.json"]
    assert train["loss"] == {"_target_": "pipeline.losses.PixelWeightedCrossEntropy"}
    assert (train["padding"], train["norm"], train["momentum"]) == ("valid", None, 0.99)
    assert train["class_weights"] == "$training_class_weights(@manifest, @dataset_dir)"
    assert "$from pipeline.weights import training_class_weights" in train["imports"]
    assert len(train["train"]["cases"]["transform"]["transforms"]) == 3


def test_no_place_of_the_run_is_kept():
    places = {"manifest": "/clinic/m.json", "output_dir": "/clinic/out", "dataset_dir": "/clinic", "device": "cuda:3"}
    run = recorded(**places, experiment="Zwiebelacker", workers=7, tracking_uri="http://pacs")
    for config in expand.release_configs(EM, run).values():
        assert not [
            word for word in ("clinic", "not recorded", "cuda:3", "Zwiebel", "pacs") if word in json.dumps(config)
        ]
        assert config["bundle_root"] == "."
        assert config["output_dir"].startswith("$@bundle_root + '/")
    train, evaluate, inference = expand.release_configs(EM, run).values()
    assert train["manifest"] == evaluate["manifest"] == "$@bundle_root + '/data/manifest.json'"
    assert evaluate["checkpoint"] == inference["checkpoint"] == "$@bundle_root + '/models/model.pt'"
    assert "model.pt" not in train["output_dir"] and "models" not in train["output_dir"]


def test_a_text_that_no_record_keeps_is_refused():
    with pytest.raises(InputError, match="`spare`, which no record keeps"):
        expand.release_configs(EM, recorded(spare="a/b"))


def test_what_was_flattened_grows_again():
    config = {"a": {"b": [1, {"c": None}]}, "d": [], "e": {"0": "x"}, "f": {"0": "cell", "1": "gap"}}
    leaves = expand.flattened_values(config)
    assert leaves == {"a.b.0": 1, "a.b.1.c": None, "d": [], "e.0": "x", "f.0": "cell", "f.1": "gap"}
    assert expand.nested(leaves, config) == config
    assert expand.nested(leaves, {})["f"] == ["cell", "gap"]


def test_json_is_written_to_be_read():
    config = {"a": [1, 2], "b": {"c": [{"d": 1}], "e": {}}, "f": []}
    assert json.loads(expand.dumps(config)) == config
    assert '\n    "a": [1, 2],\n' in expand.dumps(config)
