import json

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import InputError
from pipeline.gate import Rule, decide, needed, read_rule, screen
from pipeline.gate_before import patients_for
from pipeline.gate_pairs import means
from tests.evaluations import both, evaluation

SPREAD = [-0.01, 0.01] * 10
"""Twenty differences around 0: their standard error is 0.00229, Student's bound 1.729 of it below the mean."""


def shifted(by, differences=SPREAD):
    return [by + one for one in differences]


def verdict(differences, rule=None, **more):
    return decide(*both(differences, **more), rule or Rule())


def test_the_bound_decides_and_not_the_mean():
    passing, failing = verdict(shifted(-0.0155)), verdict(shifted(-0.0165))
    assert (passing.verdict, failing.verdict) == ("accepted", "refused")
    ends = stats.ttest_1samp(shifted(-0.0165), 0).confidence_interval(0.9)
    assert failing.classes[0].lower == pytest.approx(ends.low) == pytest.approx(-0.02047, abs=1e-5)
    assert failing.classes[0].difference == pytest.approx(-0.0165)  # the mean is above the margin


def test_a_bound_at_the_margin_is_not_above_it():
    assert verdict([-0.02] * 20, Rule(margin=0.03)).verdict == "accepted"
    decision = decide(*both([-0.25] * 20, base=0.75), Rule(margin=0.25))  # 0.75 - 0.25 is exact
    assert decision.classes[0].lower == -0.25 and decision.verdict == "refused"


def test_identical_models_are_accepted():
    assert verdict([0.0] * 20).classes[0].lower == 0.0
    assert verdict([0.0] * 20).verdict == "accepted"


def test_a_few_patients_that_are_much_worse_refuse_a_model_whose_mean_is_fine():
    decision = verdict([0.0] * 19 + [-0.2])
    student = stats.ttest_1samp([0.0] * 19 + [-0.2], 0).confidence_interval(0.9).low
    assert decision.classes[0].difference == pytest.approx(-0.01)
    assert decision.classes[0].lower < -0.04 < student and decision.verdict == "refused"


def test_refused_says_whether_it_is_worse_or_was_not_shown_to_be_as_good():
    worse, unclear = verdict(shifted(-0.03)), verdict(shifted(-0.018))
    assert [worse.classes[0].found, unclear.classes[0].found] == ["worse", "not shown"]
    assert worse.reason == (
        "Refused: the new model is worse than the deployed one in `lung`. `lung`: Dice 0.870, the deployed model's 0.900, "
        "a mean difference of \N{MINUS SIGN}0.030 over 20 sealed patients; with 95 % confidence it is \N{MINUS SIGN}0.026 at best, below the margin "
        "of \N{MINUS SIGN}0.020. The deployed model stays."
    )
    assert (
        "not shown that the new model is not worse" in unclear.reason and "no proof that it is worse" in unclear.reason
    )


def test_nineteen_patients_do_not_decide_and_twenty_do():
    assert verdict([0.01] * 19).verdict == "not decidable"
    assert verdict([0.01] * 20).verdict == "accepted"
    assert "19 sealed patients have `lung`, and the rule asks for 20" in verdict([0.01] * 19).reason
    assert verdict([0.01] * 19, Rule(minimum_patients=19)).verdict == "accepted"


def test_one_patient_has_no_bound_and_none_no_figures():
    one = verdict([0.01])
    assert (one.verdict, one.classes[0].lower) == ("not decidable", None)
    none = decide(*[evaluation({"a": None, "b": None})] * 2, Rule())
    assert none.verdict == "not decidable" and "no sealed patient has `lung`" in none.reason


def test_every_class_must_pass():
    classes = ("lung", "heart")
    new = {f"p{n}": {"lung": 0.95, "heart": 0.8} for n in range(20)}
    old = {f"p{n}": {"lung": 0.9, "heart": 0.9} for n in range(20)}
    tables = evaluation(new, classes=classes), evaluation(old, classes=classes)
    assert decide(*tables, Rule()).verdict == "refused"
    assert any("intersection-union" in note for note in decide(*tables, Rule()).notes)
    assert decide(*tables, Rule(classes=("lung",))).verdict == "accepted"
    assert decide(*tables, Rule(margin={"lung": 0.02, "heart": 0.15})).verdict == "accepted"
    with pytest.raises(InputError, match="none for `heart`"):
        decide(*tables, Rule(margin={"lung": 0.02}))
    with pytest.raises(InputError, match="names the class liver, which this model does not have"):
        decide(*tables, Rule(margin={"lung": 0.02, "heart": 0.1, "liver": 0.1}))


