"""`overtile review` without a browser; with one: tests/test_review_ui.py."""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing

import pytest

from pipeline import review, run_view
from tests.conftest import ROOT


def store(folder, location, runs=1):
    """The two tables that `review` reads, with one experiment of so many runs."""
    with sqlite3.connect(folder / "mlflow.db") as file:
        file.execute("create table experiments (experiment_id integer, artifact_location text, lifecycle_stage text)")
        file.execute("create table runs (experiment_id integer, lifecycle_stage text)")
        file.execute(
            "insert into experiments values (0, 'mlflow-artifacts:/0', 'active'), (7, ?, 'active')", [location]
        )
        file.executemany("insert into runs values (7, 'active')", [()] * runs)
    return folder


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_address_is_that_of_the_runs_in_the_view_for_trainings(tmp_path):
    folder = store(tmp_path, "file:///out/run/artifacts")
    expected = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning"
    assert review.url(folder) == expected
    assert review.url(folder, host="0.0.0.0") == expected
    assert review.url(folder, view=True) == f"{expected}&viewStateShareKey=overtile"
    with sqlite3.connect(folder / "mlflow.db") as file:
        file.execute("insert into runs values (0, 'active')")
    assert review.url(folder, port=80) == "http://127.0.0.1:80/#/experiments?workflowType=machine_learning"


def test_the_view_of_the_runs_is_packed_as_mlflows_page_packs_it():
    saved = json.loads(run_view.state(["loss", "val_mean_dice", "test_dice_b"]))["state"]
    kind, _, packed = saved.partition(";")
    columns = json.loads(zlib.decompress(base64.b64decode(packed)))["selectedColumns"]
    assert kind == "deflate"
    assert columns[:3] == ["tags.`verdict`", "metrics.`test_dice_b`", "metrics.`val_mean_dice`"]


def test_the_server_listens_on_loopback_in_one_process(tmp_path):
    line = " ".join(review.command(store(tmp_path, "")))
    assert "mlflow server --workers 1 --host 127.0.0.1 --port 5000 " in line
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db" in line


def test_files_that_are_elsewhere_are_told(tmp_path):
    (tmp_path / "my run").mkdir()
    assert review.caution(store(tmp_path / "my run", (tmp_path / "my run").as_uri())) == ""
    (tmp_path / "moved").mkdir()
    sentence = review.caution(store(tmp_path / "moved", "file:///out/my%20run/artifacts", runs=3))
    assert sentence.startswith("the files of 3 runs are not at /out/my run/artifacts, where they were written")


def test_a_folder_without_a_store_is_refused(tmp_path, overtile):
    code, output = overtile("review", tmp_path)
    assert (code, output) == (
        2, f"error: {tmp_path}: no mlflow.db in it; give the output folder of a training or of an evaluation\n"
    )  # fmt: skip
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at" * 9)
    code, output = overtile("review", tmp_path)
    assert code == 2
    assert "mlflow.db: not a store of MLflow's (file is not a database)" in output


def test_a_taken_port_is_told_at_once(tmp_path, overtile):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = overtile("review", store(tmp_path, "mlflow-artifacts:/1"), "--port", port)
    assert code == 2
    assert f"port {port} of 127.0.0.1 cannot be had" in output
    assert "give another one by --port" in output


def test_a_store_of_another_mlflow_is_told_how_to_upgrade(empty_store, tmp_path, free_port, overtile):
    shutil.copy(empty_store, tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as file:
        file.execute("update alembic_version set version_num = '27a6a02d2cf1'")
    code, output = overtile("review", tmp_path, "--port", free_port)
    assert code == 2
    assert (
        f"written by another version of MLflow; keep a copy, then say: mlflow db upgrade sqlite:///{tmp_path}" in output
    )


def test_it_answers_this_machine_alone_until_ctrl_c(empty_store, tmp_path, free_port):
    shutil.copy(empty_store, tmp_path)
    line = [sys.executable, "-m", "pipeline", "review", str(tmp_path), "--port", str(free_port)]
    environment = os.environ | {"http_proxy": "http://127.0.0.1:1"}
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert (
                page.stdout.readline() == f"http://127.0.0.1:{free_port}/#/experiments?workflowType=machine_learning\n"
            )
            assert ask(free_port, "/health") == (200, "OK")
            _, names = ask(free_port, "/api/2.0/mlflow/experiments/search?max_results=5")
            assert [found["name"] for found in json.loads(names)["experiments"]] == ["Default"]
            assert ask(free_port, "/api/2.0/mlflow/experiments/search", Host="localhost")[0] != 403
            assert ask(free_port, "/api/2.0/mlflow/experiments/search", Host="evil.example")[0] == 403
            assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
            page.send_signal(signal.SIGINT)
            assert page.wait(timeout=30) == 0
        finally:
            page.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(free_port, "/health")


def ask(port, path, **headers):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
