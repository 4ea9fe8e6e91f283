"""What a card and the figures say, and leave unsaid."""

import pytest

from pipeline.release_card import Card, markdown
from pipeline.release_figures import Figures, figures
from tests.evaluations import evaluation

ABOUT = {
    "name": "Cells",
    "version": "0.2.0",
    "task": "Find cells",
    "changelog": {"0.2.0": "more data", "0.1.0": "first"},
}
TESTED = Figures("patient", 12, {"cell": (0.8123, (0.79, 0.83)), "gap": (0.5, None)}, "overlap: none")


def card(**changes):
    values = {
        "metadata": ABOUT, "name": "cells", "tested": TESTED, "trained": {"training": 40, "validation": 3},
        "unit": "patient", "epochs": 9, "best_epoch": 7, "began": "", "gate": None, "signer": "ab" * 32, "recipe": False,
    }  # fmt: skip
    return markdown(Card(**values | changes))


def test_the_first_lines_say_what_it_is_for_what_and_how_good():
    title, what, use, tested, *_ = card().split("\n\n")
    assert title == "# Cells, version 0.2.0"
    assert what == "Find cells."
    assert use.startswith("Intended use: not stated. It was not made for anything else")
    assert tested == "Tested on 12 patients kept apart from the training: mean Dice 0.812 (cell), 0.500 (gap)."


def test_what_was_not_tested_says_so_at_once():
    assert card(tested=None).split("\n\n")[3].startswith("**Not tested.** No evaluation on patients")
    few = card(tested=Figures("patient", None, {}))
    assert (
        few.split("\n\n")[3]
        == "Tested on fewer than 5 patients: no figures of so few leave the site where it was tested."
    )
    assert "test it on your own patients" in few


def test_figures_have_their_intervals_and_the_training_its_numbers():
    said = card()
    assert "| cell | 0.812 | 0.790 to 0.830 |\n| gap | 0.500 | - |" in said
    assert "too narrow with fewer than about 30" in said
    assert (
        "Training partition: 40 patients. Validation partition, which chose the epoch: fewer than 5 patients." in said
    )
    assert "those after epoch 7 of 9." in said
    assert "- **0.2.0** more data\n- **0.1.0** first" in said


def test_clusters_are_no_patients():
    said = card(unit="cluster", tested=Figures("cluster", 40, {"cell": (0.8, (0.7, 0.9))}))
    assert "Tested on 40 clusters" in said
    assert "Which images are of one patient is not known: clusters were kept apart instead." in said
    assert "Training partition: 40 clusters." in said


GATE = {
    "verdict": "accepted",
    "patients": 24,
    "classes": [
        {
            "name": "cell",
            "patients": 24,
            "deployed": 0.8,
            "new": 0.82,
            "difference": 0.02,
            "lower": 0.01,
            "margin": 0.02,
        },
        {"name": "gap", "patients": 3, "deployed": 0.8, "new": 0.7, "difference": -0.1, "lower": -0.2, "margin": 0.02},
    ],
}


def test_the_gate_s_verdict_stands_there_without_classes_of_few_patients():
    said = card(gate=GATE)
    assert "Verdict: **accepted**, on 24 patients kept apart from the training, by a rule" in said
    rule = {"margin": 0.02, "alpha": 0.05, "minimum_patients": 20}
    assert "Dice lost (0.02 in any class), 95 % confidence, at least 20 patients" in card(gate=GATE | {"rule": rule})
    assert "| cell | 24 | 0.800 | 0.820 | 0.020 | 0.010 | 0.020 |" in said
    assert "| gap | 3 |" not in said
    assert "| cell | 24 |" not in card(gate=GATE | {"patients": 4})
    assert "on fewer than 5 patients kept apart" in card(gate=GATE | {"patients": 4})


def table(**dice):
    """An evaluation with a Dice per class and patient; None where a patient does not have the class."""
    people = range(len(next(iter(dice.values()))))
    rows = {f"p{n}": {name: values[n] for name, values in dice.items()} for n in people}
    means = {name: sum(v for v in values if v is not None) / len(values) for name, values in dice.items()}
    return evaluation(rows, classes=tuple(dice), summary={"network": {"dice": means, "interval_95": {"dice": {}}}})


@pytest.mark.parametrize("patients", [4, 5, 30])
def test_aggregates_are_of_five_patients_or_more(patients):
    told = figures(table(cell=[0.8] * patients))
    assert told.patients == (None if patients < 5 else patients)
    assert {name: round(mean, 6) for name, (mean, _) in told.dice.items()} == ({} if patients < 5 else {"cell": 0.8})


def test_a_class_that_few_have_is_left_out():
    told = figures(table(cell=[0.8] * 6, gap=[None, None, 0.4, 0.5, 0.6, 0.7]))
    assert set(told.dice) == {"cell"}
