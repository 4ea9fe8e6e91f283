"""An MLflow store: opening one, what is in it, what a run says of where it was made. The home of `import mlflow`."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
import torch

from pipeline.atomic import atomic
from pipeline.errors import InputError
from pipeline.heartbeat import FAILURE, HEARTBEAT, reconcile

# Without these a server that hangs is waited for during many minutes, and each start tells a stranger of itself.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # only a command prints
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import InvalidUrlException, MlflowException, RestException

__all__ = [
    "Dataset", "DatasetInput", "InputTag", "LoggedModelOutput", "Metric", "MlflowClient", "MlflowException",
    "ModelVersion", "Param", "RestException", "Run", "RunTag",
]  # fmt: skip

PARENT = "mlflow.parentRunId"
"""Tag with the id of the run that a run belongs to; MLflow shows it below that one."""

COMMIT = "OVERTILE_COMMIT"
"""Environment variable with the commit of the code, where git is not at hand: an image sets it when it is built."""

KEY = "overtile.run"
"""Tag with the name that a run had before the store gave it an id: it is looked up before a run is created."""

SQLITE = "sqlite:///"
"""How the address of a store begins that is a file of this machine."""


class NoAnswerError(Exception):
    """A server that does not answer now and may do so later."""


def open_store(store: str) -> MlflowClient:
    """A client of a store that answers.

    Raises:
        InputError: nothing that MLflow can use is there.
    """
    try:
        return answering(store)
    except NoAnswerError as error:
        raise InputError(_no_store(store, error)) from error


def answering(store: str) -> MlflowClient:
    """The same, for those who can wait for a server.

    Raises:
        InputError: the address is wrong, or a file that cannot be used; waiting would not help.
        NoAnswerError: a server does not answer.
    """
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; what fails is told below
    try:
        _make_whole(store)
        client = MlflowClient(store)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow, its drivers and the network each raise their own
        if _may_answer_later(store, error):
            raise NoAnswerError(reason(error)) from error
        raise InputError(_no_store(store, error)) from error
    return client


def _make_whole(store: str) -> None:
    """Make the file of a new store under another name: MLflow takes seconds, and half of one can never be opened."""
    path = Path(store.removeprefix(SQLITE))
    if store.startswith(SQLITE) and path.parent.is_dir() and not path.exists():
        with atomic(path, keep=True) as temporary:
            MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)


def _may_answer_later(store: str, error: Exception) -> bool:
    """Whether it is a server's silence, not a mistake in its address."""
    if isinstance(error, InvalidUrlException):
        return False
    if store.startswith(("http://", "https://")):
        return isinstance(error.__cause__ or error.__context__, requests.RequestException)
    return not store.startswith(SQLITE) and "OperationalError" in f"{type(error).__name__} {error}"


def _no_store(store: str, error: Exception) -> str:
    return (
        f"{shown(store)}: no MLflow store answers there ({reason(error)}); give `tracking_uri` as sqlite:///FILE or "
        "http://HOST:PORT"
    )


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, requests.Timeout) or "timed out" in str(cause):
        return "no answer in time"
    if isinstance(cause, requests.ConnectionError):
        return "no connection"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def shown(store: str) -> str:
    """A store's address without the password that may stand in it."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", store)


def find_run(client: MlflowClient, key: str) -> Run | None:
    """The run that has this key, or this id: checkpoints of old name the id."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for where in (f"tags.`{KEY}` = '{key}'", f"attributes.run_id = '{key}'"):
        found = client.search_runs(experiments, where, order_by=["attributes.start_time"]) if experiments else []
        if found:
            return found[0]
    return None


def let_go(client: MlflowClient, key: str) -> None:
    """Say of a run that nobody works on it, so that it may be taken up at once: only its heart can say so by itself.

    Args:
        client: of the store.
        key: of the run, or its id.
    """
    run = find_run(client, key)
    if run is not None and run.info.status == "RUNNING":
        client.set_tag(run.info.run_id, HEARTBEAT, "0")


def experiment_id(client: MlflowClient, name: str, store: str) -> str:
    """That of an experiment, made if it does not exist."""
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, artifact_location(store)))


def runs(store: str) -> list[dict[str, Any]]:
    """The runs of a store, oldest first, after the dead ones among them were marked KILLED.

    Args:
        store: MLflow tracking URI.

    Returns:
        Per run `id`, `name`, `parent` (the id of the run above it, or None), `status`, `epoch` (the last one with a
        loss), `best` (of the validation, or None), `resumed` (how often) and `failure` (why it ended, or None).
    """
    client = open_store(store)
    reconcile(client)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, order_by=["attributes.start_time DESC"]) if experiments else []
    return [_summary(client, run) for run in reversed(found)]


def _summary(client: MlflowClient, run: Run) -> dict[str, Any]:
    losses, scores = (client.get_metric_history(run.info.run_id, key) for key in ("loss", "val_mean_dice"))
    return {
        "id": run.info.run_id,
        "name": run.info.run_name,
        "parent": run.data.tags.get(PARENT),
        "status": run.info.status,
        "epoch": max((point.step for point in losses), default=None),
        "best": max((point.value for point in scores), default=None),
        "resumed": int(run.data.tags.get("resumed", 0)),
        "failure": run.data.tags.get(FAILURE),
    }


def sqlite_store(folder: Path) -> str:
    """The tracking URI of the sqlite file in a folder of results."""
    return f"{SQLITE}{(folder / 'mlflow.db').resolve()}"


def artifact_location(store: str) -> str | None:
    """Where runs keep their files: beside an sqlite store; a server decides for itself."""
    if not store.startswith(SQLITE):
        return None
    return (Path(store.removeprefix(SQLITE)).resolve().parent / "artifacts").as_uri()


def environment() -> dict[str, str]:
    """Versions, device and code commit, as tags."""
    packages = {f"version.{name}": version(name) for name in ("overtile", "monai", "torch", "mlflow", "numpy")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    commit = {"code_commit": os.environ.get(COMMIT) or _commit()}
    return packages | {"version.python": platform.python_version(), "device": device} | commit


def _commit() -> str:
    """The commit of the folder that this file is in, where it is one of git's."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
