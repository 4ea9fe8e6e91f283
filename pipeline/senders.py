"""How each kind of entry of a journal is told to a store; all of it may happen twice and changes nothing then."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from pipeline.configuration import FOLDER
from pipeline.errors import InputError
from pipeline.heartbeat import ELSEWHERE_SECONDS, FAILURE, PROCESS, may_be_resumed
from pipeline.journal import ARTIFACT
from pipeline.registry import send_description, send_model
from pipeline.store import (
    KEY,
    PARENT,
    SQLITE,
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    MlflowClient,
    MlflowException,
    Param,
    RestException,
    Run,
    RunTag,
    experiment_id,
    find_run,
    shown,
)

logger = logging.getLogger("pipeline.senders")

PARAMS_PER_CALL = 100
"""MLflow refuses more in one call."""

BEGUN = "overtile.begun"
"""Tag that names the last start of a run: a start that is told twice is counted once."""

PIXELS = "pixels.npy"
"""A picture in a journal's folder: written in a moment, compressed when it is sent."""

SYSTEM = "system/"
"""How the metrics begin that go by the clock and not by the epoch."""

PATIENCE = {401, 403, 407, 408, 425, 429}
"""HTTP status codes of a refusal that the site or time can mend."""

Sender = Callable[[MlflowClient, str, dict[str, Any], Path | None], None]


def begin(client: MlflowClient, store: str, key: str, payload: Mapping[str, Any], *, strict: bool) -> tuple[str, bool]:
    """Create a run, or take it up again where the store has it.

    Args:
        client: of the store.
        store: its address.
        key: the run's own name.
        payload: `id` of this start, `experiment`, `name`, `tags`, `environment` (tags too, compared when a run is taken
            up again), `parent` (id or key), `at` (ms) and `resumed`.
        strict: refuse to take up a run that is not there, or that somebody is working on.

    Returns:
        The store's id of the run, and whether it has just been created.

    Raises:
        InputError: the same.
    """
    run = find_run(client, key)
    if run is not None:
        _go_on(client, run, payload, strict)
        client.set_tag(run.info.run_id, KEY, key)
        return run.info.run_id, False
    if strict and payload["resumed"]:
        raise InputError(
            f"the {payload['what']} to resume is MLflow run {key}, which is not in {shown(store)}; give the "
            f"{payload['option']} of its start"
        )
    tags = {**payload["environment"], **payload["tags"], **_parent(client, payload), BEGUN: payload["id"], KEY: key}
    experiment = experiment_id(client, payload["experiment"], store)
    run = client.create_run(experiment, start_time=payload["at"], run_name=payload["name"], tags=tags)
    run_id = only_one(client, key) or run.info.run_id
    for below in client.search_runs([experiment], f"tags.`{PARENT}` = '{key}'"):  # it was told of them first
        client.set_tag(below.info.run_id, PARENT, run_id)
    return run_id, True


def only_one(client: MlflowClient, key: str) -> str:
    """The id of the run of this key; a second one, made by a request that was given up but arrived, is deleted."""
    run = find_run(client, key)
    if run is None:
        return ""
    others = client.search_runs([run.info.experiment_id], f"tags.`{KEY}` = '{key}'")
    first, *late = sorted(others or [run], key=lambda each: (each.info.start_time, each.info.run_id))
    for each in late:
        client.delete_run(each.info.run_id)
    return str(first.info.run_id)


def _go_on(client: MlflowClient, run: Run, payload: Mapping[str, Any], strict: bool) -> None:
    run_id, before = run.info.run_id, run.data.tags
    if before.get(BEGUN) == payload["id"]:
        return
    if strict and run.info.status == "RUNNING" and not may_be_resumed(before):
        raise InputError(
            f"MLflow run {run_id} is still being worked on, by process {before[PROCESS]}; stop that one, or wait "
            f"{ELSEWHERE_SECONDS:g} s after its end"
        )
    resumed = int(before.get("resumed", 0)) + 1
    changed = {key: value for key, value in payload["environment"].items() if before.get(key) != value}
    if changed:
        logger.warning("resumed with another %s than it began with", ", ".join(changed))
    if FAILURE in before:
        client.delete_tag(run_id, FAILURE)
    client.update_run(run_id, status="RUNNING")
    now = {**payload["tags"], **_parent(client, payload), "resumed": str(resumed), BEGUN: payload["id"]}
    tags(client, run_id, now | {f"resumed.{resumed}.{key}": value for key, value in changed.items()}, None)


