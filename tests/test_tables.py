from rich.console import Console

from pipeline import tables


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


def test_scores_of_an_undefined_dice_are_a_dash():
    network = {"dice": {"tumour": None}, "pixel_error": 0.25}
    table = {"classes": ["tissue", "tumour"], "cases": [{}, {}], "summary": {"network": network}}
    table["patients"] = [{"patient": "p1", "cases": 2, "network": network}]
    assert [line.split() for line in text(tables.scores(table))[1:]] == [
        ["p1", "2", "-", "0.250"],
        ["mean", "2", "-", "0.250"],
    ]
