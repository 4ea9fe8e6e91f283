"""One engine run is one MLflow run, and it tells the truth: FINISHED, FAILED after an exception, KILLED if stopped."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from pipeline import overlay, planes
from pipeline.batches import cases_of, classes, volume_spacing_mm
from pipeline.checkpoint import TrainingState
from pipeline.configuration import FOLDER, flattened, folder_digest, pathless, running_config
from pipeline.errors import DataError, InputError, user_error
from pipeline.failures import without_paths
from pipeline.heartbeat import ELSEWHERE_SECONDS, FAILURE, PROCESS, Heart, first_beat, may_be_resumed, reconcile
from pipeline.manifest import Case, read

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException

logger = logging.getLogger("pipeline.tracking")

PARAMS_PER_CALL = 100
"""MLflow refuses more in one call."""

OVERLAYS = 4
"""Validation cases whose pictures a run keeps, those of its best epoch."""


PARENT = "mlflow.parentRunId"
"""Tag with the id of the run that a run belongs to; MLflow shows it below that one."""


class TrackingHandler:
    """Writes an engine's run to MLflow; stands first among the handlers that raise an exception again.

    Ignite calls no further handler of an exception after one that raises it again, so such a handler before this
    one could leave a crashed run RUNNING.

    Args:
        store: MLflow tracking URI, or None for `MLFLOW_TRACKING_URI` and, where that is not set, an sqlite file
            in `output_dir`.
        output_dir: folder of the results.
        experiment: MLflow experiment, made if it does not exist.
        manifest: path of the manifest, whose digests the run records; its paths stay where they are.
        partition: that the engine reads.
        evaluator: the validation engine, whose metrics and pictures belong to the same run.
        optimizer: whose learning rate is recorded.
        state: of the training, whose run id says which run a resumed training continues.
        artifacts: files to keep when the engine has finished.
        config: the merged configuration; None looks up the one that the bundle is being run with.
        parent: id of the run that this one is shown under, that of a comparison or a cross-validation.
        overlay_channel: of the image, from 0: the one that the pictures show.
    """

    def __init__(
        self,
        output_dir: str,
        experiment: str,
        manifest: str,
        *,
        store: str | None = None,
        partition: str = "training",
        evaluator: Engine | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        state: TrainingState | None = None,
        artifacts: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        parent: str | None = None,
        overlay_channel: int = 0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.store = store or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_store(self.output_dir)
        self.experiment = str(experiment)
        self.manifest = Path(manifest)
        self.partition = partition
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.state = state
        self.artifacts = [Path(path) for path in artifacts]
        self.config = pathless(running_config() if config is None else config)
        self.parent = {PARENT: str(parent), FOLDER: folder_digest(str(parent), output_dir)} if parent else {}
        self.overlay_channel = overlay_channel
        self.run_id = ""
        self.heart: Heart | None = None
        self._written: set[tuple[str, int]] = set()
        self._previous_sigterm: Any = None

    def attach(self, engine: Engine) -> None:
        """Follow an engine from its start to its end, however it ends."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._exception)
        if self.evaluator is not None:
            self._pictures: list[tuple[str, np.ndarray]] = []
            self.evaluator.add_event_handler(Events.EPOCH_STARTED, lambda _: self._pictures.clear())
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._keep_pictures)
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _start(self, _: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.state is not None:
            self.state.lock()
        self.client = open_store(self.store)
        if threading.current_thread() is threading.main_thread():
            self._previous_sigterm = signal.signal(signal.SIGTERM, _interrupt)
        if self.state is not None and self.state.run_id:
            self._continue(self.state.run_id)
        else:
            self._create()
        if self.state is not None:
            self.state.run_id = self.run_id
        self.heart = Heart(self.client, self.run_id)
        self.heart.start()
        reconcile(self.client)
        logger.info("MLflow run %s of experiment %s in %s", self.run_id, self.experiment, self.store)

    def _create(self) -> None:
        found = self.client.get_experiment_by_name(self.experiment)
        location = artifact_location(self.store)
        experiment_id = found.experiment_id if found else self.client.create_experiment(self.experiment, location)
        name = f"{self.partition} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        self.run_id = self.client.create_run(
            experiment_id,
            run_name=name,
            tags=environment() | first_beat() | read(self.manifest).split_digests() | self.parent,
        ).info.run_id
        params = [Param(key[:250], value) for key, value in flattened(self.config).items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_CALL])
        self.client.log_dict(self.run_id, self.config, "config.json")
        self.client.log_inputs(self.run_id, [dataset_input(self.manifest, self.partition)])

    def _continue(self, run_id: str) -> None:
        """Take up a run; the points that were written after its last checkpoint are not written again.

        Raises:
            InputError: the store has no such run, or somebody is still training it.
        """
        run = self._stored(run_id)
        if run.info.status == "RUNNING" and not may_be_resumed(run.data.tags):
            raise InputError(
                f"MLflow run {run_id} is still being trained, by process {run.data.tags[PROCESS]}; stop that one, or "
                f"wait {ELSEWHERE_SECONDS:g} s after its end"
            )
        self._written = {
            (key, point.step) for key in run.data.metrics for point in self.client.get_metric_history(run_id, key)
        }
        self.run_id = run_id
        resumed = int(run.data.tags.get("resumed", 0)) + 1
        now = environment()
        changed = {key: value for key, value in now.items() if run.data.tags.get(key) != value}
        if changed:
            logger.warning("resumed with another %s than it began with", ", ".join(changed))
        tags = (
            first_beat()
            | self.parent
            | {"resumed": str(resumed)}
            | {f"resumed.{resumed}.{k}": v for k, v in changed.items()}
        )
        for tag, value in tags.items():
            self.client.set_tag(run_id, tag, value)
        if FAILURE in run.data.tags:
            self.client.delete_tag(run_id, FAILURE)
        self.client.update_run(run_id, status="RUNNING")

    def _stored(self, run_id: str) -> Run:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            raise InputError(
                f"the training to resume is MLflow run {run_id}, which is not in {self.store}; give the `tracking_uri` "
                "of its start"
            )
        return run

    def _epoch_started(self, _: Engine) -> None:
        self._losses: list[float] = []
        self._images = 0
        self._clock = time.perf_counter()

    def _iteration(self, engine: Engine) -> None:
        outputs: Any = engine.state.output  # taken apart into cases, the batch's loss with each of them
        self._images += len(outputs)
        if CommonKeys.LOSS in outputs[0]:
            self._losses.append(float(outputs[0][CommonKeys.LOSS]))

    def _epoch_completed(self, engine: Engine) -> None:
        """Complete the engine's metrics and write them."""
        seconds = time.perf_counter() - self._clock
        if self._losses:
            engine.state.metrics["loss"] = sum(self._losses) / len(self._losses)
        if self.optimizer is not None:
            engine.state.metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        engine.state.metrics["images_per_second"] = self._images / seconds
        self._log(scalars(engine.state.metrics), engine.state.epoch)

    def _validated(self, evaluator: Engine) -> None:
        state = evaluator.state
        self._log(scalars(state.metrics), state.epoch)
        if state.best_metric_epoch == state.epoch:  # type: ignore[attr-defined]
            try:
                for case, picture in self._pictures:
                    self.client.log_image(self.run_id, picture, artifact_file=f"overlays/{case}.png")
            except OSError as error:  # say a folder that has moved since the run began: no reason to end it
                logger.warning("the pictures of epoch %d could not be written: %s", state.epoch, error)

    def _keep_pictures(self, evaluator: Engine) -> None:
        for item, output in cases_of(evaluator):
            if len(self._pictures) < OVERLAYS:
                image, reference, prediction = (
                    output[key].detach().float().cpu().numpy()
                    for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
                )
                image = overlay.channel(image, self.overlay_channel)
                spacing_mm = volume_spacing_mm(output[CommonKeys.LABEL])
                picture = planes.comparison(image, classes(reference), classes(prediction), item["id"], spacing_mm)
                self._pictures.append((item["id"], picture))

    def _completed(self, _: Engine) -> None:
        for path in self.artifacts:
            if path.exists():
                self.client.log_artifact(self.run_id, str(path))
        self._end("FINISHED")

    def _exception(self, _: Engine, error: BaseException) -> None:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        try:
            if self.run_id and not stopped:
                self.client.set_tag(self.run_id, FAILURE, without_paths(error, self._cases()))
            self._end("KILLED" if stopped else "FAILED", hint=not isinstance(user_error(error), DataError))
        except Exception as second:  # a full disk, a server that is gone: the first error is the one to tell
            logger.warning("how the run ended could not be written: %s", second)
        raise error

    def _cases(self) -> list[Case]:
        return [case for _, case in read(self.manifest).cases()]

    def _end(self, status: str, hint: bool = False) -> None:
        """Say how it ended, once: Ignite raises an exception's event twice."""
        if self.state is not None:
            self.state.unlock()
        if not self.run_id:
            return
        run_id, self.run_id = self.run_id, ""
        if self.heart is not None:
            self.heart.stop()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous_sigterm or signal.SIG_DFL)
        if hint and self.state is not None:
            logger.info("%s", self.state.how_to_resume())
        self.client.set_terminated(run_id, status)
        logger.info("MLflow run %s is %s; results in %s", run_id, status, self.output_dir)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        """Write a point of each metric, unless a killed training has already written it at this step."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value in values.items() if (key, step) not in self._written]
        self.client.log_batch(self.run_id, metrics=metrics)


def open_store(store: str) -> MlflowClient:
    """A client of a store that answers.

    Raises:
        InputError: nothing that MLflow can use is there.
    """
    try:
        client = MlflowClient(store)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow, its drivers and the network each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{store}: no MLflow store answers there ({reason}); give `tracking_uri` as sqlite:///FILE or http://HOST:PORT"
        ) from error
    return client


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
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def artifact_location(store: str) -> str | None:
    """Where runs keep their files: beside an sqlite store; a server decides for itself."""
    prefix = "sqlite:///"
    if not store.startswith(prefix):
        return None
    return (Path(store.removeprefix(prefix)).resolve().parent / "artifacts").as_uri()


def environment() -> dict[str, str]:
    """Versions, device and code commit, as tags."""
    packages = {f"version.{name}": version(name) for name in ("overtile", "monai", "torch", "mlflow", "numpy")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    tags = packages | {"version.python": platform.python_version(), "device": device}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        tags["code_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        tags["code_commit"] = "unknown"
    return tags


def dataset_input(manifest_path: Path, partition: str) -> DatasetInput:
    """Digests of a manifest and its split as an MLflow dataset; no path of a patient's file in it."""
    manifest = read(manifest_path)
    digests = {"manifest_sha256": manifest.digest()} | manifest.split_digests()
    profile = {name: len(manifest.partition(name)) for name in ("training", "validation", "test")}
    dataset = Dataset(
        name=manifest.name,
        digest=manifest.digest()[:32],
        source_type="overtile manifest",
        source=json.dumps(digests),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", partition)])


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one finite number."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float)) and np.isfinite(v)}


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt("stopped by SIGTERM")
