import numpy as np
import pytest

from pipeline import paired, patient_scores
from pipeline.errors import DataError
from pipeline.metrics import bootstrap_interval


def table(**dice):
    """An evaluation with one class; `p1=0.5` is the Dice of patient p1."""
    rows = [
        {"patient": name, "cases": 2, "network": {"dice": {"cell": value}, "pixel_error": 0.25, "pixels": 7}}
        for name, value in dice.items()
    ]
    return {"classes": ["background", "cell"], "patients": rows}


def row_of(found, second, measure="dice_cell"):
    (row,) = [r for r in found["differences"] if (r["second"], r["measure"]) == (second, measure)]
    return row


def test_scores_are_flattened_and_counts_left_out():
    assert patient_scores.per_patient(table(p1=0.5)) == {"p1": {"dice_cell": 0.5, "pixel_error": 0.25}}


def test_seeds_are_averaged_before_patients_are_paired():
    a = {0: table(p1=0.90, p2=0.70), 1: table(p1=0.80, p2=0.50)}
    b = {0: table(p1=0.60, p2=0.60), 1: table(p1=0.60, p2=0.40)}
    found = paired.comparison({"a": a, "b": b})
    assert found["patients"][0]["a"]["dice_cell"] == pytest.approx(0.85)
    row = row_of(found, "b")
    assert row["by_patient"] == pytest.approx({"p1": 0.25, "p2": 0.10})
    assert (row["mean"], row["patients"], row["left_out"]) == (pytest.approx(0.175), 2, [])
    assert row["interval"] == pytest.approx((0.10, 0.25))  # two patients: the resampled means end at the values


def test_the_interval_is_of_the_differences_and_not_of_the_scores():
    scores = np.linspace(0.2, 0.9, 8)  # patients differ much, the variants by 0.01 in each
    a, b = ({f"p{i}": float(v + plus) for i, v in enumerate(scores)} for plus in (0.01, 0))
    row = row_of(paired.comparison({"a": {0: table(**a)}, "b": {0: table(**b)}}), "b")
    assert row["interval"] == pytest.approx((0.01, 0.01))
    assert row["interval"] == pytest.approx(bootstrap_interval(list(row["by_patient"].values())))


def test_every_later_variant_is_compared_with_the_first():
    found = paired.comparison({name: {0: table(p1=value)} for name, value in {"a": 0.9, "b": 0.8, "c": 0.95}.items()})
    assert row_of(found, "b")["mean"] == pytest.approx(0.1)
    assert row_of(found, "c")["mean"] == pytest.approx(-0.05)
    assert {row["first"] for row in found["differences"]} == {"a"}
    assert row_of(found, "b")["interval"] is None  # one patient


def test_a_patient_without_a_dice_is_left_out_and_named():
    found = paired.comparison({"a": {0: table(p1=0.9, p2=None)}, "b": {0: table(p1=0.8, p2=None)}})
    row = row_of(found, "b")
    assert (row["mean"], row["patients"], row["left_out"]) == (pytest.approx(0.1), 1, ["p2"])
    assert found["means"]["a"]["dice_cell"] == 0.9
    nobody = row_of(paired.comparison({"a": {0: table(p1=None)}, "b": {0: table(p1=None)}}), "b")
    assert (nobody["mean"], nobody["interval"], nobody["patients"]) == (None, None, 0)


def test_the_spread_between_seeds_is_of_the_means_over_patients():
    seeds = {0: table(p1=0.9, p2=0.7), 1: table(p1=0.5, p2=0.5), 2: table(p1=0.6, p2=0.8)}
    found = paired.comparison({"a": seeds, "b": {0: table(p1=0.1, p2=0.1)}})
    assert [found["seeds"]["a"][seed]["dice_cell"] for seed in ("0", "1", "2")] == pytest.approx([0.8, 0.5, 0.7])
    assert found["seed_spread"]["a"]["dice_cell"] == pytest.approx(0.3)
    assert found["seed_spread"]["b"]["dice_cell"] is None


def test_other_patients_are_no_pairs():
    with pytest.raises(DataError, match="on different patients"):
        paired.comparison({"a": {0: table(p1=0.9)}, "b": {0: table(p2=0.9)}})
    with pytest.raises(DataError, match="of different patients"):
        paired.comparison({"a": {0: table(p1=0.9), 1: table(p1=0.9, p2=0.9)}, "b": {0: table(p1=0.9)}})


def test_what_the_interval_cannot_say():
    few = paired.cautions(20, "patient", seeds=2, folds=5)
    assert few[1].startswith("Too few (20 patients)")
    assert "5 folds share training patients" in few[-1]
    many = paired.cautions(200, "cluster", seeds=1, folds=None)
    assert len(many) == 2
    assert "patient" not in " ".join(many)


def test_scores_of_objects_are_those_of_a_patients_images():
    with_objects = table(p1=0.5, p2=0.6)
    cases = [("p1", 0.25), ("p1", 0.75), ("p2", 1.0)]
    with_objects["instances"] = {"cases": [{"id": "x", "patient": p, "aji": v, "merged": 3} for p, v in cases]}
    scores = patient_scores.per_patient(with_objects)
    assert [scores[patient]["aji"] for patient in ("p1", "p2")] == [0.5, 1.0]
    assert "merged" not in scores["p1"]


def test_what_is_shown_is_what_the_evaluation_shows():
    assert patient_scores.headline(table(p1=0.5) | {"measures": ["dice", "miou"]}) == ["dice_cell", "miou"]
    shown = patient_scores.headline(table(p1=0.5) | {"measures": ["iou"], "instances": {"cases": []}})
    assert shown[:3] == ["iou_cell", "aji", "ap_50"]


def test_surfaces_are_compared_by_the_mean_of_the_cases_that_have_a_distance():
    cases = [{"id": str(n), "patient": "p1", "missed": [], "added": [], "hd95": {"cell": d}, "surface_dice": {"cell": s}}
             for n, (d, s) in enumerate([(2.0, 1.0), (4.0, 0.5), (None, 0.0)])]  # fmt: skip
    with_surfaces = table(p1=0.5) | {"measures": ["dice"], "surface_distances": {"cases": cases}}
    scores = patient_scores.per_patient(with_surfaces)["p1"]
    assert (scores["hd95_cell"], scores["surface_dice_cell"]) == (3.0, 0.5)
    assert patient_scores.headline(with_surfaces) == ["dice_cell", "hd95_cell", "surface_dice_cell"]
