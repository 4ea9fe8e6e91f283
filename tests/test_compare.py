"""Comparisons and cross-validations, with runs that only leave files, and once with real ones."""

import dataclasses
import json
import shutil
import sqlite3

import pytest
from PIL import Image

from pipeline import child_process, compare, manifest
from pipeline.errors import DataError, InputError
from tests.test_children import FakeRuns
from tests.test_trials import EM, in_two_folds, plan


@pytest.fixture
def out(empty_store, tmp_path):
    """The folder of a comparison, with a store in it."""
    (tmp_path / "out").mkdir()
    shutil.copy(empty_store, tmp_path / "out")
    return tmp_path / "out"


def rows(folder, query):
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


def made(phantom_manifest, out, sub="", **changes):
    from pipeline.store import sqlite_store

    variants = ("a=", "b=--width 8") if changes.get("kind", "comparison") == "comparison" else ()
    return dataclasses.replace(plan(phantom_manifest, out / sub, *variants, **changes), store=sqlite_store(out))


def silent(_):
    return None


def test_a_comparison_from_variants_to_files(phantom_manifest, out):
    found = compare.compare(made(phantom_manifest, out, seeds=(0, 1)), run=FakeRuns(), say=silent)
    (patient,) = {case.patient for case in manifest.read(phantom_manifest).test}
    (row,) = [row for row in found["differences"] if row["measure"] == "dice_membrane"]
    assert row["by_patient"] == {patient: pytest.approx(0.08)}  # widths 16 and 8 in every seed
    assert found["seed_spread"]["a"]["dice_membrane"] == pytest.approx(0.1)
    assert json.loads((out / "comparison.json").read_text())["seeds_trained"] == [0, 1]
    with Image.open(out / "comparison.png") as picture:
        assert picture.size[0] > 500
    assert rows(out, "select status from runs") == [("FINISHED",)]
    assert dict(rows(out, "select key, value from metrics"))["a-b_dice_membrane"] == pytest.approx(0.08)
    params = dict(rows(out, "select key, value from params"))
    assert (params["seeds"], params["variants.b.overrides.width"]) == ("[0, 1]", "8")
    kept = {path.name for path in (out / "artifacts").rglob("*") if path.is_file()}
    assert {"comparison.json", "comparison.png"} <= kept
    tags = dict(rows(out, "select key, value from tags"))
    assert tags["verdict"] == "a - b, dice_membrane: +0.080 on 1 patient, no interval"
    first, second = (found["means"][name]["dice_membrane"] for name in "ab")
    assert f"| a - b | dice_membrane | {first:.3f} | {second:.3f} | +0.080 | 1 |" in tags["mlflow.note.content"]
    assert "- b: width 8." in tags["mlflow.note.content"]
    ((name,),) = rows(out, "select name from runs")
    assert name.startswith("neuron_em_segmentation | comparison of a and b | phantom_em | 20")


def test_out_of_fold_every_patient_is_scored_once(phantom_manifest, out, tmp_path):
    folded, run = in_two_folds(phantom_manifest, tmp_path / "m.json"), FakeRuns()
    made_plan = made(folded, out, kind="cross-validation", folds=(1, 2))
    table = compare.cross_validate(made_plan, run=run, say=silent)
    assert run.summary() == ["train out/fold-1", "evaluate out/fold-1", "train out/fold-2", "evaluate out/fold-2"]
    assert [row["patient"] for row in table["patients"]] == [f"patient-0{n}" for n in (1, 2, 3, 4)]
    summary = table["summary"]["network"]
    assert summary["dice"]["membrane"] == pytest.approx(0.16 + 0.25)
    low, high = summary["interval_95"]["dice"]["membrane"]
    assert 0.26 <= low < 0.41 < high <= 0.56
    assert table["folds"] == 2
    assert any(caution.startswith("Each fold was trained with one seed") for caution in table["cautions"])
    digests = manifest.read(folded).split_digests()
    assert {key: table[key] for key in digests} == digests
    assert dict(rows(out, "select key, value from params")).items() >= digests.items()
    tags = dict(rows(out, "select key, value from tags"))
    assert tags["verdict"] == f"out of 2 folds: Dice 0.41 ({low:.2f} to {high:.2f}) on 4 patients"
    assert "| fold 2 | 2 | 6 |" in tags["mlflow.note.content"]
    logged = dict(rows(out, "select key, value from metrics"))
    assert (logged["test_dice_membrane"], logged["test_dice_membrane_low"]) == (pytest.approx(0.41), pytest.approx(low))
    cases = json.loads((out / "cases.json").read_text())
    worst_first = dict.fromkeys(row[cases["columns"].index("patient")] for row in cases["data"])
    assert list(worst_first) == [f"patient-0{n}" for n in (1, 2, 3, 4)]
    assert "mlflow.loggedArtifacts" in dict(rows(out, "select key, value from tags"))
    compared = compare.compare(made(folded, out, "c", folds=(1, 2)), run=FakeRuns(), say=silent)
    (row,) = [row for row in compared["differences"] if row["measure"] == "dice_membrane"]
    assert (row["patients"], row["interval"]) == (4, pytest.approx((0.08, 0.08)))


