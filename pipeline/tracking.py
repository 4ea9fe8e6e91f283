"""One engine run is one MLflow run, and it tells the truth: FINISHED, FAILED after an exception, KILLED if stopped."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from pipeline import learning_curves, logged_table, processes
from pipeline.batches import cases_of
from pipeline.case_pictures import CasePictures
from pipeline.checkpoint import TrainingState
from pipeline.configuration import FOLDER, flattened, folder_digest, pathless, running_config
from pipeline.data_inputs import dataset_inputs
from pipeline.device_defaults import STATE
from pipeline.errors import DataError, InputError, user_error
from pipeline.failures import without_paths
from pipeline.logged_model import put
from pipeline.manifest import Case, read
from pipeline.outbox import Outbox
from pipeline.patient_flow import FILE as FLOW
from pipeline.patient_flow import flow
from pipeline.run_story import RunStory, environment_text
from pipeline.store import MlflowClient, environment, sqlite_store
from pipeline.system_metrics import SystemMetrics, next_point
from pipeline.verdicts import WEIGHTS, Progress

logger = logging.getLogger("pipeline.tracking")

PICTURES = "pictures"
"""The folder of a run's pictures: the worst, the median and the best validation case of its best epoch."""

SECONDS = "tracking_seconds"
"""Metric: what a whole run has spent in its tracking handler."""

EXPORT_SECONDS = "export_seconds"
"""Metric: what the logged model has cost, once, beside that."""

BEST = "model.pt"
"""The best weights, beside the state of a training."""

