from pipeline.bundle import PATH_KEYS
from pipeline.configuration import A_PATH, PATHS, differences, flattened, pathless, running_config


def test_a_nested_config_becomes_flat():
    assert flattened({"a": {"b": [1, {"c": None}]}, "d": []}) == {"a.b.0": "1", "a.b.1.c": "None", "d": "[]"}
    assert len(flattened({"long": "x" * 9000})["long"]) == 6000


def test_outside_of_a_bundle_nothing_is_being_run():
    assert running_config() == {}


def test_differences_are_sentences():
    before, after = {"lr": "1", "train.a": "1", "old": "1"}, {"lr": "2", "train.a": "2", "new": "1"}
    assert differences(before, after, but=["train"]) == [
        "lr was 1, is 2", "old was 1, is not set", "new was not set, is 1",
    ]  # fmt: skip


def test_no_path_is_written_down():
    config = {
        "manifest": "/data/Doe, Jane/m.json#2",
        "dataset_dir": None,
        "output_dir": "Doe",
        "tracking_uri": "http://user:password@host:5000",
        "overlays": ["C:\\Doe\\x.yaml", "plain"],
        "train": {"path": "$@output_dir + '/last.pt'", "manifest": "@manifest", "lr": 0.1},
        "class_names": ["background", "CSF/ventricle"],
        "experiment": "brain/2026",
    }
    assert pathless(config) == {
        "manifest": f"{A_PATH}, fold 2",
        "dataset_dir": None,
        "output_dir": A_PATH,
        "tracking_uri": A_PATH,
        "overlays": [A_PATH, "plain"],
        "train": {"path": A_PATH, "manifest": "@manifest", "lr": 0.1},
        "class_names": ["background", "CSF/ventricle"],
        "experiment": "brain/2026",
    }


def test_a_configuration_that_was_written_down_with_paths_is_the_same_without_them():
    config = {"manifest": "m.json", "a": {"b": ["/x/y", 1], "output_dir": "z"}, "class_names": ["a/b"]}
    once = flattened(pathless(config))
    assert pathless(flattened(config)) == once
    assert pathless(once) == once


def test_every_key_of_a_bundle_that_is_a_path_is_known():
    assert set(PATH_KEYS) <= set(PATHS)
