"""The MLflow run above several trainings: RUNNING while they are worked on, and it ends as they ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline import logged_table
from pipeline.configuration import FOLDER, flattened, folder_digest, pathless
from pipeline.errors import InputError
from pipeline.failures import without_paths
from pipeline.heartbeat import ELSEWHERE_SECONDS, FAILURE, PROCESS, Heart, first_beat, may_be_resumed, reconcile
from pipeline.metric_names import allowed
from pipeline.store import PARENT, artifact_location, environment, open_store

logger = logging.getLogger("pipeline.parent")


class ParentRun:
    """A context manager: the run is FINISHED after the block, FAILED after an exception, KILLED after a stop.

    Args:
        store: MLflow tracking URI.
        experiment: MLflow experiment, made if it does not exist.
        kind: what the run is, say `comparison`; its name begins with it.
        params: of the run, nested.
        run_id: of the run to go on with; empty for a new one.
        created: called with the id of a new run before anything else happens.
    """

    def __init__(
        self,
        store: str,
        experiment: str,
        kind: str,
        params: Mapping[str, Any],
        *,
        run_id: str = "",
        created: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.experiment = experiment
        self.kind = kind
        self.params = pathless(params)
        self.run_id = run_id
        self.created = created

    def __enter__(self) -> ParentRun:
        """Begin the run, or take it up again.

        Raises:
            InputError: the store has no such run, or another process is working on it.
        """
        self.client = open_store(self.store)
        if self.run_id:
            self._continue()
        else:
            self._create()
        self.heart = Heart(self.client, self.run_id)
        self.heart.start()
        reconcile(self.client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended; whatever the block raised goes on."""
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        status = "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        self.heart.stop()
        try:
            if status == "FAILED" and error is not None:
                self.client.set_tag(self.run_id, FAILURE, without_paths(error))
            self.client.set_terminated(self.run_id, status)
        except Exception as second:  # a full disk, a server that is gone: the first error is the one to tell
            if error is None:
                raise
            logger.warning("how the run ended could not be written: %s", second)

    def log(self, metrics: Mapping[str, float], files: list[Path]) -> None:
        """Write the results: one value per metric, and files as artifacts."""
        known = self.client.get_run(self.run_id).data.metrics
        for name, value in {allowed(name): value for name, value in metrics.items()}.items():
            if known.get(name) != value:  # the same again, when nothing was left to do
                self.client.log_metric(self.run_id, name, value, step=0)
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
            if file.name == logged_table.FILE:
                for tag, text in logged_table.TAG.items():
                    self.client.set_tag(self.run_id, tag, text)

    def name_children(self, titles: Mapping[str, str]) -> None:
        """Name the runs below this one by the folder that they write to.

        Args:
            titles: absolute `output_dir` of a run -> its name.
        """
        known = {folder_digest(self.run_id, folder): title for folder, title in titles.items()}
        try:
            experiment = self.client.get_run(self.run_id).info.experiment_id
            for run in self.client.search_runs([experiment], f"tags.`{PARENT}` = '{self.run_id}'"):
                title = known.get(run.data.tags.get(FOLDER, ""))
                if title and run.info.run_name != title:
                    self.client.update_run(run.info.run_id, name=title)
        except Exception as error:  # whatever a store can throw: no training ends for want of a name
            logger.warning("the runs of the trainings could not be named: %s", error)

    def _create(self) -> None:
        found = self.client.get_experiment_by_name(self.experiment)
        location = artifact_location(self.store)
        experiment_id = found.experiment_id if found else self.client.create_experiment(self.experiment, location)
        name = f"{self.kind} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        run = self.client.create_run(experiment_id, run_name=name, tags=environment() | first_beat())
        self.run_id = run.info.run_id
        self.created(self.run_id)
        self._log_params({})

    def _log_params(self, known: Mapping[str, str]) -> None:
        for key, value in flattened(self.params).items():
            if allowed(key) not in known:
                self.client.log_param(self.run_id, allowed(key), value)

    def _continue(self) -> None:
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = self.client.search_runs(experiments, f"attributes.run_id = '{self.run_id}'") if experiments else []
        if not found:
            raise InputError(
                f"the {self.kind} to go on with is MLflow run {self.run_id}, which is not in {self.store}; give the "
                "--tracking-uri of its start"
            )
        tags = found[0].data.tags
        if found[0].info.status == "RUNNING" and not may_be_resumed(tags):
            raise InputError(
                f"this {self.kind} (MLflow run {self.run_id}) is being worked on by process {tags[PROCESS]}; stop that "
                f"one, or wait {ELSEWHERE_SECONDS:g} s after its end"
            )
        for tag, value in (first_beat() | {"resumed": str(int(tags.get("resumed", 0)) + 1)}).items():
            self.client.set_tag(self.run_id, tag, value)
        if FAILURE in tags:
            self.client.delete_tag(self.run_id, FAILURE)
        self._log_params(found[0].data.params)
        self.client.update_run(self.run_id, status="RUNNING")
