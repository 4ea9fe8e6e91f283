"""The MLflow run above several trainings: RUNNING while they are worked on, and it ends as they ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline import logged_table
from pipeline.configuration import flattened, folder_digest, pathless
from pipeline.failures import without_paths
from pipeline.journal import now_ms
from pipeline.metric_names import allowed
from pipeline.outbox import Outbox
from pipeline.parent_story import ParentStory
from pipeline.store import environment


class ParentRun:
    """A context manager: the run is FINISHED after the block, FAILED after an exception, KILLED after a stop.

    Args:
        store: MLflow tracking URI.
        folder: of the results, where words wait for a store that does not answer.
        experiment: MLflow experiment, made if it does not exist.
        kind: what the run is, say `comparison`; its name begins with it.
        params: of the run, nested.
        key: of the run to go on with; empty for a new one.
        created: called with the key of a new run before anything else happens.
        story: its words; None: a name and no more.
    """

    def __init__(
        self,
        store: str,
        folder: Path,
        experiment: str,
        kind: str,
        params: Mapping[str, Any],
        *,
        key: str = "",
        created: Callable[[str], None] = lambda _: None,
        story: ParentStory | None = None,
    ) -> None:
        self.store = store
        self.folder = folder
        self.experiment = experiment
        self.kind = kind
        self.params = pathless(params)
        self.key = key
        self.created = created
        self.story = story

    def __enter__(self) -> ParentRun:
        """Begin the run, or take it up again.

        Raises:
            InputError: the store has no such run, or another process is working on it.
        """
        self.outbox = Outbox(self.store, self.folder, key=self.key)
        now = datetime.now().astimezone()
        self.outbox.begin(
            self.experiment,
            self.story.name(now) if self.story else f"{self.kind} {now:%Y-%m-%d %H:%M:%S}",
            tags=self.story.begun() if self.story else {},
            environment=environment(),
            resumed=bool(self.key),
            what=self.kind,
            option="--tracking-uri",
            describe=self._describe,
        )
        try:
            self.outbox.send()
        except (KeyboardInterrupt, SystemExit):
            self.__exit__(*sys.exc_info())
            raise
        if not self.key:
            self.key = self.outbox.key
            self.created(self.key)
        return self

    def _describe(self) -> None:
        self.outbox.params({allowed(key): value for key, value in flattened(self.params).items()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended; whatever the block raised goes on."""
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        status = "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        failure = without_paths(error) if status == "FAILED" and error is not None else ""
        if self.story and status != "FINISHED":
            self.outbox.tags(self.story.ended(status, failure))
        self.outbox.end(status, failure)
        self.outbox.close()

    def log(self, metrics: Mapping[str, float], files: list[Path]) -> None:
        """Write the results: one value per metric, and files as artifacts."""
        values = {allowed(name): value for name, value in metrics.items()}
        self.outbox.put("results", {"values": values, "at": now_ms()})
        for file in files:
            self.outbox.file(file)
            if file.name == logged_table.FILE:
                self.outbox.tags(logged_table.TAG)

    def tell(self, found: Mapping[str, Any]) -> None:
        """Say in verdict and note what was found."""
        if self.story:
            self.outbox.tags(self.story.found(found))

    def name_children(self, titles: Mapping[str, str]) -> None:
        """Name the runs below this one by the folder that they write to.

        Args:
            titles: absolute `output_dir` of a run -> its name.
        """
        self.outbox.put("names", {folder_digest(self.key, folder): title for folder, title in titles.items()})
