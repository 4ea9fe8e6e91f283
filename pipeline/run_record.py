"""A run and the training that its weights are from, read from an MLflow store once: plain data afterwards."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.evaluate import TABLE
from pipeline.heartbeat import FAILURE, reconcile
from pipeline.store import PARENT, open_store, sqlite_store

DATABASE = "mlflow.db"
POOLED = "cross_validation.json"
"""The table of a cross-validation, with the patients of all its folds."""

EVALUATIONS = (TABLE, POOLED)
"""Files that make a run an evaluation."""

SCORED = ("test", "validation")
"""Partitions of which an evaluation's run is."""

LEVELS = 3
"""Folders above the given one in which its store is looked for: `OUT/unet/seed-0/evaluation` has it in `OUT`."""

KEPT = (".json", ".png")
MOST_BYTES = 50_000_000
"""Files of a run that are read: neither weights nor volumes."""

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


@dataclass(frozen=True)
class Record:
    """What a report tells: a run, and the trainings that its weights are from (of a cross-validation one per fold)."""

    run: Run
    trainings: Sequence[Run] = ()
    notes: Sequence[str] = ()
    """What must be known of the choice, in sentences."""
    scored: Sequence[Run] = ()
    """Of a cross-validation, the evaluation of every fold."""
    store: str = field(default="", repr=False)
    """Tracking URI; never shown, it names folders."""


def read(place: str, tracking_uri: str | None = None) -> Record:
    """The newest finished evaluation of a folder of results, or a run by its id, with its training.

    Of a folder without an evaluation it is the newest training. The store is the folder's, or that of a folder above,
    which then must hold the run of the folder's evaluation.json.

    Args:
        place: folder, or run id.
        tracking_uri: of the store; None: that of the folder, else `MLFLOW_TRACKING_URI`.

    Raises:
        InputError: there is no such folder, store or run.
    """
    folder = Path(place)
    if not folder.is_dir():
        return _by_id(place, tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if not any((folder / name).is_file() for name in (DATABASE, *EVALUATIONS)):
        folder = next((path.parent for path in sorted(folder.glob(f"evaluation/{TABLE}"))), folder)
    uri = tracking_uri or _uri_above(folder)
    if uri is None:
        raise InputError(
            f"{place}: no {DATABASE} in it or above; give the output folder of a training or an evaluation, or the "
            "store with --tracking-uri"
        )
    store = _Store(uri)
    own = (folder / DATABASE).is_file() and tracking_uri is None
    run = _newest(store, place) if own else _of_folder(store, folder)
    return _record(store, run, folder)


def _by_id(run_id: str, uri: str | None) -> Record:
    if uri is None:
        raise InputError(f"{run_id}: no such folder; to name a run by its id, give its store with --tracking-uri")
    store = _Store(uri)
    run = next((run for run in store.runs() if run.info.run_id == run_id), None)
    if run is None:
        raise InputError(f"{run_id}: neither a folder nor a run of {uri}; `overtile runs` lists the runs of a store")
    return _record(store, run, None)


def _uri_above(folder: Path) -> str | None:
    """The store of a folder, of one of the folders above it, or the site's."""
    above = [folder, *folder.resolve().parents[:LEVELS]]
    found = next((path for path in above if (path / DATABASE).is_file()), None)
    return sqlite_store(found) if found else os.environ.get("MLFLOW_TRACKING_URI")


class _Store:
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

    def file(self, run: Any, name: str) -> bytes | None:
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
            partition=_partition(run),
            started=_time(run.info.start_time),
            ended=_time(run.info.end_time),
            tags=dict(run.data.tags),
            dataset=_dataset(run),
            points={key: sorted((p.step, p.value) for p in points) for key, points in history.items()},
            files=dict(self.files(run)),
        )


