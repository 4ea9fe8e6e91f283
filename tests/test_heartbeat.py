import os
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from pipeline import heartbeat
from pipeline.heartbeat import HEARTBEAT, PROCESS, Heart, is_alive, may_be_resumed, reconcile, this_process

DEAD = f"{heartbeat.platform.node()}:{2**22 + 1}:0"
"""A process of this host that cannot exist: the number is above the kernel's largest."""

ELSEWHERE = "another-host:1:0"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


@pytest.fixture
def run(client):
    """A RUNNING run with the tags that a test gives it."""
    made = []

    def make(**tags):
        made.append(client.create_run("0", tags=tags).info.run_id)
        return made[-1]

    yield make
    for run_id in made:
        client.delete_run(run_id)


def tags(process, seconds_ago):
    return {PROCESS: process, HEARTBEAT: str(time.time() - seconds_ago)}


def status(client, run_id):
    return client.get_run(run_id).info.status


@pytest.mark.parametrize(
    ("process", "seconds_ago", "alive", "resumable"),
    [
        ("this", 10_000, True, False),  # stalled, but there
        (DEAD, 10, True, True),  # dead on this host: a resume sees it at once, a judgement waits
        (DEAD, 400, False, True),
        (ELSEWHERE, 10, True, False),
        (ELSEWHERE, 120, True, True),
        (ELSEWHERE, 400, False, True),
    ],
)
def test_who_is_alive(process, seconds_ago, alive, resumable):
    found = tags(this_process() if process == "this" else process, seconds_ago)
    assert (is_alive(found), may_be_resumed(found)) == (alive, resumable)


def test_a_later_process_of_the_same_number_is_another():
    host, pid, began = this_process().rsplit(":", 2)
    assert not is_alive(tags(f"{host}:{pid}:{float(began) - 100}", 400))


def test_dead_runs_become_killed_and_the_others_stay(client, run):
    dead, beating = run(**tags(DEAD, 400)), run(**tags(this_process(), 400))
    strangers = run()
    assert reconcile(client) == [dead]
    assert [status(client, each) for each in (dead, beating, strangers)] == ["KILLED", "RUNNING", "RUNNING"]
    found = client.get_run(dead)
    assert found.data.tags["failure"] == "the process ended without a word (killed, or power lost)"
    assert abs(found.info.end_time / 1000 - (time.time() - 400)) < 5
    assert reconcile(client) == []


def test_the_heart_beats_until_it_is_stopped(client, run, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_SECONDS", 0.05)
    run_id = run()
    heart = Heart(client, run_id)
    heart.start()
    client.set_tag(run_id, HEARTBEAT, "0")
    client.set_terminated(run_id, "KILLED")  # somebody took it for dead
    deadline = time.monotonic() + 20
    while status(client, run_id) != "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.05)
    heart.stop()
    assert status(client, run_id) == "RUNNING"
    assert float(client.get_run(run_id).data.tags[HEARTBEAT]) > 0
    client.set_tag(run_id, HEARTBEAT, "0")
    time.sleep(0.2)
    assert client.get_run(run_id).data.tags[HEARTBEAT] == "0"


def test_a_run_that_somebody_else_resumed_is_theirs(client, run, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_SECONDS", 0.05)
    run_id = run()
    heart = Heart(client, run_id)
    heart.start()
    client.set_tag(run_id, PROCESS, ELSEWHERE)
    client.set_terminated(run_id, "FINISHED")
    heart._thread.join(20)
    assert not heart._thread.is_alive()
    assert status(client, run_id) == "FINISHED"


def test_a_store_that_fails_ends_no_training(monkeypatch, caplog):
    class Broken:
        def get_run(self, _):
            raise OSError("the server is gone")

    monkeypatch.setattr(heartbeat, "BEAT_EVERY_SECONDS", 0.01)
    heart = Heart(Broken(), "r")
    heart._thread.start()
    time.sleep(0.2)
    heart.stop()
    assert "no heartbeat could be written: the server is gone" in caplog.text


def test_a_run_whose_process_was_killed_outright(client, run, monkeypatch):
    run_id = run()
    code = (
        "import sys, time; from mlflow import MlflowClient; from pipeline.heartbeat import Heart;"
        f"Heart(MlflowClient({client.tracking_uri!r}), {run_id!r}).start(); print('beats', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "beats\n"
        assert reconcile(client) == []
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finally:
        process.kill()
    assert reconcile(client) == []  # it beat a moment ago
    later = time.time() + 301
    monkeypatch.setattr(heartbeat.time, "time", lambda: later)
    assert reconcile(client) == [run_id]
    assert status(client, run_id) == "KILLED"
