import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from ignite.engine import Events
from mlflow import MlflowClient
from mlflow.protos.databricks_pb2 import ErrorCode

from pipeline import delivery, outbox, senders
from pipeline.errors import InputError
from pipeline.outbox import Outbox
from pipeline.store import KEY, NoAnswerError, sqlite_store
from tests.conftest import ROOT
from tests.test_tracking import trainer

ALL = [(1, 0.5), (2, 0.25), (3, 0.125)]


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    """A real `mlflow server`: its address, its database, and `signal(number)` for all of its processes."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite_store(folder), "--workers", "1"]
    line += ["--artifacts-destination", str(folder / "files"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(line, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, **quiet)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        MlflowClient(f"http://127.0.0.1:{port}").create_experiment("test")  # the first request takes seconds
        yield SimpleNamespace(
            uri=f"http://127.0.0.1:{port}", folder=folder, signal=lambda number: os.killpg(process.pid, number)
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(address):
    deadline = time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server did not come up in 240 s"
            time.sleep(0.2)


@pytest.fixture
def quick(monkeypatch):
    """A server is given up after seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(delivery, "PAUSES_SECONDS", (0.1,))
    monkeypatch.setattr(outbox, "START_SECONDS", 10)
    monkeypatch.setattr(outbox, "END_SECONDS", 6)


@pytest.fixture
def folder(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def rows(folder, key, query, *more):
    """A query's rows about the run of a key: `run` is its id."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        ids = store.execute("select run_uuid from tags where key = ? and value = ?", (KEY, key)).fetchall()
        assert len(ids) == 1
        return store.execute(query, {"run": ids[0][0]}).fetchall()


def losses(folder, key):
    return rows(folder, key, "select step, value from metrics where key = 'loss' and run_uuid = :run order by step")


def status(folder, key):
    ((found,),) = rows(folder, key, "select status from runs where run_uuid = :run")
    return found


def tag(folder, key, name):
    return dict(rows(folder, key, "select key, value from tags where run_uuid = :run")).get(name)


def begun(folder, store=None, key="", resumed=False, **changes):
    box = Outbox(store or sqlite_store(folder), folder, key=key, **changes)
    box.begin("test", "a run", tags={}, environment={"device": "CPU"}, resumed=resumed)
    box.send()
    return box


def say(box, points=ALL, end="FINISHED"):
    for step, loss in points:
        box.metrics({"loss": loss}, step)
    if end:
        box.end(end)
    return box.close()


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def nowhere():
    """The address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def key_of(folder):
    (journal,) = (folder / "unsent").iterdir()
    return journal.name


def test_a_server_that_hangs_in_the_middle(server, phantom_manifest, tmp_path, overtile, quick, caplog):
    engine = trainer(phantom_manifest, tmp_path, store=server.uri)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda _: server.signal(signal.SIGSTOP))
    begin = time.monotonic()
    try:
        engine.run()
        seconds = time.monotonic() - begin
        key = key_of(tmp_path)
        code, output = overtile("sync", tmp_path)
        assert (code, "does not answer (no answer in time)" in output) == (1, True), output
    finally:
        server.signal(signal.SIGCONT)
    assert seconds < 30
    assert len(warnings(caplog)) == 1, warnings(caplog)
    assert f"The work goes on; what could not be sent is kept in {tmp_path}/unsent" in warnings(caplog)[0]
    code, output = overtile("sync", tmp_path)
    assert (code, status(server.folder, key)) == (0, "FINISHED"), output
    assert [step for step, _ in losses(server.folder, key)] == [1, 2]
    assert not (tmp_path / "unsent").exists()


def test_a_server_that_comes_back_is_told_all_while_the_work_goes_on(server, tmp_path, quick, caplog):
    box = begun(tmp_path, server.uri)
    server.signal(signal.SIGSTOP)
    try:
        box.metrics({"loss": 0.5}, 1)
        deadline = time.monotonic() + 30
        while not warnings(caplog) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        server.signal(signal.SIGCONT)
    assert say(box, ALL[1:]) == 0
    assert losses(server.folder, box.key) == ALL
    assert len(warnings(caplog)) == 1
    assert not (tmp_path / "unsent").exists()


def test_a_server_that_is_down_from_start_to_end(server, phantom_manifest, tmp_path, overtile, quick, caplog):
    trainer(phantom_manifest, tmp_path, store=nowhere()).run()
    assert len(warnings(caplog)) == 1
    key = key_of(tmp_path)
    code, output = overtile("sync", tmp_path)
    assert (code, "does not answer" in output) == (1, True), output
    for said in ("entries sent to http", "nothing is unsent"):
        code, output = overtile("sync", tmp_path, "--tracking-uri", server.uri)
        assert (code, said in output) == (0, True), output
        assert status(server.folder, key) == "FINISHED"
        assert [step for step, _ in losses(server.folder, key)] == [1, 2]
    ((run_id,),) = rows(server.folder, key, "select run_uuid from runs where run_uuid = :run")
    (config,) = (server.folder / "files").rglob(f"{run_id}/artifacts/config.json")
    assert json.loads(config.read_text()) == {"a": {"b": [1, 2]}, "lr": 0.1}


