import json
from datetime import UTC, datetime

import pytest

from pipeline import sealed
from pipeline.errors import InputError
from pipeline.retrain_record import RetrainRecord

NOON = datetime(2026, 5, 3, 12, tzinfo=UTC)


def opened(folder, new="n1", rule="r1", **more):
    return sealed.opened(folder, deployed_sha256="d", new_sha256=new, rule_sha256=rule, patients=21, **more)


def test_every_opening_is_one_line_and_only_added(tmp_path):
    opened(tmp_path, now=NOON)
    first = (tmp_path / sealed.FILE).read_text()
    opened(tmp_path, resumed=True)
    both = (tmp_path / sealed.FILE).read_text()
    assert both.startswith(first) and both.count("\n") == 2
    assert json.loads(first)["opened_at"] == "2026-05-03T12:00:00Z"


def test_the_same_comparison_finished_is_one_opening_another_model_is_two(tmp_path):
    opened(tmp_path)
    opened(tmp_path, resumed=True)
    assert sealed.said(sealed.openings(tmp_path)).startswith(
        "These patients have been opened once (1 more to finish what was cut off)."
    )
    opened(tmp_path, new="n2")
    found = sealed.openings(tmp_path)
    assert sealed.comparisons(found) == 2 and "opened 2 times" in sealed.said(found)
    assert sealed.said([]) == "These patients have not been opened."


def test_another_rule_is_another_question(tmp_path):
    opened(tmp_path, rule="r1")
    opened(tmp_path, rule="r2")
    assert sealed.comparisons(sealed.openings(tmp_path)) == 2


def test_nothing_is_resumed_that_never_began(tmp_path):
    opened(tmp_path)
    assert not opened(tmp_path, new="n2", resumed=True).resumed
    assert opened(tmp_path, resumed=True).resumed


def test_a_line_that_was_cut_off_is_none_and_goes(tmp_path):
    opened(tmp_path)
    with (tmp_path / sealed.FILE).open("a") as file:
        file.write('{"opened_at": "2026-')
    assert len(sealed.openings(tmp_path)) == 1
    opened(tmp_path, new="n2")
    assert [one.new_sha256 for one in sealed.openings(tmp_path)] == ["n1", "n2"]


def test_a_line_in_the_middle_that_cannot_be_read_is_refused(tmp_path):
    opened(tmp_path)
    file = tmp_path / sealed.FILE
    file.write_text("nothing\n" + file.read_text())
    with pytest.raises(InputError, match="line 1 is no opening"):
        opened(tmp_path)


def test_a_rule_that_was_not_fixed_at_the_start_opens_nothing(tmp_path):
    (tmp_path / "retrain.json").write_text(RetrainRecord(rule_sha256="r1").model_dump_json())
    with pytest.raises(InputError, match="the sealed patients stay sealed"):
        opened(tmp_path, rule="r2")
    assert sealed.openings(tmp_path) == []
    opened(tmp_path, rule="r1")


def test_openings_are_carried_over_once_and_from_all_before(tmp_path):
    for number, name in enumerate("abc"):
        if number:
            sealed.carried(tmp_path / "abc"[number - 1], tmp_path / name)
            sealed.carried(tmp_path / "abc"[number - 1], tmp_path / name)
        opened(tmp_path / name, new=name)
    found = sealed.openings(tmp_path / "c")
    assert [(one.new_sha256, one.previous) for one in found] == [("a", True), ("b", True), ("c", False)]
    assert "opened 3 times" in sealed.said(found)
    with pytest.raises(InputError, match="--previous"):
        sealed.carried(tmp_path / "nowhere", tmp_path / "c")


def test_the_digest_tells_sets_apart_whatever_their_order():
    assert sealed.digest(["b", "a"]) == sealed.digest(["a", "b"]) != sealed.digest(["a"])


def test_a_record_of_any_stage_is_a_record():
    assert RetrainRecord().openings == []
    assert RetrainRecord(story="what retrain keeps for itself").model_dump()["story"]