CHOSEN = "chosen"
"""Begins the parameters that say what was chosen by the device: `chosen.amp`."""

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
        log_model: a training without a parent leaves its best weights as a logged model, a version in the registry.
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
        log_model: bool = False,
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
        config = running_config() if config is None else config
        self.config = pathless(config)
        self.parent = str(parent or "")
        self.overlay_channel = overlay_channel
        self.body = body
        self.network = state.objects.get("network") if state is not None and log_model and not parent else None
        self.story = RunStory(
            config,
            self.experiment,
            self.manifest,
            partition=partition,
            weights=state.path.with_name(BEST) if state is not None else None,
            artifacts=self.artifacts,
        )
        self.outbox: Outbox | None = None
        self.machine: SystemMetrics | None = None
        self.history = {} if state is None else state.history
        self.seconds = 0.0
        self._resumed = self._over = False
        self._complete = 0
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
        if not processes.is_first():
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.state is not None:
            self.state.lock()
        if threading.current_thread() is threading.main_thread():
            self._previous_sigterm = signal.signal(signal.SIGTERM, self._interrupt) or signal.SIG_DFL
            if processes.count() > 1:
                signal.signal(signal.SIGINT, self._interrupt)  # torchrun hands on one that has reached all already
        before = self.state.run_id if self.state is not None else ""
        self._resumed = bool(before)
        outbox = Outbox(self.store, self.output_dir, key=before, begun=self._begun)
        name = self.story.name(datetime.now().astimezone())
        tags = self.story.begun()
        machine = None if before else SystemMetrics(self._log)  # MLflow makes one thing at a time: before the store
        if self.parent:
            tags[FOLDER] = folder_digest(self.parent, str(self.output_dir))
        about: dict[str, Any] = {"tags": tags, "environment": environment(), "parent": self.parent}
        describe = None if before else functools.partial(self._describe, outbox)
        outbox.begin(self.experiment, name, **about, resumed=bool(before), describe=describe)
        self.outbox = outbox  # from here on, whatever ends the training ends its run
        try:
            outbox.send()
        except InputError:
            self.outbox = None
            raise
        if self.state is not None:
            self.state.run_id = outbox.key
        if machine is not None:
            self._measure(machine)

    def _describe(self, outbox: Outbox) -> None:
        """What a new run says of itself once."""
        outbox.params({key[:250]: value for key, value in flattened(self.config).items()} | self._chosen())
        if processes.count() > 1:
            outbox.params({"processes": str(processes.count())})
        outbox.json(self.config, "config.json")
        outbox.json(flow(self.manifest), FLOW)
        outbox.text(environment_text(), "environment.txt")
        partitions = [self.partition] if self.evaluator is None else [self.partition, "validation"]
        for dataset in dataset_inputs(read(self.manifest), partitions):
            outbox.put("dataset", dataset)

    def _chosen(self) -> dict[str, str]:
        """How a training computes, where its configuration leaves that to the device."""
        chosen = self.state.objects.get(STATE) if self.state is not None else None
        return flattened(asdict(chosen), CHOSEN) if chosen is not None else {}

    def _begun(self, client: MlflowClient, run_id: str) -> None:
        """The store has the run: in the sending thread."""
        if self._resumed and not self._over:  # only the store knows how many points the machine has there
            self._measure(SystemMetrics(self._log, next_point(client, run_id)))

    def _measure(self, machine: SystemMetrics) -> None:
        if self.state is not None:  # of an evaluation, MLflow's page would show them before its scores
            self.machine = machine
            self.machine.start()

    def _epoch_started(self, engine: Engine) -> None:
        self._losses: list[float] = []
        self._images = 0
        self._complete = engine.state.epoch - 1
        self._clock = time.perf_counter()

    def _interrupt(self, _signal: int, frame: FrameType | None) -> None:
        if self._asked_to_stop and processes.count() > 1:
            return
        self._asked_to_stop = True
        if frame is None or frame.f_globals.get("__name__") != "logging":  # whose lock would be held for ever
            raise KeyboardInterrupt(STOPPED)

    def _iteration(self, engine: Engine) -> None:
        if self._asked_to_stop:  # it came while a process was forked or an object deleted: Python swallows it there
            raise KeyboardInterrupt(STOPPED)
        outputs: Any = engine.state.output  # taken apart into cases, the batch's loss with each of them
        self._images += len(outputs)
        if outputs and CommonKeys.LOSS in outputs[0]:
            self._losses.append(float(outputs[0][CommonKeys.LOSS]))

    def _epoch_completed(self, engine: Engine) -> None:
        """Complete the engine's metrics and write them."""
        seconds = time.perf_counter() - self._clock
        self._complete = engine.state.epoch
        if self._losses:
            engine.state.metrics["loss"] = sum(self._losses) / len(self._losses)
        if self.optimizer is not None:
            engine.state.metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        engine.state.metrics["images_per_second"] = sum(processes.gathered(self._images)) / seconds
        self._log(scalars(engine.state.metrics), engine.state.epoch)

    def _validated(self, evaluator: Engine) -> None:
        state = evaluator.state
        self._log(scalars(state.metrics), state.epoch)
        if state.best_metric_epoch != state.epoch:  # type: ignore[attr-defined]
            return
        self._pictures.gather()
        if self.outbox is not None:
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
            self._tell_end("FINISHED", engine)
            self._put_model(engine)
        self._end("FINISHED")

    def _exception(self, engine: Engine, error: BaseException) -> None:
        error = processes.told(error)
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        failure = "" if stopped else without_paths(error, self._cases())
        hint = not isinstance(user_error(error), DataError)
        self._tell_end("KILLED" if stopped else "FAILED", engine, failure)
        self._end("KILLED" if stopped else "FAILED", failure, hint=hint)
        raise error

    def _tell_end(self, status: str, engine: Engine, failure: str = "") -> None:
        """The verdict and the note."""
        if self.outbox is None:
            return
        try:
            self.outbox.tags(self.story.ended(status, self._progress(engine), failure))
        except (OSError, ValueError, KeyError, InputError) as error:  # say a manifest that is gone: no second failure
            logger.warning("MLflow run: its note could not be written: %s", error)

    def _progress(self, engine: Engine) -> Progress:
        """How far a training has come; an epoch that was cut off does not count."""
        state = self.evaluator.state if self.evaluator is not None else None
        best = getattr(state, "best_metric", -1)
        best = best.item() if hasattr(best, "item") else best
        epoch = getattr(state, "best_metric_epoch", -1)
        known = (float(best), int(epoch)) if epoch is not None and epoch > 0 else (None, None)
        return Progress(self._complete, int(engine.state.max_epochs or 0), *known)

    def _put_model(self, engine: Engine) -> None:
        """Export the best weights, and join the run with what else the store has of them."""
        weights = self.story.digest()
        if self.outbox is None or not weights:
            return
        if self.network is not None and self.story.weights is not None:
            begun = time.perf_counter()
            put(self.outbox, self.network, self.story.weights, self.story.model(weights))
            self.outbox.metrics({EXPORT_SECONDS: time.perf_counter() - begun}, engine.state.epoch)
        self.outbox.put("describe", {WEIGHTS: weights})

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


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one finite number."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float)) and np.isfinite(v)}