def test_killed_outright_without_a_server_and_resumed_with_one(server, tmp_path, overtile, quick):
    code = (
        "import os, signal; from pathlib import Path; from pipeline.outbox import Outbox;"
        f"box = Outbox({nowhere()!r}, Path({str(tmp_path)!r}));"
        "box.begin('test', 'a run', tags={}, environment={}); box.send();"
        "box.metrics({'loss': 0.5}, 1); box.metrics({'loss': 0.25}, 2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    box = begun(tmp_path, server.uri, key_of(tmp_path), resumed=True)
    assert say(box, ALL[1:]) == 0  # epoch 2 was said, but its checkpoint was not written
    assert losses(server.folder, box.key) == ALL
    assert (status(server.folder, box.key), tag(server.folder, box.key, "resumed")) == ("FINISHED", "1")


def test_a_dead_runs_end_is_told(folder, tmp_path, overtile):
    box = begun(folder)
    box.metrics({"loss": 0.5}, 1)
    shutil.copytree(folder / "unsent", tmp_path / "copy")
    say(box, ALL[1:], end=None)
    shutil.copytree(tmp_path / "copy", folder / "unsent")  # as a SIGKILL leaves it
    assert (overtile("sync", folder)[0], status(folder, box.key)) == (0, "KILLED")
    assert losses(folder, box.key) == ALL
    assert "without a word" in tag(folder, box.key, "failure")


def test_a_resumed_run_is_one_run_and_says_no_point_twice(folder):
    box = begun(folder)
    say(box, ALL[:2], end="KILLED")
    again = begun(folder, key=box.key, resumed=True)
    say(again, [(2, 7.0), (3, 0.125)])
    assert (again.run_id, losses(folder, box.key), status(folder, box.key)) == (box.run_id, ALL, "FINISHED")
    assert tag(folder, box.key, "resumed") == "1"


def test_a_run_that_is_not_there_cannot_be_resumed(folder):
    with pytest.raises(InputError, match="the training to resume is MLflow run nothing, which is not in sqlite"):
        begun(folder, key="nothing", resumed=True)
    assert not (folder / "unsent").exists()


def test_a_checkpoint_of_old_names_the_stores_id(folder):
    client = MlflowClient(sqlite_store(folder))
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "KILLED")
    box = begun(folder, key=run_id, resumed=True)
    say(box)
    assert (box.run_id, losses(folder, run_id)) == (run_id, ALL)


class Flaky:
    """A client whose method fails at first, after it has done what it should: an answer that came too late."""

    def __init__(self, client, method, error, times, does=False):
        self.client, self.method, self.error, self.times, self.does = client, method, error, times, does

    def __getattr__(self, name):
        real = getattr(self.client, name)
        if name != self.method or not self.times:
            return real

        def fail(*arguments, **named):
            self.times -= 1
            if self.does:
                real(*arguments, **named)
            raise self.error

        return fail


def flaky(monkeypatch, method, error, times, does=False):
    monkeypatch.setattr(delivery, "answering", lambda store: Flaky(MlflowClient(store), method, error, times, does))


@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_terminated", "log_inputs", "log_artifact"])
def test_what_arrived_though_nobody_said_so_is_there_once(folder, monkeypatch, quick, method):
    flaky(monkeypatch, method, requests.ReadTimeout("late"), 2, does=True)
    box = begun(folder)
    box.params({"width": 8})
    box.json({"width": 8}, "config.json")
    dataset = {"name": "d", "digest": "1", "source_type": "s", "source": "{}", "profile": "{}"}
    box.put("dataset", {"context": "training", "dataset": dataset})
    assert say(box) == 0
    assert (losses(folder, box.key), status(folder, box.key)) == (ALL, "FINISHED")
    assert rows(folder, box.key, "select key, value from params where run_uuid = :run") == [("width", "8")]
    assert rows(folder, box.key, "select count(*) from inputs where destination_id = :run") == [(1,)]


def test_one_failure_is_told_to_nobody(folder, monkeypatch, quick, caplog):
    flaky(monkeypatch, "log_batch", requests.ConnectionError("idle for too long"), 1)
    assert say(begun(folder)) == 0
    assert warnings(caplog) == []


def test_what_a_store_refuses_is_kept_aside_and_the_rest_goes_on(folder, overtile, caplog):
    box = begun(folder)
    box.params({"width": 8})
    box.params({"bad name$": 8})
    assert say(box) == 0
    assert (losses(folder, box.key), box.delivery.refused) == (ALL, 1)
    assert ["refuses params" in text for text in warnings(caplog)] == [True]
    code, output = overtile("sync", folder)
    assert (code, "1 entry refused" in output) == (1, True), output


