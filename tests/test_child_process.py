import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

PARENT = """
import signal
from pipeline import child_process
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
signal.signal(signal.SIGINT, signal.default_int_handler)
shell = "trap 'sleep 0.2; echo ended >> done; exit 130' TERM; echo ready; while :; do sleep 0.05; done"
line = child_process._line
child_process._line = lambda _: line(["/bin/sh", "-c", shell])
try:
    child_process.start_child([])
except KeyboardInterrupt:
    print(open("done").read(), flush=True)
"""
"""Starts a child that says `ready`, and needs a moment to end."""


@pytest.fixture
def parent(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_child_once_and_is_waited_for(parent, how):
    os.killpg(parent.pid, how)  # as Ctrl-C on a terminal: to the whole group, of which the child is no part
    output, _ = parent.communicate(timeout=60)
    assert output.split() == ["ended"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_kill_of_the_parent_ends_the_child(parent, tmp_path):
    parent.kill()
    deadline = time.monotonic() + 60
    while not (tmp_path / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "done").read_text() == "ended\n"


def test_the_exit_code_is_the_childs(monkeypatch):
    from pipeline import child_process

    line = child_process._line
    for script, code in {"exit 3": 3, "kill -9 $$": -9}.items():
        monkeypatch.setattr(child_process, "_line", lambda _, script=script: line(["/bin/sh", "-c", script]))
        assert child_process.start_child(["run"]) == code