def test_a_class_that_is_worse_refuses_where_another_one_is_too_rare_to_say():
    classes = ("lung", "nodule")
    old = {f"p{n}": {"lung": 0.9, "nodule": 0.5 if n < 3 else None} for n in range(20)}
    worse = {p: row | {"lung": 0.8} for p, row in old.items()}
    assert decide(*(evaluation(d, classes=classes) for d in (worse, old)), Rule()).verdict == "refused"
    assert decide(*(evaluation(d, classes=classes) for d in (old, old)), Rule()).verdict == "not decidable"


def test_patients_without_the_class_are_counted_and_false_positives_in_them_shown():
    dice = {f"p{n:02}": 0.9 if n < 20 else None for n in range(24)}
    new = evaluation(dice, false_pixels={"p20": 300, "p21": 7, "p03": 99})
    decision = decide(new, evaluation(dice, false_pixels={"p20": 5}), Rule())
    assert (decision.classes[0].patients, decision.classes[0].left_out) == (20, 4)
    absent = decision.classes[0].absent
    assert (absent.deployed, absent.new, absent.deployed_pixels, absent.new_pixels) == (1, 2, 5, 307)
    assert "finds some of it in 2 of 4, the deployed one in 1" in decision.reason
    assert "4 sealed patients have nothing of it" in decision.notes[0]


def test_evaluations_that_cannot_be_compared_are_refused():
    new, old = both([0.0] * 20)
    with pytest.raises(InputError, match="different patients: 1 only of the new model, 0 only of the deployed"):
        decide(evaluation({f"p{n:02}": 0.9 for n in range(21)}), old, Rule())
    with pytest.raises(InputError, match="differ in their manifest"):
        decide(new | {"manifest_sha256": "a"}, old | {"manifest_sha256": "b"}, Rule())
    with pytest.raises(InputError, match="models of different classes"):
        decide(new, old | {"classes": ["background", "heart"]}, Rule())
    with pytest.raises(InputError, match="p00: has `lung` in the reference of one evaluation"):
        decide(new, evaluation({f"p{n:02}": 0.9 if n else None for n in range(20)}), Rule())


def test_another_rule_than_the_one_that_was_fixed_decides_nothing():
    new, old = both([0.0] * 20)
    assert decide(new, old, Rule(), fixed_sha256=Rule().digest()).verdict == "accepted"
    with pytest.raises(InputError, match="not the one that was fixed"):
        decide(new, old, Rule(margin=0.03), fixed_sha256=Rule().digest())


def site(differences_of_b):
    """Twenty patients of site a without a difference, and those of site b."""
    differences = [0.0] * 40 + differences_of_b
    groups = {"site": {f"p{n:02}": "a" if n < 40 else "b" for n in range(len(differences))}}
    return decide(*both(differences, groups=groups), Rule())


def test_a_subgroup_blocks_only_if_its_own_interval_lies_wholly_below_the_margin():
    blocked = site([-0.05, -0.055, -0.06, -0.055, -0.05])
    assert blocked.classes[0].found == "not worse" and blocked.verdict == "refused"
    assert "In the subgroup site b" in blocked.reason
    unclear = site([-0.01, -0.055, -0.01, -0.055, -0.01])
    assert unclear.verdict == "accepted" and unclear.subgroups[1].found == "not shown"
    assert unclear.subgroups[1].difference < -0.02 < unclear.subgroups[1].upper
    assert any("2 subgroups were looked at" in note for note in unclear.notes)
    assert "No subgroups by scanner: no case states it." in unclear.notes


def test_four_patients_are_no_subgroup():
    assert [one.group for one in site([-0.05] * 4).subgroups] == ["a"]