def test_a_fault_of_the_server_about_one_entry_blocks_no_other(folder, monkeypatch, quick):
    flaky(monkeypatch, "set_tag", senders.MlflowException("500"), 10**6)
    box = begun(folder)
    box.params({"width": 8})
    box.put("end", {"status": "FAILED", "failure": "why", "at": 1})
    assert say(box) == 0
    assert (losses(folder, box.key), box.delivery.refused) == (ALL, 1)


def test_a_full_store_is_waited_for(folder, monkeypatch, quick):
    full = senders.MlflowException("database or disk is full", ErrorCode.Value("TEMPORARILY_UNAVAILABLE"))
    flaky(monkeypatch, "log_batch", full, 2 * delivery.FAULTS)
    box = begun(folder)
    assert say(box) == 0
    assert (losses(folder, box.key), box.delivery.refused) == (ALL, 0)


def test_a_store_hears_of_a_run_when_its_description_is_on_disk(folder, monkeypatch):
    on_disk = []

    def asked(store):
        lines = (box.journal.folder / "journal.jsonl").read_text().splitlines()
        on_disk.append([json.loads(line)["kind"] for line in lines])
        return MlflowClient(store)

    monkeypatch.setattr(delivery, "answering", asked)
    box = Outbox(sqlite_store(folder), folder)
    box.begin("test", "a run", tags={}, environment={}, describe=lambda: box.json({"lr": 0.1}, "config.json"))
    box.send()
    assert (say(box), on_disk) == (0, [["begin", "file"]])


def test_a_run_that_is_stopped_while_it_is_described_was_never_there(folder):
    def stopped():
        box.json({"lr": 0.1}, "config.json")
        raise KeyboardInterrupt

    box = Outbox(sqlite_store(folder), folder)
    with pytest.raises(KeyboardInterrupt):
        box.begin("test", "a run", tags={}, environment={}, describe=stopped)
    assert not (folder / "unsent").exists()


def test_half_a_line_is_passed_over(folder, tmp_path):
    journal = folder / "unsent" / "k"
    box = Outbox(nowhere(), folder, key="k")
    box.put("tags", {"a": "1"})
    box.close()
    with (journal / "journal.jsonl").open("a") as file:
        file.write('{"n": 2, "kind": "tags", "payl')
    again = Outbox(nowhere(), folder, key="k")
    again.put("tags", {"b": "2"})
    again.close()
    told = Outbox(nowhere(), folder, key="k")
    told.close()
    assert [entry.payload for entry in told.journal.pending()] == [{"a": "1"}, {"b": "2"}]


def test_a_full_disk_keeps_words_in_memory(folder, caplog):
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    box = begun(folder)
    with box.journal._out:
        box.journal._out = SimpleNamespace(write=Full().write, close=lambda: None)
    assert say(box) == 0
    assert losses(folder, box.key) == ALL


def test_a_picture_is_the_pixels_and_the_last_of_its_name(folder):
    box = begun(folder)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for each in (pixels[::-1], pixels):
        box.picture(each, "pictures/worst.png")
    pixels[:] = 0  # what is sent is what it was
    assert say(box) == 0
    from skimage.io import imread

    (found,) = (folder / "artifacts" / box.run_id).rglob("*.png")
    assert imread(found).ravel().tolist() == list(range(12))


def test_files_are_kept_as_they_were(folder):
    (folder / "a.txt").write_text("then")
    model = folder / "model"
    model.mkdir()
    (model / "m.bin").write_bytes(b"then")
    box = Outbox(nowhere(), folder)
    box.file(folder / "a.txt", "texts")
    box.put("model", {}, model)
    (folder / "a.txt").write_text("now")
    (model / "m.bin").write_bytes(b"now")
    kept = [path for path in box.journal.folder.rglob("*") if path.name in ("a.txt", "m.bin")]
    assert [path.read_text() for path in kept] == ["then", "then"]
    box.close()


def test_no_password_is_written_or_told(folder, quick, monkeypatch, caplog):
    def down(_):
        raise NoAnswerError("down")

    monkeypatch.setattr(delivery, "answering", down)
    box = begun(folder, "https://me:secret@host/mlflow")
    assert say(box) > 0
    assert "https://me:***@host/mlflow does not answer (down)" in warnings(caplog)[0]
    assert "secret" not in caplog.text + (box.journal.folder / "journal.jsonl").read_text()


def test_saying_something_waits_for_no_store(folder, monkeypatch):
    speaks, asked = threading.Event(), threading.Event()

    def silent(store):
        asked.set()
        assert speaks.wait(60)
        return MlflowClient(store)

    monkeypatch.setattr(delivery, "answering", silent)
    box = Outbox(sqlite_store(folder), folder)
    box.begin("test", "a run", tags={}, environment={})
    box.delivery.start()
    assert asked.wait(60)
    for step, loss in ALL:
        box.metrics({"loss": loss}, step)
    assert [entry.kind for entry in box.journal.pending()] == ["begin", "metrics", "metrics", "metrics"]
    speaks.set()
    assert say(box, ()) == 0
    assert losses(folder, box.key) == ALL
