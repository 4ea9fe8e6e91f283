"""The MLflow page over a folder's own store, for a browser on this machine."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from pipeline import run_view
from pipeline.child_process import start, stop, wait_for
from pipeline.errors import InputError

STORE = "mlflow.db"
"""The store's file in a folder of results."""

LOOPBACK = "127.0.0.1"
"""Only browsers on this machine reach it."""

PORT = 5000
"""Where a browser finds MLflow by custom."""

START_SECONDS = 120
"""The server answers after 5 to 15 s; on a machine that is busy training, later."""

ANSWER_SECONDS = 30
"""For one answer: a write may wait 20 s for a training's."""

EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that mean every interface; a browser on the same machine says loopback."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # neither the server nor its page reports its use
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for language models
    "PYTHONWARNINGS": "ignore",
}
"""What the server is told by its environment."""

EXPERIMENTS = """
    select experiments.experiment_id, artifact_location, count(*) from experiments join runs using (experiment_id)
    where runs.lifecycle_stage = 'active' and experiments.lifecycle_stage = 'active' group by 1, 2
"""
METRICS = "select distinct key from latest_metrics join runs using (run_uuid) where experiment_id = ?"
"""Read as plain sqlite: to import MLflow for them takes seconds."""


def serve(folder: Path, *, host: str = LOOPBACK, port: int = PORT, ready: Callable[[str], None]) -> None:
    """Serve the page until this process is stopped.

    Args:
        folder: of a training or evaluation, with its store in it.
        host: interface to listen on.
        port: to listen on.
        ready: called with the page's address as soon as it answers.

    Raises:
        InputError: no store is there, the port is taken, or the server does not start.
        KeyboardInterrupt: it was stopped, which is how it ends; the server has ended.
    """
    line = command(folder, host=host, port=port)
    _free(host, port)
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        server = start(line, env=os.environ | QUIET, stdout=said, stderr=STDOUT)
        try:
            _until_it_answers(server, host, port)
            if server.poll() is None:
                ready(url(folder, host=host, port=port, view=_lay_out(folder, host, port)))
            wait_for(server)
        except BaseException:
            stop(server)
            raise
        raise InputError(_reason(folder, said))


def command(folder: Path, *, host: str = LOOPBACK, port: int = PORT) -> list[str]:
    """The words that start the server, in one process: it has one reader.

    Raises:
        InputError: no store is in the folder.
    """
    store = f"sqlite:///{_store(folder).resolve()}"
    line = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    line += ["--backend-store-uri", store, "--registry-store-uri", store]
    artifacts = (folder.resolve() / "artifacts").as_uri()
    line += ["--no-serve-artifacts", "--default-artifact-root", artifacts]  # where runs say that their files are
    return [*line, "--uvicorn-opts", "--log-level warning"]


def url(folder: Path, *, host: str = LOOPBACK, port: int = PORT, view: bool = False) -> str:
    """The page's address: the runs, where one experiment has any; else the list of experiments.

    MLflow's page opens with what language models need unless its address says otherwise.

    Args:
        folder: with the store in it.
        host: interface that the server listens on.
        port: that it listens on.
        view: the experiments have our view of their runs.
    """
    found = _experiments(_store(folder))
    place = f"experiments/{found[0][0]}/runs" if len(found) == 1 else "experiments"
    shared = f"&viewStateShareKey={run_view.KEY}" if view and len(found) == 1 else ""
    return f"http://{_reached(host)}:{port}/#/{place}?workflowType=machine_learning{shared}"


def caution(folder: Path) -> str:
    """A sentence where the runs' pictures and tables are not where the store says; else an empty one."""
    lost = [(location, runs) for _, location, runs in _experiments(_store(folder)) if not _is_here(location)]
    if not lost:
        return ""
    count = sum(runs for _, runs in lost)
    return (
        f"the files of {count} {'run' if count == 1 else 'runs'} are not at {_path(lost[0][0])}, where they were "
        "written: the page will show figures but no pictures. Start it where the folder has that path, say in the "
        "container that wrote it"
    )


def _store(folder: Path) -> Path:
    if not (folder / STORE).is_file():
        raise InputError(f"{folder}: no {STORE} in it; give the output folder of a training or of an evaluation")
    return folder / STORE


def _experiments(store: Path) -> list[tuple[Any, ...]]:
    """Id, place of the files and number of runs of every experiment that has runs."""
    return _rows(store, EXPERIMENTS)


def _rows(store: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{store}: not a store of MLflow's ({error}); give the folder of a training") from error


def _path(location: str) -> str:
    """file:///out/run/artifacts is /out/run/artifacts."""
    return unquote(urlsplit(location).path)


def _is_here(location: str) -> bool:
    """Whether a place of files is on this machine, or is a server's own affair."""
    return urlsplit(location).scheme not in ("", "file") or Path(_path(location)).is_dir()


def _free(host: str, port: int) -> None:
    """Try the port before the seconds that a start takes."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} of {host} cannot be had ({error}); give another one by --port") from error


def _until_it_answers(server: Popen[Any], host: str, port: int) -> None:
    """Wait until it does, or has ended."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and not _ask(host, port, "GET", "/health"):
        if time.monotonic() > deadline:
            raise InputError(f"the MLflow server did not answer on {host}:{port} within {START_SECONDS} s")
        time.sleep(0.2)


def _lay_out(folder: Path, host: str, port: int) -> bool:
    """Give every experiment our view of its runs; whether that worked: a store may be for reading only."""
    done = True
    for experiment, _, _ in _experiments(_store(folder)):
        metrics = [name for (name,) in _rows(_store(folder), METRICS, experiment)]
        tag = {"experiment_id": str(experiment), "key": run_view.TAG, "value": run_view.state(metrics)}
        done &= _ask(host, port, "POST", "/api/2.0/mlflow/experiments/set-experiment-tag", json.dumps(tag))
    return done


def _reached(host: str) -> str:
    """The name by which this machine reaches a server that listens on `host`."""
    return LOOPBACK if host in EVERYWHERE else host


def _ask(host: str, port: int, method: str, path: str, body: str | None = None) -> bool:
    """Whether the server says yes; asked without any proxy that the environment may name."""
    from http import HTTPStatus
    from http.client import HTTPConnection, HTTPException  # loads ssl, which `overtile --help` does without

    try:
        with closing(HTTPConnection(_reached(host), port, timeout=ANSWER_SECONDS)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            with connection.getresponse() as answer:
                return answer.status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False


def _reason(folder: Path, said: IO[str]) -> str:
    """One sentence out of all that a server said which has ended by itself."""
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    if any("out-of-date database schema" in line for line in lines):
        store = _store(folder).resolve()
        return (
            f"{store}: written by another version of MLflow; keep a copy, then say: mlflow db upgrade sqlite:///{store}"
        )
    errors = [line for line in lines if "rror" in line] or lines or ["it said nothing"]
    return f"the MLflow server has ended: {errors[-1]}"
