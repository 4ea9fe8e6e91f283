"""The harness of the benchmarks: what it says of a row is what a reader works out by hand."""

import json

import pytest

from tests.benchmarks import harness, table
from tests.benchmarks.harness import Limit, Row, Scale
from tests.benchmarks.rows import told

ROW = Row("some work", "s", [1.0, 2.0, 4.0], {"a peer": [3.0, 4.0, 4.0]}, aim={"a peer": 3, "limit": 0.2})


def row(**changes):
    return told(Row(**vars(ROW) | {"limit": Limit(0.5, "s", "measured")} | changes))


def test_a_ratio_is_the_median_of_the_turns_pairs():
    found = row()["peers"]["a peer"]["ratio"]
    assert (found["values"], found["median"], found["low"], found["high"]) == ([3.0, 2.0, 1.0], 2.0, 1.0, 3.0)
    rate = row(more_is_better=True)["peers"]["a peer"]["ratio"]
    assert rate["values"] == pytest.approx([1 / 3, 1 / 2, 1])


def test_the_share_of_the_limit_is_at_most_1_either_way():
    assert row()["limit"]["share"] == 0.25  # 0.5 s would be possible, 2 s it takes
    assert row(more_is_better=True, limit=Limit(8.0, "images/s", ""))["limit"]["share"] == 0.25


def test_an_aim_that_was_missed_is_told_by_how_much():
    aims = {aim["against"]: aim for aim in row()["aims"]}
    assert (aims["a peer"]["reached"], aims["a peer"]["met"], aims["limit"]["met"]) == (2.0, False, True)
    assert harness.missed({"rows": [row()]}) == ["some work: 2 where 3 is wanted (a peer)"]
    at_most = row(aim={"absolute": 1.5})
    assert harness.missed({"rows": [at_most]}) == ["some work: 2 where 1.5 is wanted (absolute)"]


def test_a_peer_that_is_missing_is_told_and_misses_nothing():
    found = row(peers={"a peer": "cannot be imported: no torchvision"})
    assert harness.missed({"rows": [found]}) == []
    assert "cannot be imported: no torchvision" in table.table([found])
    assert "at least 3 x: not measured" in table.table([found])


def test_an_aim_against_nobody_and_turns_without_a_pair_are_refused():
    with pytest.raises(ValueError, match="no peer of the row: a peer"):
        row(aim={"a pear": 2})
    with pytest.raises(ValueError, match="a peer took 1 turns and we took 3"):
        row(peers={"a peer": [1.0]})


def test_calls_take_turns():
    order = []
    taken = harness.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert "".join(order) == "ababab"
    assert [len(seconds) for seconds in taken.values()] == [2, 2]


def test_rows_are_written_as_they_come_and_a_failure_keeps_them(tmp_path, monkeypatch):
    out, seen = tmp_path / "build" / "bench.json", []
    parts = {"good": [row()], "bad": [row(), "ZeroDivisionError: division by zero"]}
    monkeypatch.setattr(harness, "_rows", lambda name, scale: iter(parts[name]))

    def say(_):
        seen.append(len(harness_rows()))

    def harness_rows():
        return json.loads(out.read_text())["rows"] if out.exists() else []

    result = harness.run(["good", "bad"], Scale.QUICK, out, say)
    assert seen == [0, 1, 2]
    assert json.loads(out.read_text()) == result
    assert result["failed"] == {"bad": "ZeroDivisionError: division by zero"}


def test_a_quick_benchmark_runs_in_a_process_of_its_own(tmp_path):
    result = harness.run(["weights"], Scale.QUICK, tmp_path / "bench.json", lambda _: None)
    assert result["failed"] == {} and "64 x 64, 8 cells" in result["rows"][0]["work"]
    assert result["machine"]["cores"] > 0 and "torch" in result["machine"]["versions"]


def test_a_benchmark_that_is_not_there_is_a_failure(tmp_path):
    result = harness.run(["nothing"], Scale.QUICK, tmp_path / "bench.json", lambda _: None)
    assert "No module named" in result["failed"]["nothing"]


def test_the_tables_of_the_readme_come_from_the_file(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    machine = {"gpu": None, "processor": "P", "cores": 2, "memory_gb": 8, "instructions": "AVX2", "python": "3.11"}
    machine |= {"versions": {"torch": "2"}, "commit": "abc", "when": "2026-01-02T03:04"}
    table.write([{"machine": machine, "scale": "full", "rows": [row(same="by 0")], "failed": {}}], readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "2 x (1 to 3)" in text and "equal: by 0" in text
    assert text.index("### On a GPU") < text.index("Not measured.")
