from pipeline.configuration import differences, flattened, running_config


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
