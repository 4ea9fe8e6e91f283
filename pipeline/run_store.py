"""Runs of an MLflow store as plain data, with their small files: also of a store that was moved or copied."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.errors import InputError
from pipeline.evaluate import TABLE
from pipeline.heartbeat import FAILURE, reconcile
from pipeline.manifest import PARTITIONS
from pipeline.store import open_store

POOLED = "cross_validation.json"
"""The table of a cross-validation, with the patients of all its folds."""

EVALUATIONS = (TABLE, POOLED)
"""Files that make a run an evaluation."""

KEPT = (".json", ".png")
MOST_BYTES = 50_000_000
"""Files of a run that are read: neither weights nor volumes."""

CHAMPION, WEIGHTS = "champion", "checkpoint_sha256"
"""The alias of the version that is in use, and the tag that says which weights a run or a version is of."""

NOT_IN_A_NAME = re.compile(r"[/:.]")
"""What MLflow takes in no name of a registered model."""

ALL = 1000
"""Runs that are looked through, the newest."""


@dataclass(frozen=True)
class Run:
    """A run as it stands in a store; its id, words and files name pseudonyms only."""

    id: str
    name: str
    experiment: str
    status: str
    partition: str
    started: datetime | None
    ended: datetime | None
    tags: Mapping[str, str]
    dataset: Mapping[str, Any]
    """`name`, digests, and `cases`, the number in each partition, where known."""
    points: Mapping[str, Sequence[tuple[int, float]]]
    """Metric -> (epoch, value), in order."""
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def failure(self) -> str:
        """Why it ended before its time; an empty text where nobody could say."""
        return self.tags.get(FAILURE, "")

    def json(self, name: str) -> dict[str, Any] | None:
        """One of its JSON files; None where it has none that can be read."""
        try:
            found = json.loads(self.files[name])
        except (KeyError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """Its table of scores; None of a training and of an evaluation that came to no end."""
        found = next((table for name in EVALUATIONS if (table := self.json(name))), None)
        return found if found and {"summary", "cases", "patients", "classes"} <= found.keys() else None


class RunStore:
    """Runs of a store and their files, those of a store that was moved or copied too."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        path = uri.removeprefix("sqlite:///")
        if path != uri and not Path(path).is_file():
            raise InputError(f"{uri}: no such store; give that of a training or an evaluation")
        self.client = open_store(uri)
        reconcile(self.client)
        self.folder = Path(path).resolve().parent if path != uri else None
        self._experiments = {e.experiment_id: e.name for e in self.client.search_experiments()}

    def runs(self) -> list[Any]:
        """The newest first."""
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs(list(self._experiments), order_by=order, max_results=ALL))

    def champion(self, bundle: str) -> tuple[str, str] | None:
        """The version that a bundle's alias `champion` points to, and the digest of its weights."""
        name = NOT_IN_A_NAME.sub("_", bundle)
        model = next((model for model in self.client.search_registered_models() if model.name == name), None)
        number = (model.aliases or {}).get(CHAMPION) if model else None
        if number is None:
            return None
        return str(number), str(self.client.get_model_version(name, str(number)).tags.get(WEIGHTS, ""))

    def file(self, run: Any, name: str) -> bytes | None:
        """One of a run's files; None where it has no such file."""
        return next((content for found, content in self.files(run, only=name)), None)

    def files(self, run: Any, only: str | None = None) -> Iterator[tuple[str, bytes]]:
        """The small JSON files and pictures of a run, by name."""
        home = self._home(run)
        if home is not None:
            paths = [home / only] if only else sorted(home.rglob("*"))
            for path in paths:
                if path.is_file() and path.suffix in KEPT and path.stat().st_size <= MOST_BYTES:
                    yield path.relative_to(home).as_posix(), path.read_bytes()
        elif urlparse(run.info.artifact_uri).scheme not in ("", "file"):
            yield from self._fetched(run.info.run_id, only)

    def _home(self, run: Any) -> Path | None:
        """Where a run's files lie on this machine: beside its store, or where they were when it ran."""
        uri = urlparse(run.info.artifact_uri)
        beside = [self.folder / "artifacts" / run.info.run_id / "artifacts"] if self.folder else []
        stored = [Path(unquote(uri.path))] if uri.scheme in ("", "file") else []
        return next((path for path in (*beside, *stored) if path.is_dir()), None)

    def _fetched(self, run_id: str, only: str | None) -> Iterator[tuple[str, bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            for item in self._listed(run_id, ""):
                small = Path(item.path).suffix in KEPT and (item.file_size or 0) <= MOST_BYTES
                if small and only in (None, item.path):
                    yield item.path, Path(self.client.download_artifacts(run_id, item.path, folder)).read_bytes()

    def _listed(self, run_id: str, path: str) -> Iterator[Any]:
        for item in self.client.list_artifacts(run_id, path or None):
            yield from self._listed(run_id, item.path) if item.is_dir else [item]

    def run(self, run: Any) -> Run:
        """All of a run that a report needs."""
        keys = [key for key in run.data.metrics if not key.startswith("system/")]
        history = {key: self.client.get_metric_history(run.info.run_id, key) for key in keys}
        return Run(
            id=run.info.run_id,
            name=run.info.run_name or "",
            experiment=self._experiments.get(run.info.experiment_id, ""),
            status=run.info.status,
            partition=partition_of(run),
            started=_time(run.info.start_time),
            ended=_time(run.info.end_time),
            tags=dict(run.data.tags),
            dataset=_dataset(run),
            points={key: sorted((p.step, p.value) for p in points) for key, points in history.items()},
            files=dict(self.files(run)),
        )


def partition_of(run: Any) -> str:
    """That a run read: its tag, or of older runs the context of its dataset."""
    if "partition" in run.data.tags:
        return str(run.data.tags["partition"])
    tags = [tag for given in (run.inputs.dataset_inputs if run.inputs else []) for tag in given.tags]
    return next((tag.value for tag in tags if tag.key == "mlflow.data.context"), "")


def _dataset(run: Any) -> dict[str, Any]:
    """Name, cases of each partition and digests of a run's dataset; {} where it has none."""
    given = run.inputs.dataset_inputs if run.inputs else []
    if not given:
        return {}
    dataset = given[0].dataset
    cases = {name: count for name, count in _words(dataset.profile).items() if name in PARTITIONS}
    return _words(dataset.source) | {"name": dataset.name, "cases": cases}


def _words(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
