import pytest
import yaml

from pipeline.config_check import references, text_numbers, unreferenced

CONFIG = """
epochs: 5
spare: $@spare + 1
train:
  data: $[@epochs]
  dataset: {_target_: Dataset, data: '@train#data'}
  trainer: {dataset: $@train::dataset}
  sampler: null
validate:
  evaluator: '@train#trainer'
training: $@train#trainer.run()
"""


def test_references_say_where_they_stand_and_what_they_mean():
    assert list(references(yaml.safe_load(CONFIG))) == [
        ("spare", "spare"), ("train#data", "epochs"), ("train#dataset#data", "train#data"),
        ("train#trainer#dataset", "train#dataset"), ("validate#evaluator", "train#trainer"), ("training", "train#trainer"),
    ]  # fmt: skip


def test_what_only_refers_to_itself_is_unreferenced_and_a_dead_section_is_named_once():
    config = yaml.safe_load(CONFIG)
    found = list(unreferenced(config, references(config), but=["training"]))
    assert found == [f"key {key!r} is referenced nowhere" for key in ("spare", "train#sampler", "validate")]


def test_a_section_that_is_used_as_a_whole_uses_its_parts_and_paths_are_keys_too():
    config = {"sizes": {"small": 1, "large": 2}, "+train#handlers": [], "train#trainer#epochs": 1, "train#trane": 1}
    known = [("training", "sizes"), ("training", "train#trainer"), ("train#trainer#handlers", "train#handlers")]
    assert list(unreferenced(config, known)) == ["key 'train#trane' is referenced nowhere"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", "1.0e-3"), ("1.0e3", "1.0e+3"), ("-2E5", "-2.0e+5"), ("5", "5"), ("0.5", "0.5"), ("1_000", "1000"),
     ("0x10", "16"), ("inf", ".inf"), (".5", "0.5")],
)  # fmt: skip
def test_numbers_that_are_text_and_how_to_write_them(text, number):
    (problem,) = text_numbers({"a": [{"b": text}]})
    assert problem == f"a#0#b: {text!r} is text, not a number; write {number}"
    assert float(yaml.safe_load(number)) == float(int(text, 16) if "x" in text else text)


@pytest.mark.parametrize("text", ["", "zeros", "2d", "1.2.3", "$1e-3", "@epochs", "e5", "0 1", "1e"])
def test_text_that_is_text(text):
    assert list(text_numbers({"a": text, "2": None, "_meta_": {"version": "0.1"}})) == []


def test_names_made_of_digits():
    config = {"output_dir": "2024", "folds": ["2024"]}
    assert list(text_numbers(config, but=["output_dir"])) == ["folds#0: '2024' is text, not a number; write 2024"]
