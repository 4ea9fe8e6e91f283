import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import bundle, trials
from pipeline.errors import InputError
from pipeline.trials import Plan, Variant, parse_variant, parse_words
from tests.conftest import edited

EM = "neuron_em_segmentation"


def in_two_folds(manifest, target):
    """The four phantom patients, two in each fold."""

    def change(fields):
        rows = [row for name in ("training", "validation", "test") for row in fields.pop(name)]
        for row in rows:
            row["fold"] = 1 if row["patient"] in ("patient-01", "patient-02") else 2
        record = {"by": "patient", "folds": 2, "seed": 1, "stratify": None, "validation": 0.5}
        fields |= {"unassigned": rows, "split": record}

    return edited(manifest, target, change)


def plan(manifest, output, *variants, common="", kind="comparison", seeds=(0,), folds=(None,), of=EM):
    parsed = tuple(parse_variant(text) for text in variants) if kind == "comparison" else (Variant(""),)
    return Plan(
        kind, bundle.find(of), Path(manifest), Path(output), parsed, seeds, folds, "sqlite:///x.db",
        parse_words("", common.split()),
    )  # fmt: skip


def test_variants_are_parsed_as_a_shell_would():
    assert parse_variant("unet=") == Variant("unet")
    found = parse_variant("b=--norm 'instance' --gamma '[0.5, 2]' --overlay paper --amp=False")
    assert found == Variant("b", ("paper",), {"norm": "instance", "gamma": [0.5, 2], "amp": False})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("resnet34", 'write NAME="OVERRIDES", as in --variant resnet34="--encoder resnet34"'),
        ("../up=", "becomes a folder: use letters"),
        ("=--width 8", "becomes a folder"),
        ("artifacts=", "becomes a folder"),
        ("a=--width", "--width has no value"),
        ("a=--overlay", "--overlay has no value"),
        ("a=--width '8", "No closing quotation"),
        ("a=width 8", "'width' is not an override"),
    ],
)
def test_a_variant_that_is_none_gets_a_sentence(text, sentence):
    with pytest.raises(InputError) as caught:
        parse_variant(text)
    assert sentence in str(caught.value)


def test_every_variant_with_every_seed_on_every_fold(phantom_manifest, tmp_path):
    found = trials.trials(plan(phantom_manifest, tmp_path, "a=", "b=--width 8", seeds=(0, 1), folds=(1, 2)), "run7")
    assert [trial.title for trial in found[:5]] == [
        "a, seed 0, fold 1", "b, seed 0, fold 1", "a, seed 0, fold 2", "b, seed 0, fold 2", "a, seed 1, fold 1",
    ]  # fmt: skip
    assert len(found) == 8
    last = found[-1]
    assert last.folder == tmp_path / "b" / "seed-1" / "fold-2"
    assert last.training["manifest"] == last.evaluating["manifest"] == f"{phantom_manifest}#2"
    assert (last.training["seed"], last.training["width"], last.training["parent_run"]) == (1, 8, "run7")
    assert last.evaluating["checkpoint"] == str(last.folder / "model.pt")
    assert last.evaluating["partition"] == "test"


def test_variants_differ_in_nothing_but_what_they_say(phantom_manifest, tmp_path):
    a, b = trials.trials(plan(phantom_manifest, tmp_path, "a=", "b=--width 8", common="--minutes 2 --depth 3"))
    changed = {key for key in b.training if a.training.get(key) != b.training[key]}
    assert changed == {"width", "output_dir"}
    assert a.training["minutes"] == b.training["minutes"] == 2


def test_training_and_evaluation_get_the_keys_that_they_know(phantom_manifest, tmp_path):
    words = "--epochs 3 --width 8 --otsu_foreground None --train#trainer#compile False"
    (trial, _) = trials.trials(plan(phantom_manifest, tmp_path, "a=", "b=", common=words))
    assert {"epochs", "width", "train#trainer#compile"} <= trial.training.keys()
    assert {"width", "otsu_foreground"} <= trial.evaluating.keys()
    assert "otsu_foreground" not in trial.training
    assert not {"epochs", "seed", "train#trainer#compile"} & trial.evaluating.keys()


