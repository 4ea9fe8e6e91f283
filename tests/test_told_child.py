"""A child whose memory ran out is ended by the kernel before the parent, which says so."""

import sys
from pathlib import Path

import pytest

from pipeline import told_child
from pipeline.errors import DataError

SCORE = "/proc/self/oom_score_adj"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice is Linux's")
def test_a_child_goes_before_its_parent(monkeypatch):
    start = told_child.start
    asks = f"import time; time.sleep(0.3); print(open({SCORE!r}).read(), file=__import__('sys').stderr)"
    monkeypatch.setattr(told_child, "start", lambda _, **options: start([sys.executable, "-c", asks], **options))
    (score, *_) = told_child.run_told(["anything"]).lines
    assert int(score) == told_child.FIRST_TO_GO > int(Path(SCORE).read_text())


@pytest.mark.parametrize("code", told_child.KILLED)
def test_a_killed_child_is_told_as_a_want_of_memory(code):
    with pytest.raises(DataError, match="the fine-tuning was killed, most likely for want of memory"):
        told_child.refuse(told_child.Ended(code), "the fine-tuning")
