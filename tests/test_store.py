"""A store is there as a whole or not at all, whoever else makes it or stops making it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

from pipeline import store
from pipeline.atomic import atomic
from pipeline.store import open_store, sqlite_store


def test_a_store_that_was_killed_while_it_was_made_is_made_anew(tmp_path):
    words = f"from pipeline.store import open_store; open_store({sqlite_store(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", words])
    while not list(tmp_path.iterdir()):  # MLflow has begun to make its tables
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert open_store(sqlite_store(tmp_path)).search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_store_that_another_process_made_meanwhile_stays(tmp_path, monkeypatch, empty_store):
    theirs, client = tmp_path / "mlflow.db", store.MlflowClient

    def slow(address):
        if ".tmp" in address and not theirs.exists():
            theirs.write_bytes(empty_store.read_bytes())
            with sqlite3.connect(theirs) as database:
                database.execute("update experiments set name = 'theirs'")
        return client(address)

    monkeypatch.setattr(store, "MlflowClient", slow)
    assert [found.name for found in open_store(sqlite_store(tmp_path)).search_experiments()] == ["theirs"]


def test_a_file_that_came_to_be_meanwhile_stays_only_where_that_is_asked_for(tmp_path):
    for keep in (True, False):
        with atomic(tmp_path / "file", keep=keep) as temporary:
            temporary.write_text("ours")
            (tmp_path / "file").write_text("theirs")
        assert (tmp_path / "file").read_text() == ("theirs" if keep else "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