def test_the_evaluation_is_of_the_network_that_an_overlay_trained(phantom_manifest, tmp_path):
    (_, paper) = trials.trials(plan(phantom_manifest, tmp_path, "a=", "b=--overlay paper --width 8"))
    assert (paper.overlays, paper.training["width"]) == (("paper",), 8)
    assert {key: paper.evaluating[key] for key in ("width", "padding", "norm", "dropout")} == {
        "width": 8, "padding": "valid", "norm": None, "dropout": 0.5,
    }  # fmt: skip
    assert "patch" not in paper.evaluating


def with_overlay(made, folder, text):
    """The plan, of a copy of its bundle that has an overlay `mine`."""
    copy = shutil.copytree(made.bundle, folder / made.bundle.name, ignore=shutil.ignore_patterns("models"))
    (copy / "configs" / "mine.yaml").write_text(text)
    return replace(made, bundle=copy)


def test_an_overlay_hands_lists_and_sections_to_the_evaluation_but_no_imports(phantom_manifest, tmp_path):
    made = plan(phantom_manifest, tmp_path / "out", "a=", "b=--overlay mine", of="nuclei_segmentation")
    text = "+imports: [$import math]\nact: [leakyrelu, {negative_slope: 0.1}]\nwidth: 8\noutput_dir: elsewhere\n"
    made = with_overlay(made, tmp_path, text)
    (_, leaky) = trials.trials(made)
    assert (leaky.evaluating["act"], leaky.evaluating["width"]) == (["leakyrelu", {"negative_slope": 0.1}], 8)
    assert leaky.evaluating["output_dir"] == str(leaky.evaluation)
    assert "imports" not in leaky.evaluating
    trials.check(made)


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ("epochs: 99", "--variant b: its epochs is 99, but 100 in a; variants are compared after equal trainings"),
        ("minutes: 5", "its minutes is 5, but None in a"),
        ("train#trainer#max_epochs: 99", "its train#trainer#max_epochs is 99, but @epochs in a"),
        ("seed: 7", None),  # every training is given its own
    ],
)
def test_an_overlay_may_not_train_longer(phantom_manifest, tmp_path, overlay, sentence):
    made = with_overlay(plan(phantom_manifest, tmp_path / "out", "a=", "b=--overlay mine"), tmp_path, overlay)
    if sentence is None:
        trials.check(made)
        return
    with pytest.raises(InputError) as caught:
        trials.check(made)
    assert sentence in str(caught.value)


def test_a_cross_validation_is_a_folder_per_fold(phantom_manifest, tmp_path):
    found = trials.trials(plan(phantom_manifest, tmp_path, kind="cross-validation", folds=(1, 2), seeds=(3,)))
    assert [trial.folder.name for trial in found] == ["fold-1", "fold-2"]
    assert [trial.title for trial in found] == ["seed 3, fold 1", "seed 3, fold 2"]


@pytest.mark.parametrize(
    ("variants", "common", "sentence"),
    [
        (("a=", "b=--widht 8"), "", "did you mean 'width'?"),
        (("a=", "b="), "--epohcs 8", "did you mean 'epochs'?"),
        (("a=", "b=--learning_rate x"), "", "--learning_rate must be a number"),
        (("a=", "b=--overlay nothing"), "", "overlays are: monai_elastic, multi_gpu, paper"),
        (("a=", "a=--width 8"), "", "--variant a is given twice"),
        (("a=", "b=--epochs 9"), "", "--variant b: --epochs is the same for all variants; give it outside of one"),
        (("a=", "b=--train#trainer#max_epochs 9"), "", "--train#trainer#max_epochs: the length of a training is set"),
        (("a=", "b=--train::trainer::max_epochs 9"), "", "the length of a training is set for all variants at once"),
        (("a=", "b=--manifest m.json"), "", "--manifest is set for every training by this command; leave it out"),
        (("a=", "b="), "--resume True", "--resume is set for every training"),
    ],
)
def test_settings_are_refused_before_anything_runs(phantom_manifest, tmp_path, variants, common, sentence):
    with pytest.raises(InputError) as caught:
        trials.check(plan(phantom_manifest, tmp_path / "out", *variants, common=common))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folds_of_a_manifest(phantom_manifest, tmp_path):
    folded = in_two_folds(phantom_manifest, tmp_path / "m.json")
    assert trials.folds_of(folded) == (1, 2)
    assert trials.folds_of(Path(f"{folded}#2")) == trials.folds_of(phantom_manifest) == (None,)
