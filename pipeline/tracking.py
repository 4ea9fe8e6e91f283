"""One engine run is one MLflow run, and it tells the truth: FINISHED, FAILED after an exception, KILLED if stopped."""

from __future__ import annotations

import inspect
import logging
import os
import platform
import re
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

from pipeline import overlay
from pipeline.manifest import read

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

logger = logging.getLogger("pipeline.tracking")

PARAM_VALUE_LENGTH = 6000
"""MLflow refuses longer parameter values; the whole configuration is an artifact as well."""

PARAMS_PER_CALL = 100
"""MLflow refuses more in one call."""

OVERLAYS = 4
"""Validation cases whose pictures a run keeps, those of its best epoch."""


class TrackingHandler:
    """Writes an engine's run to MLflow; stands first among the engine's handlers.

    Ignite calls only the first handler of an exception that raises it again, so a handler before this one could
    leave a crashed run RUNNING.

    Args:
        store: MLflow tracking URI, or None for `MLFLOW_TRACKING_URI` and, where that is not set, an sqlite file
            in `output_dir`.
        output_dir: folder of the results.
        experiment: MLflow experiment, made if it does not exist.
        manifest: path of the manifest, whose digests the run records; its paths stay where they are.
        partition: that the engine reads.
        evaluator: the validation engine, whose metrics and pictures belong to the same run.
        optimizer: whose learning rate is recorded.
        artifacts: files to keep when the engine has finished.
        config: the merged configuration; None looks up the one that the bundle is being run with.
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
        artifacts: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.store = store or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_store(self.output_dir)
        self.experiment = experiment
        self.manifest = Path(manifest)
        self.partition = partition
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.artifacts = [Path(path) for path in artifacts]
        self.config = dict(config) if config is not None else running_config()
        self.run_id = ""
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

    def _start(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(self.store)
        found = self.client.get_experiment_by_name(self.experiment)
        location = artifact_location(self.store)
        experiment_id = found.experiment_id if found else self.client.create_experiment(self.experiment, location)
        name = f"{self.partition} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        self.run_id = self.client.create_run(experiment_id, run_name=name, tags=environment()).info.run_id
        if threading.current_thread() is threading.main_thread():
            self._previous_sigterm = signal.signal(signal.SIGTERM, _interrupt)
        params = [Param(key[:250], value) for key, value in flattened(self.config).items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_CALL])
        self.client.log_dict(self.run_id, self.config, "config.json")
        self.client.log_inputs(self.run_id, [dataset_input(self.manifest, self.partition)])
        logger.info("MLflow run %s of experiment %s in %s", self.run_id, self.experiment, self.store)

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
        seconds = time.perf_counter() - self._clock
        values = {"images_per_second": self._images / seconds, **scalars(engine.state.metrics)}
        if self._losses:
            values["loss"] = sum(self._losses) / len(self._losses)
        if self.optimizer is not None:
            values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self._log(values, engine.state.epoch)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("epoch %d/%d  %s  %.1f s", engine.state.epoch, engine.state.max_epochs, shown, seconds)

    def _validated(self, evaluator: Engine) -> None:
        state = evaluator.state
        values = scalars(state.metrics)
        self._log(values, state.epoch)
        best, best_epoch = state.best_metric, state.best_metric_epoch  # type: ignore[attr-defined]
        if best_epoch == state.epoch:
            for case, picture in self._pictures:
                self.client.log_image(self.run_id, picture, artifact_file=f"overlays/{case}.png")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("epoch %d  validation  %s  (best %.4g at epoch %d)", state.epoch, shown, best, best_epoch)

    def _keep_pictures(self, evaluator: Engine) -> None:
        for item, output in cases_of(evaluator):
            if len(self._pictures) < OVERLAYS and output[CommonKeys.IMAGE].ndim == 3:
                image, reference, prediction = (
                    output[key].detach().float().cpu().numpy()
                    for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
                )
                picture = overlay.comparison(image, classes(reference), classes(prediction), item["id"])
                self._pictures.append((item["id"], picture))

    def _completed(self, _: Engine) -> None:
        for path in self.artifacts:
            if path.exists():
                self.client.log_artifact(self.run_id, str(path))
        self._end("FINISHED")

    def _exception(self, _: Engine, error: BaseException) -> None:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        if self.run_id and not stopped:
            self.client.set_tag(self.run_id, "failure", without_paths(error))
        self._end("KILLED" if stopped else "FAILED")
        raise error

    def _end(self, status: str) -> None:
        """Say how it ended, once: Ignite raises an exception's event twice."""
        if not self.run_id:
            return
        self.client.set_terminated(self.run_id, status)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous_sigterm or signal.SIG_DFL)
        logger.info("MLflow run %s is %s; results in %s", self.run_id, status, self.output_dir)
        self.run_id = ""

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


def sqlite_store(folder: Path) -> str:
    """The tracking URI of the sqlite file in a folder of results."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def artifact_location(store: str) -> str | None:
    """Where runs keep their files: beside an sqlite store; a server decides for itself."""
    prefix = "sqlite:///"
    if not store.startswith(prefix):
        return None
    return (Path(store.removeprefix(prefix)).resolve().parent / "artifacts").as_uri()


def without_paths(error: BaseException) -> str:
    """An error's type and text without file names, in which a patient's name may stand."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\S*[/\\][^:;,]*", "<path>", str(error))
    return f"{type(error).__name__}: {text}"[:PARAM_VALUE_LENGTH]


def running_config() -> dict[str, Any]:
    """The merged and expanded configuration of the bundle that is being run, or {} outside of one.

    MONAI hands it to no component; the ConfigParser that is building the caller is found on the call stack.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if type(owner).__module__ == "monai.bundle.config_parser" and type(owner).__name__ == "ConfigParser":
            return {key: value for key, value in owner.config.items() if key != "_meta_"}
        frame = frame.f_back
    return {}


def flattened(config: Any, prefix: str = "") -> dict[str, str]:
    """A nested configuration as MONAI's `a#b#0` -> text, as MLflow parameters."""
    if isinstance(config, Mapping) and config:
        parts = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list) and config:
        parts = [(str(number), value) for number, value in enumerate(config)]
    else:
        return {prefix.replace("#", "."): str(config)[:PARAM_VALUE_LENGTH]}
    flat: dict[str, str] = {}
    for key, value in parts:
        flat |= flattened(value, f"{prefix}#{key}" if prefix else key)
    return flat


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
    profile = {name: len(manifest.partition(name)) for name in ("training", "validation", "test")}
    dataset = Dataset(
        name=manifest.name,
        digest=manifest.digest()[:32],
        source_type="overtile manifest",
        source=f'{{"manifest_sha256": "{manifest.digest()}", "split_sha256": "{manifest.split_digest()}"}}',
        profile=str(profile).replace("'", '"'),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", partition)])


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one finite number."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float)) and np.isfinite(v)}


def cases_of(engine: Engine) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """An engine's batch taken apart into cases: the item with its `id` and `patient`, and the output for it."""
    items: Any = engine.state.batch
    outputs: Any = engine.state.output
    return list(zip(items, outputs, strict=True))


def classes(label: np.ndarray) -> np.ndarray:
    """(1, H, W) class indices or (classes, H, W) one-hot -> (H, W) class indices."""
    return label[0].astype(np.uint8) if label.shape[0] == 1 else label.argmax(0).astype(np.uint8)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt("stopped by SIGTERM")