def _newest(store: _Store, place: str) -> Any:
    """The newest finished evaluation; where there is none the newest run that trained or scored anything."""
    runs = store.runs()
    parents = {run.data.tags.get(PARENT) for run in runs}
    finished = [run for run in runs if run.info.status == "FINISHED"]
    for run in sorted(finished, key=lambda run: -(run.info.end_time or 0)):  # a parent ends after its children
        pooled = run.info.run_id in parents and store.file(run, POOLED)
        if pooled or _partition(run) in SCORED:
            return run
    worked = [run for run in runs if _partition(run)] or runs
    if not worked:
        raise InputError(f"{place}: its store has no run yet; train or evaluate first")
    return next((run for run in worked if _partition(run) not in SCORED), worked[0])


def _of_folder(store: _Store, folder: Path) -> Any:
    """The run whose table is the one in a folder."""
    table = next((folder / name for name in EVALUATIONS if (folder / name).is_file()), None)
    if table is None:
        raise InputError(f"{folder}: no {TABLE} and no {DATABASE} in it; give the folder of an evaluation, or a run id")
    content = table.read_bytes()
    for run in store.runs():
        if store.file(run, table.name) == content:
            return run
    raise InputError(f"{table}: is of no run in {store.uri}; give the store of its evaluation with --tracking-uri")


def _record(store: _Store, chosen: Any, folder: Path | None) -> Record:
    run = store.run(chosen)
    notes = list(_notes(store, chosen, run))
    if POOLED in run.files:
        below = [store.run(one) for one in _children(store, chosen)]
        trainings = [one for one in below if one.partition == "training"]
        return Record(run, trainings, notes, [one for one in below if one.evaluation], store.uri)
    trainings = list(_trainings(store, chosen, run, folder)) if run.evaluation or run.partition in SCORED else []
    return Record(run, trainings, notes, store=store.uri)


def _notes(store: _Store, chosen: Any, run: Run) -> Iterator[str]:
    """Later runs that a reader of this report would want to know of."""
    for other in store.runs():
        later = (other.info.start_time or 0) > (chosen.info.start_time or 0)
        if later and _partition(other) in SCORED and other.info.status != "FINISHED" and run.evaluation:
            yield f"A later evaluation in the same store, {other.info.run_name}, is {other.info.status}."


def _trainings(store: _Store, chosen: Any, run: Run, folder: Path | None) -> Iterator[Run]:
    """The trainings that made the weights of an evaluation, as far as stores say."""
    table = run.evaluation or {}
    wanted = table.get("checkpoint_sha256") or run.tags.get("checkpoint_sha256")
    if not wanted:
        return
    stores = [store]
    if folder is not None and (above := folder.resolve().parent / DATABASE).is_file():
        stores += [_Store(sqlite_store(above.parent))] if sqlite_store(above.parent) != store.uri else []
    for place in stores:
        runs = [one for one in place.runs() if _partition(one) == "training"]
        one = next((one for one in runs if one.data.tags.get("checkpoint_sha256") == wanted), None)
        one = one or _untagged(runs, chosen, wanted, folder, place)
        if one is not None:
            yield place.run(one)
            return


def _children(store: _Store, parent: Any) -> list[Any]:
    """The finished runs below another one, the oldest first; of those that were begun again, the last."""
    runs = [run for run in reversed(store.runs()) if run.data.tags.get(PARENT) == parent.info.run_id]
    return list({run.info.run_name: run for run in runs if run.info.status == "FINISHED"}.values())


def _untagged(runs: Sequence[Any], chosen: Any, digest: str, folder: Path | None, store: _Store) -> Any:
    """The training of an older store, whose runs do not name their weights.

    It is the only one that finished on the same split, of the folder whose model.pt has the digest.
    """
    near = [path / "model.pt" for path in (folder, folder.resolve().parent) if path] if folder else []
    if not any(path.is_file() and file_digest(path) == digest for path in near):
        return None
    split = ("patients_sha256", "pixels_sha256", PARENT)
    same = [run for run in runs if all(run.data.tags.get(key) == chosen.data.tags.get(key) for key in split)]
    finished = [run for run in same if run.info.status == "FINISHED"]
    found = finished or same
    return found[0] if len(found) == 1 else None


def _partition(run: Any) -> str:
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
    return _words(dataset.source) | {"name": dataset.name, "cases": _words(dataset.profile)}


def _words(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
