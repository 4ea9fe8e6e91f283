import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import children, trials
from pipeline.bundle import parse_overrides
from pipeline.errors import DataError, InputError
from pipeline.manifest import read
from pipeline.patient_table import tabulate
from tests.test_trials import plan


class FakeRuns:
    """Stands for child processes: keeps their words, and leaves the files that they would leave."""

    def __init__(self, stop_at=None, code=0):
        self.calls, self.stop_at, self.code = [], stop_at, code

    def __call__(self, words):
        self.calls.append(words)
        if len(self.calls) == self.stop_at:
            if self.code == 0:
                raise KeyboardInterrupt
            return self.code
        settings = given(words)
        if words[0] == "run":
            leave_state(settings["output_dir"], epoch=2, finished=True)
        else:
            leave_evaluation(settings)
        return 0

    def summary(self):
        """`training a/seed-0`, or `evaluate`, with `resumed` where it is."""
        shown = []
        for words in self.calls:
            settings = given(words)
            folder = settings["output_dir"].removesuffix("/evaluation").split("/")
            what = "train" if words[0] == "run" else "evaluate"
            shown.append(f"{what} {'/'.join(folder[-2:])}{' resumed' if settings.get('resume') else ''}")
        return shown


def given(words):
    """The options and overrides of a child's command, under the bundle's names."""
    names = {"--output": "--output_dir", "--dataset-dir": "--dataset_dir", "--tracking-uri": "--tracking_uri"}
    start = next(number for number, word in enumerate(words) if word.startswith("--"))
    return parse_overrides([names.get(word, word) for word in words[start:]])


def leave_state(folder, **state):
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(state, Path(folder) / "last.pt")


def leave_evaluation(settings):
    """A table of the fold's test patients: Dice is width / 100 + seed / 10 + number of the patient / 10."""
    plus = settings.get("width", 16) / 100 + 0.1 * ("seed-1" in settings["output_dir"])
    rows = [
        {"id": case.id, "patient": case.patient, "counts": {"network": counts(plus + 0.1 * int(case.patient[-1]))}}
        for case in read(settings["manifest"]).test
    ]
    folder = Path(settings["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    table = {"partition": "test", "measures": ["dice", "iou"]} | tabulate(rows, ["cell", "membrane"])
    (folder / "evaluation.json").write_text(json.dumps(table))


def counts(dice):
    """Of 1000 pixels of membrane that many are found, and as many are added as are missed."""
    hit = round(1000 * dice)
    return np.array([[5000, 1000 - hit, 1000 - hit], [hit, 1000 - hit, 1000 - hit]])


def go(made, run, said=None):
    planned = trials.trials(made, "0123456789")
    children.run_trials(planned, made, run, (lambda _: None) if said is None else said.append, lambda: None)


@pytest.fixture
def two(phantom_manifest, tmp_path):
    return plan(phantom_manifest, tmp_path, "a=", "b=--width 8", common="--epochs 2")


def test_every_trial_is_trained_and_evaluated_once(two):
    run, said = FakeRuns(), []
    go(two, run, said)
    everything = ["train a/seed-0", "evaluate a/seed-0", "train b/seed-0", "evaluate b/seed-0"]
    assert run.summary() == everything
    assert said[:2] == ["[1 of 2] a, seed 0: training", "[1 of 2] a, seed 0: evaluation"]
    again, said = FakeRuns(), []
    go(two, again, said)
    assert (again.calls, said) == ([], ["[1 of 2] a, seed 0: was done before", "[2 of 2] b, seed 0: was done before"])


@pytest.mark.parametrize("left", ["", '{"partition": "test"}', "[]"])
def test_an_evaluation_that_lacks_what_is_read_is_made_again(two, tmp_path, left):
    go(two, FakeRuns())
    table = tmp_path / "a" / "seed-0" / "evaluation" / "evaluation.json"
    table.write_text(left)
    run = FakeRuns()
    go(two, run)
    assert run.summary() == ["evaluate a/seed-0"]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_stopped_before_any_child_ends_it_goes_on_there(two, stop_at):
    first, second = FakeRuns(stop_at), FakeRuns()
    with pytest.raises(KeyboardInterrupt):
        go(two, first)
    go(two, second)
    everything = ["train a/seed-0", "evaluate a/seed-0", "train b/seed-0", "evaluate b/seed-0"]
    assert first.summary()[:-1] + second.summary() == everything


def test_an_unfinished_training_is_resumed_and_one_without_an_epoch_is_not(two, tmp_path):
    leave_state(tmp_path / "a" / "seed-0", epoch=1, finished=False)
    leave_state(tmp_path / "b" / "seed-0", epoch=0, finished=False)
    run = FakeRuns()
    go(two, run)
    assert run.summary() == ["train a/seed-0 resumed", "evaluate a/seed-0", "train b/seed-0", "evaluate b/seed-0"]


@pytest.mark.parametrize(
    ("code", "stop_at", "sentence"),
    [
        (2, 3, "b, seed 0: the training ended with exit code 2; the reason stands above"),
        (-9, 2, "a, seed 0: the evaluation was killed by signal 9"),
    ],
)
def test_a_child_that_fails_is_named_and_nothing_further_runs(two, code, stop_at, sentence):
    run = FakeRuns(stop_at, code)
    with pytest.raises(DataError) as caught:
        go(two, run)
    assert sentence in str(caught.value)
    assert len(run.calls) == stop_at


def test_a_child_that_was_stopped_stops_the_rest(two):
    with pytest.raises(KeyboardInterrupt):
        go(two, FakeRuns(1, code=130))


def test_a_folder_of_other_settings_is_refused(two, phantom_manifest, tmp_path):
    go(two, FakeRuns())
    other, run = plan(phantom_manifest, tmp_path, "a=", "b=--width 8", common="--epochs 3"), FakeRuns()
    with pytest.raises(InputError, match=r"is of a trial with other settings \(training.epochs was 2, is 3\)"):
        go(other, run)
    assert run.calls == []


def test_where_it_runs_may_change(two, phantom_manifest, tmp_path):
    go(two, FakeRuns())
    run = FakeRuns()
    go(plan(phantom_manifest, tmp_path, "a=", "b=--width 8", common="--epochs 2 --workers 0 --device cpu"), run)
    assert run.calls == []


def test_a_plan_remembers_its_parent_run_and_refuses_another_plan(two, phantom_manifest, tmp_path):
    assert children.read_plan(two) == ""
    children.write_plan(two, "run7")
    assert children.read_plan(two) == "run7"
    for change in ({"seeds": (0, 1)}, {"kind": "cross-validation"}, {"variants": two.variants[:1]}):
        with pytest.raises(InputError, match="is of a comparison with other settings"):
            children.read_plan(dataclasses.replace(two, **change))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InputError, match="not readable; give another --output"):
        children.read_plan(two)


@pytest.mark.parametrize("run_id", ["12345678901234567890123456789012", "1e345678901234567890123456789012", "0x1f"])
def test_a_run_id_that_looks_like_a_number_stays_text(two, run_id):
    words = children.training_words(trials.trials(two, run_id)[0], two, resume=False)
    assert given(words)["parent_run"] == run_id
