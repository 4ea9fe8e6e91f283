import shutil
import sqlite3

import pytest
from mlflow import MlflowClient

from pipeline import delivery, outbox
from pipeline.configuration import FOLDER, folder_digest
from pipeline.errors import DataError, InputError
from pipeline.journal import journals
from pipeline.outbox import Outbox
from pipeline.parent import ParentRun
from pipeline.store import PARENT, NoAnswerError, sqlite_store
from pipeline.sync import sync
from tests.test_tracking import stopped_after


@pytest.fixture
def folder(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def rows(folder, query):
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


def parent(folder, key="", created=lambda _: None):
    params = {"seeds": "[0, 1]", "variants": {"a": "x", "b": "y"}}
    return ParentRun(sqlite_store(folder), folder, "test", "comparison", params, key=key, created=created)


def test_it_runs_ends_and_goes_on_under_one_id(folder):
    keys = []
    with parent(folder, created=keys.append) as run:
        ((run_id, status),) = rows(folder, "select run_uuid, status from runs")
        assert status == "RUNNING"
        assert keys == [run.key]
        assert {"heartbeat", "process"} <= {key for (key,) in rows(folder, "select key from tags")}
    assert rows(folder, "select status from runs") == [("FINISHED",)]
    for error, status in ((DataError("a, seed 0: the training ended"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        with pytest.raises(type(error)), parent(folder, keys[0]):
            raise error
        assert rows(folder, "select run_uuid, status from runs") == [(run_id, status)]
    with parent(folder, keys[0]) as run:
        run.log({"a-b_dice_mem#brane": 0.5}, [])
        run.log({"a-b_dice_mem#brane": 0.5}, [])
    assert rows(folder, "select key, value from metrics") == [("a-b_dice_mem_brane", 0.5)]
    assert dict(rows(folder, "select key, value from params")) == {
        "seeds": "[0, 1]", "variants.a": "x", "variants.b": "y",
    }  # fmt: skip


def test_ctrl_c_while_it_waits_for_the_store_says_killed(folder, monkeypatch):
    monkeypatch.setattr(Outbox, "send", stopped_after(Outbox.send))
    with pytest.raises(KeyboardInterrupt):
        parent(folder).__enter__()
    assert rows(folder, "select status from runs") == [("KILLED",)]


def test_a_failure_is_told_until_it_goes_on(folder):
    with pytest.raises(DataError), parent(folder) as run:
        raise DataError("b, seed 0: the training ended with exit code 2")
    reason = [("DataError: b, seed 0: the training ended with exit code 2",)]
    assert rows(folder, "select value from tags where key = 'failure'") == reason
    with parent(folder, run.key):
        assert rows(folder, "select value from tags where key = 'failure'") == []


def test_two_processes_do_not_work_on_one_run(folder):
    with parent(folder) as run, pytest.raises(InputError, match="at work there already"):
        parent(folder, run.key).__enter__()


def test_a_store_without_the_run_gets_a_sentence(folder):
    with pytest.raises(InputError, match="MLflow run run7, which is not in sqlite.*; give the --tracking-uri"):
        parent(folder, "run7").__enter__()


def test_children_are_named_by_their_folder(folder):
    with parent(folder) as run:
        client = MlflowClient(run.store)
        experiment = client.get_experiment_by_name("test").experiment_id
        tags = {PARENT: run.outbox.run_id, FOLDER: folder_digest(run.key, "/out/a/seed-0")}
        child = client.create_run(experiment, run_name="training 2026", tags=tags).info.run_id
        run.name_children({"/out/a/seed-0": "a, seed 0: training", "/out/b/seed-0": "b, seed 0: training"})
    assert client.get_run(child).info.run_name == "a, seed 0: training"
    assert client.get_run(run.outbox.run_id).info.run_name.startswith("comparison 20")


def test_a_store_that_is_down_stops_no_comparison(folder, monkeypatch):
    def down(_):
        raise NoAnswerError("down")

    monkeypatch.setattr(outbox, "END_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "answering", down)
        with parent(folder) as run:
            child = Outbox(run.store, folder / "a")
            child.begin("test", "a training", tags={}, environment={}, parent=run.key)
            child.send()
            child.close()
            run.log({"difference": 0.5}, [])
    for journal in reversed(journals(folder)):  # the child first
        assert sync(journal, seconds=30).left == 0
    ((parent_id,),) = rows(folder, "select run_uuid from metrics where key = 'difference'")
    assert rows(folder, f"select value from tags where key = '{PARENT}'") == [(parent_id,)]
    assert sorted(rows(folder, "select status from runs")) == [("FINISHED",), ("KILLED",)]
