"""One engine run is one MLflow run, and it tells the truth: FINISHED, FAILED after an exception, KILLED if stopped."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from pipeline import learning_curves, logged_table
from pipeline.batches import cases_of
from pipeline.case_pictures import CasePictures
from pipeline.checkpoint import TrainingState
from pipeline.configuration import FOLDER, flattened, folder_digest, pathless, running_config
from pipeline.errors import DataError, user_error
from pipeline.failures import without_paths
from pipeline.manifest import Case, read
from pipeline.outbox import Outbox
from pipeline.store import MlflowClient, environment, sqlite_store
from pipeline.system_metrics import SystemMetrics, next_point

logger = logging.getLogger("pipeline.tracking")

PICTURES = "pictures"
"""The folder of a run's pictures: the worst, the median and the best validation case of its best epoch."""

SECONDS = "tracking_seconds"
"""Metric: what a whole run has spent in its tracking handler."""


STOPPED = "stopped by SIGTERM"


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
        body: they show the body alone, see `pipeline.body`; False: the whole field, as that of a microscope.
    """

    def __init__(  # noqa: PLR0913 - one for each key of a bundle's config
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
        body: bool = True,
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
        self.parent = str(parent or "")
        self.overlay_channel = overlay_channel
        self.body = body
        self.outbox: Outbox | None = None
        self.machine: SystemMetrics | None = None
        self.history = {} if state is None else state.history
        self.seconds = 0.0
        self._resumed = self._over = False
        self._previous_sigterm: Any = None
        self._asked_to_stop = False

    def attach(self, engine: Engine) -> None:
        """Follow an engine from its start to its end, however it ends."""
        for event, method in (
            (Events.STARTED, self._start),
            (Events.EPOCH_STARTED, self._epoch_started),
            (Events.ITERATION_COMPLETED, self._iteration),
            (Events.EPOCH_COMPLETED, self._epoch_completed),
            (Events.COMPLETED, self._completed),
            (Events.EXCEPTION_RAISED, self._exception),
        ):
            engine.add_event_handler(event, self._timed(method))
        if self.evaluator is not None:
            names = [name for _, name in sorted(read(self.manifest).labels.items(), key=lambda label: int(label[0]))]
            self._pictures = CasePictures(names, channel=self.overlay_channel, crop=self.body)
            self.evaluator.add_event_handler(Events.EPOCH_STARTED, lambda _: self._pictures.clear())
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._timed(self._keep_pictures))
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._timed(self._validated))

    def _timed(self, method: Callable[..., None]) -> Callable[..., None]:
        """A handler whose time counts as tracking."""

        @functools.wraps(method)
        def timed(*arguments: Any) -> None:
            begun = time.perf_counter()
            try:
                method(*arguments)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed

    def _start(self, _: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.state is not None:
            self.state.lock()
        if threading.current_thread() is threading.main_thread():
            self._previous_sigterm = signal.signal(signal.SIGTERM, self._interrupt) or signal.SIG_DFL
        before = self.state.run_id if self.state is not None else ""
        self._resumed = bool(before)
        outbox = Outbox(self.store, self.output_dir, key=before, begun=self._begun)
        name = f"{self.partition} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        tags = read(self.manifest).split_digests()
        if self.parent:
            tags[FOLDER] = folder_digest(self.parent, str(self.output_dir))
        outbox.begin(
            self.experiment, name, tags=tags, environment=environment(), parent=self.parent, resumed=bool(before)
        )
        self.outbox = outbox
        if self.state is not None:
            self.state.run_id = outbox.key
        if not before:
            self._describe(outbox)
            self._measure_machine(0)

    def _describe(self, outbox: Outbox) -> None:
        """What a new run says of itself once."""
        outbox.params({key[:250]: value for key, value in flattened(self.config).items()})
        outbox.json(self.config, "config.json")
        outbox.put("dataset", dataset_input(self.manifest, self.partition))

    def _begun(self, client: MlflowClient, run_id: str) -> None:
        """The store has the run: in the sending thread."""
        if self._resumed and not self._over:  # only the store knows how many points the machine has there
            self._measure_machine(next_point(client, run_id))

    def _measure_machine(self, first: int) -> None:
        self.machine = SystemMetrics(self._log, first)
        self.machine.start()

    def _epoch_started(self, _: Engine) -> None:
        self._losses: list[float] = []
        self._images = 0
        self._clock = time.perf_counter()

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = True
        raise KeyboardInterrupt(STOPPED)

    def _iteration(self, engine: Engine) -> None:
        if self._asked_to_stop:  # it came while a process was forked or an object deleted: Python swallows it there
            raise KeyboardInterrupt(STOPPED)
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
        if state.best_metric_epoch == state.epoch and self.outbox is not None:  # type: ignore[attr-defined]
            for name, picture in self._pictures.drawn(f"epoch {state.epoch}").items():
                self.outbox.picture(picture, f"{PICTURES}/{name}")

    def _keep_pictures(self, evaluator: Engine) -> None:
        for item, output in cases_of(evaluator):
            self._pictures.add(item, output)

    def _completed(self, engine: Engine) -> None:
        if self.outbox is not None:
            for path in self.artifacts:
                for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                    if file.exists():
                        self.outbox.file(file, path.name if path.is_dir() else "")
                if path.name == logged_table.FILE and path.exists():
                    self.outbox.tags(logged_table.TAG)
            self._log({SECONDS: self.seconds}, engine.state.epoch)
        self._end("FINISHED")

    def _exception(self, _: Engine, error: BaseException) -> None:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        failure = "" if stopped else without_paths(error, self._cases())
        hint = not isinstance(user_error(error), DataError)
        self._end("KILLED" if stopped else "FAILED", failure, hint=hint)
        raise error

    def _cases(self) -> list[Case]:
        return [case for _, case in read(self.manifest).cases()]

    def _end(self, status: str, failure: str = "", hint: bool = False) -> None:
        """Say how it ended, once: Ignite raises an exception's event twice."""
        if self.state is not None:
            self.state.unlock()
        if self._previous_sigterm is not None:
            signal.signal(signal.SIGTERM, self._previous_sigterm)
            self._previous_sigterm = None
        if self.outbox is None:
            return
        self._over = True
        if self.machine is not None:
            self.machine.finish()
        outbox, self.outbox = self.outbox, None
        if self.history:
            self._draw_curves(outbox)
        if hint and self.state is not None:
            logger.info("%s", self.state.how_to_resume())
        outbox.end(status, failure)
        left = outbox.close()
        if left:
            logger.info("%d entries are unsent; `overtile sync %s` sends them", left, self.output_dir)
        logger.info("MLflow run %s is %s; results in %s", outbox.run_id or outbox.key, status, self.output_dir)

    def _draw_curves(self, outbox: Outbox) -> None:
        best = getattr(self.evaluator.state, "best_metric_epoch", None) if self.evaluator is not None else None
        try:
            outbox.picture(learning_curves.draw(self.history, best), "learning_curves.png")
        except Exception as error:  # no run ends otherwise for want of a picture
            logger.warning("the learning curves could not be drawn: %s", error)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        learning_curves.record(self.history, values, step)
        if self.outbox is not None:
            self.outbox.metrics(values, step)


def dataset_input(manifest_path: Path, partition: str) -> dict[str, Any]:
    """Digests of a manifest and its split as an MLflow dataset; no path of a patient's file in it."""
    manifest = read(manifest_path)
    digests = {"manifest_sha256": manifest.digest()} | manifest.split_digests()
    profile = {name: len(manifest.partition(name)) for name in ("training", "validation", "test")}
    return {
        "context": partition,
        "dataset": {
            "name": manifest.name,
            "digest": manifest.digest()[:32],
            "source_type": "overtile manifest",
            "source": json.dumps(digests),
            "profile": json.dumps(profile),
        },
    }


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one finite number."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float)) and np.isfinite(v)}
