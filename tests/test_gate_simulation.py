import time

import numpy as np
import pytest
from scipy import stats

from pipeline import gate_judged
from pipeline.gate import Rule
from pipeline.gate_simulation import simulated, table

NORMAL = stats.norm.ppf((np.arange(400) + 0.5) / 400) * 0.04
"""400 differences that are as normal as can be, standard deviation 0.04: the margin is half of it."""


def rows(differences, rule=None, **more):
    return {row["patients"]: row for row in table({"lung": differences}, rule or Rule(), **more)}


def test_normal_differences_give_what_the_textbook_says():
    found = rows(NORMAL)
    for number, row in found.items():
        bound = stats.t.ppf(0.95, number - 1)
        power = stats.nct.sf(bound, number - 1, 0.02 / NORMAL.std() * np.sqrt(number))  # of Student's test
        assert row["false_acceptance"] == pytest.approx(0.045, abs=0.015)
        assert power - 0.07 < row["power"] < power + 0.01  # the rule is more careful with few patients
        assert row["power_observed"] == pytest.approx(row["power"], abs=0.001)  # their mean is 0
    assert [number for number, row in found.items() if row["decides"]] == [20, 30, 50, 100]


def test_few_who_are_much_worse_make_it_err_more_and_many_patients_less():
    found = rows(np.array([0.0, 0.01] * 18 + [-0.12] * 4))
    assert found[5]["false_acceptance"] > 0.1 > found[30]["false_acceptance"] > found[100]["false_acceptance"]


def test_power_at_what_validation_saw_is_false_acceptance_where_that_is_the_margin():
    found = rows(NORMAL - 0.02, patients=(20,))[20]
    assert found["power_observed"] == pytest.approx(found["false_acceptance"], abs=0.001) and found["power"] > 0.6


def test_it_applies_the_rule_and_not_one_of_its_own(monkeypatch):
    honest = rows(NORMAL, patients=(20,))[20]
    monkeypatch.setattr(gate_judged.lower_bound, "lower", lambda values, alpha: values.mean(axis=-1))
    naive = rows(NORMAL, patients=(20,))[20]
    assert honest["false_acceptance"] < 0.06 and naive["false_acceptance"] == pytest.approx(0.5, abs=0.03)


def test_the_margin_moves_the_models_and_the_power():
    wide = rows(NORMAL, Rule(margin=0.04), patients=(20,))[20]
    assert wide["false_acceptance"] == pytest.approx(rows(NORMAL, patients=(20,))[20]["false_acceptance"], abs=0.001)
    assert wide["power"] > 0.98


def test_the_same_seed_gives_the_same_table_and_another_one_nearly():
    first, again, other = (rows(NORMAL, patients=(20,), seed=seed)[20] for seed in (1, 1, 2))
    assert first == again != other
    assert abs(first["power"] - other["power"]) < 4 * first["error"]


@pytest.mark.parametrize("values", [[], [0.01], [0.1] * 30, [0.1 + 0.2, 0.3] * 5])
def test_nothing_to_draw_from_is_said_and_no_crash(values):
    found = simulated({"lung": values}, Rule(), sealed=12)
    assert found["rows"] == []
    assert "cannot be simulated" in found["notes"][0] or "nothing to simulate" in found["notes"][0]


def test_the_sites_own_number_stands_in_it_and_few_patients_are_a_hint():
    found = simulated({"lung": [0.0, 0.01, -0.01, 0.02]}, Rule(), sealed=23)
    assert [row["patients"] for row in found["rows"]] == [5, 10, 20, 23, 30, 50, 100]
    assert "rests on 4 validation patients" in found["notes"][0]
    assert "drawn from" in simulated({"lung": NORMAL}, Rule())["notes"][0]


def test_classes_have_margins_of_their_own_and_those_that_do_not_decide_no_rows():
    both = {"lung": NORMAL, "heart": NORMAL}
    found = table(both, Rule(margin={"lung": 0.02, "heart": 0.08}), patients=(20,))
    assert found[0]["power"] < found[1]["power"]
    assert [row["class"] for row in table(both, Rule(classes=("heart",)), patients=(20,))] == ["heart"]


def test_it_is_quick():
    start = time.process_time()
    simulated({"lung": NORMAL}, Rule(), sealed=200)
    assert time.process_time() - start < 5
