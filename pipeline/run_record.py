"""A run and the training that its weights are from, read from an MLflow store once: plain data afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.evaluate import TABLE
from pipeline.run_store import EVALUATIONS, POOLED, WEIGHTS, Run, RunStore, partition_of
from pipeline.store import PARENT, sqlite_store

DATABASE = "mlflow.db"

SCORED = ("test", "validation")
"""Partitions of which an evaluation's run is."""

LEVELS = 3
"""Folders above the given one in which its store is looked for: `OUT/unet/seed-0/evaluation` has it in `OUT`."""


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
    store = RunStore(uri)
    own = (folder / DATABASE).is_file() and tracking_uri is None
    run = _newest(store, place) if own else _of_folder(store, folder)
    return _record(store, run, folder)


def of_weights(record: Record, weights: str) -> list[Record]:
    """The finished evaluations of other weights in a record's store, on the partition of its own, the newest first."""
    store = RunStore(record.store)
    found = [run for run in store.runs() if run.info.status == "FINISHED" and run.data.tags.get(WEIGHTS) == weights]
    return [_record(store, run, None) for run in found if partition_of(run) == record.run.partition]


def _by_id(run_id: str, uri: str | None) -> Record:
    if uri is None:
        raise InputError(f"{run_id}: no such folder; to name a run by its id, give its store with --tracking-uri")
    store = RunStore(uri)
    run = next((run for run in store.runs() if run.info.run_id == run_id), None)
    if run is None:
        raise InputError(f"{run_id}: neither a folder nor a run of {uri}; `overtile runs` lists the runs of a store")
    return _record(store, run, None)


def _uri_above(folder: Path) -> str | None:
    """The store of a folder, of one of the folders above it, or the site's."""
    above = [folder, *folder.resolve().parents[:LEVELS]]
    found = next((path for path in above if (path / DATABASE).is_file()), None)
    return sqlite_store(found) if found else os.environ.get("MLFLOW_TRACKING_URI")


def _newest(store: RunStore, place: str) -> Any:
    """The newest finished evaluation; where there is none the newest run that trained or scored anything."""
    runs = store.runs()
    parents = {run.data.tags.get(PARENT) for run in runs}
    finished = [run for run in runs if run.info.status == "FINISHED"]
    for run in sorted(finished, key=lambda run: -(run.info.end_time or 0)):  # a parent ends after its children
        pooled = run.info.run_id in parents and store.file(run, POOLED)
        if pooled or partition_of(run) in SCORED:
            return run
    worked = [run for run in runs if partition_of(run)] or runs
    if not worked:
        raise InputError(f"{place}: its store has no run yet; train or evaluate first")
    return next((run for run in worked if partition_of(run) not in SCORED), worked[0])


def _of_folder(store: RunStore, folder: Path) -> Any:
    """The run whose table is the one in a folder."""
    table = next((folder / name for name in EVALUATIONS if (folder / name).is_file()), None)
    if table is None:
        raise InputError(f"{folder}: no {TABLE} and no {DATABASE} in it; give the folder of an evaluation, or a run id")
    content = table.read_bytes()
    for run in store.runs():
        if store.file(run, table.name) == content:
            return run
    raise InputError(f"{table}: is of no run in {store.uri}; give the store of its evaluation with --tracking-uri")


def _record(store: RunStore, chosen: Any, folder: Path | None) -> Record:
    run = store.run(chosen)
    notes = list(_notes(store, chosen, run))
    if POOLED in run.files:
        below = [store.run(one) for one in _children(store, chosen)]
        trainings = [one for one in below if one.partition == "training"]
        return Record(run, trainings, notes, [one for one in below if one.evaluation], store.uri)
    trainings = list(_trainings(store, chosen, run, folder)) if run.evaluation or run.partition in SCORED else []
    return Record(run, trainings, notes, store=store.uri)


def _notes(store: RunStore, chosen: Any, run: Run) -> Iterator[str]:
    """Later runs that a reader of this report would want to know of."""
    for other in store.runs():
        later = (other.info.start_time or 0) > (chosen.info.start_time or 0)
        if later and partition_of(other) in SCORED and other.info.status != "FINISHED" and run.evaluation:
            yield f"A later evaluation in the same store, {other.info.run_name}, is {other.info.status}."


def _trainings(store: RunStore, chosen: Any, run: Run, folder: Path | None) -> Iterator[Run]:
    """The trainings that made the weights of an evaluation, as far as stores say."""
    table = run.evaluation or {}
    wanted = table.get("checkpoint_sha256") or run.tags.get("checkpoint_sha256")
    if not wanted:
        return
    stores = [store]
    if folder is not None and (above := folder.resolve().parent / DATABASE).is_file():
        stores += [RunStore(sqlite_store(above.parent))] if sqlite_store(above.parent) != store.uri else []
    for place in stores:
        runs = [one for one in place.runs() if partition_of(one) == "training"]
        one = next((one for one in runs if one.data.tags.get("checkpoint_sha256") == wanted), None)
        one = one or _untagged(runs, chosen, wanted, folder, place)
        if one is not None:
            yield place.run(one)
            return


def _children(store: RunStore, parent: Any) -> list[Any]:
    """The finished runs below another one, the oldest first; of those that were begun again, the last."""
    runs = [run for run in reversed(store.runs()) if run.data.tags.get(PARENT) == parent.info.run_id]
    return list({run.info.run_name: run for run in runs if run.info.status == "FINISHED"}.values())


def _untagged(runs: Sequence[Any], chosen: Any, digest: str, folder: Path | None, store: RunStore) -> Any:
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
