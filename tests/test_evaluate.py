import json
import shutil
import sqlite3

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from pipeline.errors import InputError
from pipeline.evaluate import CaseTable, otsu, refuse_another_partition, tabulate
from pipeline.metrics import overlap_counts
from pipeline.separation import HERE, VALIDATION
from tests.conftest import run_overtile


def row(case, patient, prediction, reference):
    return {"id": case, "patient": patient, "counts": {"network": overlap_counts(prediction, reference, 2)}}


ONES, ZEROS = np.ones(100, int), np.zeros(100, int)
HALF = np.repeat([0, 1], 50)


def test_a_patients_cases_are_pooled_before_the_mean_over_patients():
    table = tabulate(
        [row("a1", "a", ONES, ONES), row("a2", "a", ZEROS, HALF), row("b1", "b", HALF, ONES)], ["bg", "fg"]
    )
    a, b = (entry["network"]["dice"]["fg"] for entry in table["patients"])
    assert a == pytest.approx(2 * 100 / (2 * 100 + 50))
    assert b == pytest.approx(2 * 50 / (2 * 50 + 50))
    assert table["summary"]["network"]["dice"]["fg"] == pytest.approx((a + b) / 2)
    assert table["summary"]["network"]["pixel_error"] == pytest.approx((50 / 200 + 50 / 100) / 2)


def test_an_empty_reference_is_reported_in_both_conventions():
    table = tabulate([row("a1", "a", HALF, ZEROS), row("b1", "b", ONES, ONES)], ["bg", "fg"])
    assert table["summary"]["network"]["dice"]["fg"] == 1.0
    assert table["summary"]["network"]["dice_empty_scored"]["fg"] == 0.5
    assert table["cases"][0]["network"]["dice"]["fg"] is None


def test_otsu_is_scikit_images_on_the_declared_side():
    image = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(otsu(image, "dark"), image <= threshold_otsu(image))
    np.testing.assert_array_equal(otsu(image, "dark"), [[1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(otsu(image, "bright"), 1 - otsu(image, "dark"))
    assert otsu(np.full((2, 2), 3.0), "dark").sum() == 0


def test_otsu_is_for_two_classes():
    arguments = {"manifest": "m", "partition": "test", "checkpoint": "c"}
    with pytest.raises(InputError, match="Otsu's threshold separates 2 classes, this bundle has 3"):
        CaseTable("out", ["a", "b", "c"], otsu_foreground="dark", **arguments)
    with pytest.raises(InputError, match="must be dark, bright or null, got 'black'"):
        CaseTable("out", ["a", "b"], otsu_foreground="black", **arguments)


@pytest.fixture
def evaluate(trained, phantom_manifest, capsys, monkeypatch):
    """Run `overtile evaluate` of the trained weights: `code, output = evaluate("test", folder)`."""

    def call(partition, folder, *words, checkpoint=trained / "model.pt"):
        fixed = ["--bundle", "neuron_em_segmentation", "--manifest", phantom_manifest, "--checkpoint", checkpoint]
        return run_overtile(
            ["evaluate", *fixed, "--partition", partition, "--output", folder, *words], capsys, monkeypatch
        )

    return call


def test_the_threshold_goes_from_validation_to_test_and_nowhere_else(evaluate, trained, tmp_path):
    code, output = evaluate("validation", tmp_path / "validation")
    assert code == 0, output
    chosen = tmp_path / "validation" / "evaluation.json"
    validation = json.loads(chosen.read_text())["separation"]
    assert validation["threshold_from"] == HERE
    assert validation["mean"]["v_rand"] == validation["challenge_convention"]["v_rand"]
    assert f"above {validation['threshold']:g} ({HERE})" in output

    code, output = evaluate("test", tmp_path / "test", "--threshold", chosen)
    test = json.loads((tmp_path / "test" / "evaluation.json").read_text())["separation"]
    assert (code, test["threshold"], test["threshold_from"]) == (0, validation["threshold"], VALIDATION)
    assert test["mean"]["v_rand"] <= test["challenge_convention"]["v_rand"]
    assert f"V_Rand  {test['mean']['v_rand']:.3f}" in output
    with sqlite3.connect(tmp_path / "test" / "mlflow.db") as store:
        logged = dict(store.execute("select key, value from metrics where key like 'test_%'").fetchall())
    assert logged["test_v_rand"] == pytest.approx(test["mean"]["v_rand"])
    assert logged["test_v_info_challenge_convention"] == pytest.approx(test["challenge_convention"]["v_info"])
    assert logged["test_membrane_threshold"] == pytest.approx(test["threshold"])
    assert len(list((tmp_path / "test").rglob("worst_separation.png"))) == 2  # here and in the run

    other = shutil.copy(trained / "model.pt", tmp_path / "other.pt")
    other.write_bytes(other.read_bytes() + b"another checkpoint")
    code, output = evaluate("test", tmp_path / "third", "--threshold", chosen, checkpoint=other)
    assert (code, "is of another checkpoint" in output) == (2, True)
    assert not (tmp_path / "third").exists()


def test_another_partition_never_replaces_an_evaluation(evaluate, tmp_path):
    evaluate("test", tmp_path, "--threshold", 0.4)
    before = (tmp_path / "evaluation.json").read_bytes()
    code, output = evaluate("validation", tmp_path)
    assert code == 2
    assert f"give that of the validation partition a folder of its own, say {tmp_path}/validation" in output
    assert (tmp_path / "evaluation.json").read_bytes() == before
    assert len(list(tmp_path.glob("artifacts/*"))) == 1
    for stale in ("worst.png", "worst_separation.png"):
        (tmp_path / stale).write_text("of an earlier evaluation")
    assert evaluate("test", tmp_path, "--threshold", 0.6, "--membrane", "$None")[0] == 0
    assert "separation" not in json.loads((tmp_path / "evaluation.json").read_text())
    assert not (tmp_path / "worst_separation.png").exists()
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_evaluation_is_not_overwritten(tmp_path):
    refuse_another_partition(tmp_path, "test")
    (tmp_path / "evaluation.json").write_text('{"partition": "test"}')
    refuse_another_partition(tmp_path, "test")
    (tmp_path / "evaluation.json").write_text("my notes")
    with pytest.raises(InputError, match="no evaluation, it would be overwritten"):
        refuse_another_partition(tmp_path, "test")