def test_what_may_leave_names_nobody_and_no_class_of_four():
    classes = ("lung", "nodule")
    dice = {f"p{n:02}": {"lung": 0.9, "nodule": 0.5 if n < 4 else None} for n in range(20)}
    decision = decide(
        *[evaluation(dice, classes=classes, groups={"site": dict.fromkeys(dice, "St. Elsewhere")})] * 2, Rule()
    )
    text = json.dumps(decision.aggregates())
    assert "p00" in json.dumps(decision.as_json()) and "p00" not in text and "Elsewhere" not in text
    assert [row["name"] for row in decision.aggregates()["classes"]] == ["lung"]


def test_the_screen_leaves_the_sealed_patients_sealed_only_beyond_the_margin():
    assert screen(*both([-0.019] * 8), Rule()).passed
    failed = screen(*both(shifted(-0.021)), Rule())
    assert not failed.passed and "sealed patients were not opened" in failed.reason
    assert failed.classes["lung"] == {"patients": 20, "difference": pytest.approx(-0.021), "margin": 0.02}
    assert screen(*[evaluation({"a": None})] * 2, Rule()).passed  # nothing to judge by


def test_means_of_the_validation_over_those_who_have_the_class():
    found = means(evaluation({"a": 0.5, "b": 0.7, "c": None}))
    assert (found.patients, found.dice["lung"], found.defined["lung"]) == (3, pytest.approx(0.6), 2)


def test_the_number_needed_has_the_power_that_was_asked_for():
    count = patients_for(0.05, 0.02, Rule())  # 0.4 standard deviations: 40 or 41 in tables
    drawn = np.random.default_rng(0).normal(0, 0.05, (20_000, count))
    passed = stats.ttest_1samp(drawn, -0.02, axis=1, alternative="greater").pvalue < 0.05
    assert count in (40, 41) and passed.mean() == pytest.approx(0.8, abs=0.015)


def test_the_number_needed_is_said_before_training():
    dice = np.tile([0.85, 0.95], 10)  # their standard deviation is 0.0513, of the differences 0.0229 then: 10 patients
    found = needed(evaluation({f"p{n:02}": d for n, d in enumerate(dice)}), Rule(), have=12)
    assert found.patients == 20 and found.sentence.startswith(
        "To decide, about 20 sealed patients are needed; you have 12."
    )
    assert "will be `not decidable`" in found.sentence
    wide = evaluation({f"p{n:02}": d for n, d in enumerate(np.tile([0.5, 0.9], 10))})
    assert needed(wide, Rule()).patients == patients_for(np.std([0.5, 0.9] * 10, ddof=1) * np.sqrt(0.2), 0.02, Rule())


def test_patients_without_the_class_raise_the_number_needed():
    half = evaluation({f"p{n:02}": (0.85, 0.95, None, None)[n % 4] for n in range(40)})
    assert needed(half, Rule()).patients == 40  # 20 with the class
    assert "cannot be said" in needed(evaluation({"a": 0.9, "b": None}), Rule(), have=3).sentence


def test_rules_are_read_and_a_strange_key_is_named(tmp_path):
    file = tmp_path / "rule.yaml"
    file.write_text("margin: {lung: 0.01, heart: 0.05}\nminimum_patients: 10\n")
    assert read_rule(file) == Rule(margin={"lung": 0.01, "heart": 0.05}, minimum_patients=10)
    assert read_rule(None) == Rule() and Rule().margin == 0.02
    for text, said in {
        "margn: 0.01": "a rule has no key margn; its keys are margin, alpha",
        "margin: -0.01": "greater than 0",
        "alpha: 5": "less than or equal to 0.5",
        "subgroup_minimum: 3": "greater than or equal to 5",
        "[1, 2]": "a rule is a mapping",
        "margin: [": "no rule can be read",
    }.items():
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            read_rule(file)
    with pytest.raises(InputError, match="no rule can be read"):
        read_rule(tmp_path / "nowhere.yaml")


def test_the_digest_is_the_rules_and_not_its_files():
    assert Rule(margin=0.02).digest() == Rule().digest() != Rule(margin=0.021).digest()