def test_a_stop_and_a_failure_are_told_and_the_same_run_goes_on(phantom_manifest, out):
    with pytest.raises(KeyboardInterrupt):
        compare.compare(made(phantom_manifest, out), run=FakeRuns(stop_at=2), say=silent)
    assert rows(out, "select status from runs") == [("KILLED",)]
    with pytest.raises(DataError):
        compare.compare(made(phantom_manifest, out), run=FakeRuns(stop_at=2, code=1), say=silent)
    assert rows(out, "select status from runs") == [("FAILED",)]
    ((reason,),) = rows(out, "select value from tags where key = 'failure'")
    assert reason.startswith("DataError: b, seed 0: the training ended with exit code 1")
    last = FakeRuns()
    compare.compare(made(phantom_manifest, out), run=last, say=silent)
    assert last.summary() == ["train b/seed-0", "evaluate b/seed-0"]
    assert rows(out, "select status from runs") == [("FINISHED",)]


def test_what_cannot_be_compared_gets_a_sentence_before_anything_runs(phantom_manifest, tmp_path):
    run, nothing = FakeRuns(), tmp_path / "nothing"
    with pytest.raises(InputError, match="has no folds; `overtile split --folds 5`"):
        compare.cross_validate(made(phantom_manifest, nothing, kind="cross-validation"), run=run, say=silent)
    one_fold = f"{in_two_folds(phantom_manifest, tmp_path / 'm.json')}#2"
    with pytest.raises(InputError, match=r"m\.json#2: is one fold; give .*m\.json without #2"):
        compare.cross_validate(made(one_fold, nothing, kind="cross-validation"), run=run, say=silent)
    one = dataclasses.replace(made(phantom_manifest, nothing), variants=made(phantom_manifest, nothing).variants[:1])
    with pytest.raises(InputError, match="give at least two variants"):
        compare.compare(one, run=run, say=silent)
    assert (run.calls, nothing.exists()) == ([], False)


def test_the_command_prints_pairs_and_what_the_interval_cannot_say(overtile, phantom_manifest, out, monkeypatch):
    run = FakeRuns()
    monkeypatch.setattr(child_process, "start_child", run)
    words = ["compare", EM, "--variant", "a=", "--variant", "b=--width 8", "--seeds", 2, "--minutes", 3]
    code, output = overtile(*words, "--manifest", phantom_manifest, "--output", out, "--batch_size", 2)
    assert code == 0, output
    assert "4 trainings (2 variants x 2 seeds), 3 minutes each: 12 minutes and the evaluations" in output
    assert "[4 of 4] b, seed 1: evaluation" in output
    assert "+0.080" in output
    assert "Too few (1 patient) to take the intervals at their word" in output
    assert all("--minutes 3" in " ".join(call) for call in run.calls if call[0] == "run")
    code, output = overtile(*words, "--manifest", phantom_manifest, "--output", out)
    assert (code, "with other settings (common.overrides.batch_size was 2, is not set)" in output) == (2, True)


def test_the_command_that_crossvalidates(overtile, phantom_manifest, out, tmp_path, monkeypatch):
    monkeypatch.setattr(child_process, "start_child", FakeRuns())
    folded = in_two_folds(phantom_manifest, tmp_path / "m.json")
    code, output = overtile("crossvalidate", EM, "--manifest", folded, "--output", out, "--seed", 1)
    assert code == 0, output
    assert "2 trainings (2 folds)" in output
    assert "[1 of 2] seed 1, fold 1: training" in output
    assert output.count("0.410") == 1  # the mean over four patients
    assert (out / "cross_validation.json").exists()


def test_a_seed_of_its_own_is_refused(overtile, phantom_manifest, tmp_path):
    words = ["--variant", "a=", "--variant", "b=", "--manifest", phantom_manifest, "--output", tmp_path, "--seed", 3]
    code, output = overtile("compare", EM, *words)
    assert (code, "--seeds 2 trains with seeds 0 and 1" in output) == (2, True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_variants_for_real(overtile, phantom_manifest, tmp_path):
    small = ["--width", 4, "--depth", 2, "--patch", 32, "--patches_per_case", 1, "--epochs", 1, "--workers", 0]
    words = ["--variant", "a=", "--variant", "b=--width 8", "--manifest", phantom_manifest, "--output", tmp_path]
    code, output = overtile("compare", EM, *words, *small)
    assert code == 0, output
    children = "select name, status from runs join tags using (run_uuid) where tags.key = 'mlflow.parentRunId'"
    assert sorted(rows(tmp_path, children)) == [
        (f"{name}, seed 0: {what}", "FINISHED") for name in "ab" for what in ("test", "training")
    ]
    ((parent, status),) = rows(tmp_path, "select run_uuid, status from runs where name like 'comparison%'")
    assert status == "FINISHED"
    assert {value for (value,) in rows(tmp_path, "select value from tags where key = 'mlflow.parentRunId'")} == {parent}
    params = rows(tmp_path, "select value from params where key = 'network_def.width' or key = 'width'")
    assert {("4",), ("8",)} <= set(params)
    found = json.loads((tmp_path / "comparison.json").read_text())
    one = json.loads((tmp_path / "a" / "seed-0" / "evaluation" / "evaluation.json").read_text())
    assert found["means"]["a"]["dice_membrane"] == one["patients"][0]["network"]["dice"]["membrane"]
    code, output = overtile("runs", tmp_path)
    assert (code, output.count("\n  ")) == (0, 4)  # the children are indented
