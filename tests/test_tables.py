import numpy as np
from rich.console import Console

from pipeline import tables
from pipeline.metrics import overlap_counts
from pipeline.patient_table import tabulate


def text(table):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_partitions():
    assert text(tables.partitions([("training", 6, 3), ("unassigned", 0, 0)])) == [
        "partition   cases  patients",
        "training        6         3",
        "unassigned      0         0",
    ]


def test_runs_show_what_is_known():
    run = {"id": "r1", "name": "training [2026]", "status": "KILLED", "epoch": 3, "best": 0.81234, "resumed": 1}
    other = {"id": "r2", "name": "test", "status": "FINISHED", "epoch": None, "best": None, "resumed": 0}
    found = text(tables.runs([run | {"failure": "the loss is nan"}, other | {"failure": None}]))
    assert found[1].split() == ["r1", "training", "[2026]", "KILLED", "3", "0.8123", "1", "the", "loss", "is", "nan"]
    assert found[2].split() == ["r2", "test", "FINISHED", "0"]


def evaluation(*rows, classes=("tissue", "tumour"), measures=("dice", "pixel_error"), **more):
    """A table of cases (patient, prediction, reference)."""
    counted = [
        {"id": str(n), "patient": p, "counts": {"network": overlap_counts(*map(np.array, maps), len(classes))}}
        for n, (p, *maps) in enumerate(rows)
    ]
    return tabulate(counted, classes, **more) | {"measures": measures}


def test_scores_of_an_undefined_dice_are_a_dash():
    table = evaluation(("p1", [0, 0, 0, 1], [0, 0, 0, 0]))
    assert [line.split() for line in text(tables.scores(table))[1:]] == [
        ["p1", "1", "-", "0.250"],
        ["mean", "1", "-", "0.250"],
    ]


def test_scores_show_the_measures_asked_for_and_the_unit():
    rows = ("c1", [0, 1, 2, 2], [0, 1, 2, 1]), ("c2", [0, 1, 2, 2], [0, 1, 2, 2])
    table = evaluation(*rows, classes=("bg", "cat", "edge"), measures=("iou", "miou"), unit="cluster")
    assert text(tables.scores(table)) == [
        "cluster        cases  network IoU cat  network IoU edge  network mIoU",
        "c1                 1            0.500             0.500         0.667",
        "c2                 1            1.000             1.000         1.000",
        "mean               2            0.750             0.750         0.833",
        "95 % interval             0.500-1.000       0.500-1.000   0.667-1.000",
    ]
    assert tables.notes(table) == [
        "Interval: bootstrap of the mean over 2 clusters; too narrow with fewer than about 30."
    ]


def test_notes_say_what_became_of_cases_without_the_class():
    cases = ("p", [1, 1, 0], [1, 1, 0]), ("p", [1, 0, 0], [0, 0, 0]), ("p", [0, 0, 0], [0, 0, 0])
    assert tables.notes(evaluation(*cases, spacing_mm=[0.5, 0.5])) == [
        "Cases without tumour in the reference: 2; of them with false positives of network: 1 (patients: 1, pixels: 1, "
        "mm2: 0.25).",
        "Mean Dice of single cases, not pooled per patient: 1.000 without those cases, 0.667 with each of them as 1 or 0.",
    ]
