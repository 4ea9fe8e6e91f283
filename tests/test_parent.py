import shutil
import sqlite3

import pytest
from mlflow import MlflowClient

from pipeline.configuration import FOLDER, folder_digest
from pipeline.errors import DataError, InputError
from pipeline.parent import ParentRun
from pipeline.store import PARENT, sqlite_store


@pytest.fixture
def folder(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def rows(folder, query):
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


def parent(folder, run_id="", created=lambda _: None):
    params = {"seeds": "[0, 1]", "variants": {"a": "x", "b": "y"}}
    return ParentRun(sqlite_store(folder), "test", "comparison", params, run_id=run_id, created=created)


def test_it_runs_ends_and_goes_on_under_one_id(folder):
    ids = []
    with parent(folder, created=ids.append) as run:
        assert rows(folder, "select status from runs") == [("RUNNING",)]
        assert ids == [run.run_id]
        assert {"heartbeat", "process"} <= {key for (key,) in rows(folder, "select key from tags")}
    assert rows(folder, "select status from runs") == [("FINISHED",)]
    for error, status in ((DataError("a, seed 0: the training ended"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        with pytest.raises(type(error)), parent(folder, ids[0]):
            raise error
        assert rows(folder, "select run_uuid, status from runs") == [(ids[0], status)]
    with parent(folder, ids[0]) as run:
        run.log({"a-b_dice_mem#brane": 0.5}, [])
        run.log({"a-b_dice_mem#brane": 0.5}, [])
    assert rows(folder, "select key, value from metrics") == [("a-b_dice_mem_brane", 0.5)]
    assert dict(rows(folder, "select key, value from params")) == {
        "seeds": "[0, 1]", "variants.a": "x", "variants.b": "y",
    }  # fmt: skip


def test_a_failure_is_told_until_it_goes_on(folder):
    with pytest.raises(DataError), parent(folder) as run:
        raise DataError("b, seed 0: the training ended with exit code 2")
    reason = [("DataError: b, seed 0: the training ended with exit code 2",)]
    assert rows(folder, "select value from tags where key = 'failure'") == reason
    with parent(folder, run.run_id):
        assert rows(folder, "select value from tags where key = 'failure'") == []


def test_two_processes_do_not_work_on_one_run(folder):
    with parent(folder) as run, pytest.raises(InputError, match=r"is being worked on by process .*; stop that one"):
        parent(folder, run.run_id).__enter__()


def test_a_store_without_the_run_gets_a_sentence(folder):
    with pytest.raises(InputError, match="MLflow run run7, which is not in sqlite.*; give the --tracking-uri"):
        parent(folder, "run7").__enter__()


def test_children_are_named_by_their_folder(folder):
    with parent(folder) as run:
        client = MlflowClient(run.store)
        experiment = client.get_experiment_by_name("test").experiment_id
        tags = {PARENT: run.run_id, FOLDER: folder_digest(run.run_id, "/out/a/seed-0")}
        child = client.create_run(experiment, run_name="training 2026", tags=tags).info.run_id
        run.name_children({"/out/a/seed-0": "a, seed 0: training", "/out/b/seed-0": "b, seed 0: training"})
    assert client.get_run(child).info.run_name == "a, seed 0: training"
    assert client.get_run(run.run_id).info.run_name.startswith("comparison 20")