def _parent(client: MlflowClient, payload: Mapping[str, Any]) -> dict[str, str]:
    """The tag that shows a run below another one, which may be named by its id or by its key."""
    if not payload["parent"]:
        return {}
    above = find_run(client, payload["parent"])
    return {PARENT: above.info.run_id if above else payload["parent"]}


def written_points(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """Name and step of every point that a store has of a run; those of the machine go by time and are left out."""
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(SYSTEM)]
    return {(name, point.step) for name in names for point in client.get_metric_history(run_id, name)}


def tags(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """Tag -> value."""
    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in payload.items()])


def params(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """Parameter -> value; those that the run has keep theirs."""
    known = client.get_run(run_id).data.params
    new = [Param(key, str(value)) for key, value in payload.items() if key not in known]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])


def metrics(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """`values`, their `step` and the time `at`; a store drops what it has with the same step, value and time."""
    points = [Metric(key, value, payload["at"], payload["step"]) for key, value in payload["values"].items()]
    if points:
        client.log_batch(run_id, metrics=points)


def results(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """`values` of metrics that have one value, written where the run does not say the same already."""
    known = client.get_run(run_id).data.metrics
    changed = {name: value for name, value in payload["values"].items() if known.get(name) != value}
    metrics(client, run_id, {"values": changed, "step": 0, "at": payload["at"]}, None)


def names(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """Name of each run below this one, by the digest of the folder that it writes to (`pipeline.configuration`)."""
    experiment = client.get_run(run_id).info.experiment_id
    for run in client.search_runs([experiment], f"tags.`{PARENT}` = '{run_id}'"):
        title = payload.get(run.data.tags.get(FOLDER, ""))
        if title and run.info.run_name != title:
            client.update_run(run.info.run_id, name=title)


def dataset(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """`dataset` as MLflow's entity has it, and its `context`."""
    context = [InputTag("mlflow.data.context", payload["context"])]
    client.log_inputs(run_id, [DatasetInput(Dataset(**payload["dataset"]), context)])


def file(client: MlflowClient, run_id: str, payload: dict[str, Any], folder: Path | None) -> None:
    """The one file of the folder, under the name `artifact`."""
    if folder is None or not folder.is_dir():
        return  # a later one has taken its place
    name = payload[ARTIFACT]
    client.log_artifact(run_id, str(folder / posixpath.basename(name)), posixpath.dirname(name) or None)


def picture(client: MlflowClient, run_id: str, payload: dict[str, Any], folder: Path | None) -> None:
    """The pixels in the folder as a PNG under the name `artifact`."""
    if folder is None or not folder.is_dir():
        return
    Image.fromarray(np.load(folder / PIXELS, allow_pickle=False)).save(folder / posixpath.basename(payload[ARTIFACT]))
    file(client, run_id, payload, folder)


def end(client: MlflowClient, run_id: str, payload: dict[str, Any], _: Path | None) -> None:
    """`status`, the time `at` and, if there is one, the `failure`.

    With `process`, it is said of a dead one by somebody else: not where the run has ended, or goes on elsewhere.
    """
    if "process" in payload:
        run = client.get_run(run_id)
        if run.info.status != "RUNNING" or run.data.tags.get(PROCESS) != payload["process"]:
            return
    if payload.get("failure"):
        client.set_tag(run_id, FAILURE, payload["failure"])
    client.set_terminated(run_id, payload["status"], end_time=payload["at"])


SENDERS: dict[str, Sender] = {
    "tags": tags, "params": params, "metrics": metrics, "dataset": dataset, "file": file, "picture": picture,
    "end": end, "results": results, "names": names, "model": send_model, "describe": send_description,
}  # fmt: skip
"""Kind of an entry -> what tells it: `sender(client, run_id, payload, folder)`; others may add theirs."""


def refused(error: Exception, store: str) -> bool:
    """Whether it is a store's last word about an entry, or a fault in the entry: sent again, it would fail again."""
    if isinstance(error, requests.RequestException):
        answer = error.response
        return answer is not None and _is_last_word(answer.status_code)
    if isinstance(error, RestException) or (isinstance(error, MlflowException) and store.startswith(SQLITE)):
        return _is_last_word(error.get_http_status_code())
    if isinstance(error, MlflowException):
        return False  # the network's, or a proxy's
    if isinstance(error, OSError):
        return isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError))
    return isinstance(error, (TypeError, ValueError, LookupError, AttributeError))


def _is_last_word(status: int) -> bool:
    return 400 <= status < 500 and status not in PATIENCE


def as_json(content: Any) -> str:
    """Text of a JSON file; what JSON does not know is written as text."""
    return json.dumps(content, indent=2, default=str) + "\n"
