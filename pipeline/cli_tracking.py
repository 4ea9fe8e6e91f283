"""The commands about MLflow: `runs` lists a store, `sync` sends what could not be sent, `promote` decides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import DataError, InputError
from pipeline.terminal import console
from pipeline.terminal import say as _print


def runs(
    store: Annotated[str, typer.Argument(help="Folder of a training, or an MLflow tracking URI.")],
) -> None:
    """List the runs of a store; those whose process was killed outright are marked KILLED first."""
    from pipeline import store as stores
    from pipeline import tables

    uri = store
    if "://" not in store:
        if not (Path(store) / "mlflow.db").is_file():
            raise InputError(f"{store}: no mlflow.db in it; give the output folder of a training, or a tracking URI")
        uri = stores.sqlite_store(Path(store))
    console().print(tables.runs(stores.runs(uri)))


def sync(
    folder: Annotated[Path, typer.Argument(help="Output folder of a training, or one above several.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: the one it began with.")] = None,
) -> None:
    """Send to MLflow what runs below a folder could not send. Exit code 1 if something is left."""
    from pipeline.journal import journals
    from pipeline.sync import sync as sync_one

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = journals(folder)
    if not found:
        _print(f"{folder}: nothing is unsent")
    done = [sync_one(journal, tracking_uri) for journal in found]
    for one in done:
        _print(f"{one.folder}: {_entries(one.sent)} sent to {one.store}")
        if one.left:
            _print(f"{one.folder}: {_entries(one.left)} left, {one.store} does not answer ({one.reason})")
        if one.refused:
            _print(f"{one.folder}: {_entries(one.refused)} refused ({one.reason})")
    if any(one.left or one.refused for one in done):
        raise typer.Exit(DataError.exit_code)


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def promote(
    weights: Annotated[str, typer.Argument(help="Folder of a training, its model.pt, or the id of its run.")],
    reason: Annotated[str, typer.Option(help="Why, in a sentence; it is kept with the version.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store; default: MLFLOW_TRACKING_URI, else mlflow.db in the folder.")
    ] = None,
) -> None:
    """Make a registered version the champion: a person's decision, after a finished test of it."""
    from datetime import datetime

    from pipeline import registry
    from pipeline import store as stores

    folder = Path(weights).parent if Path(weights).is_file() else Path(weights)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _of_folder(folder, weights)
    client = stores.open_store(uri)
    done = registry.promote(client, _digest(weights, client), reason, datetime.now().astimezone())
    _print(f"{done['name']}: version {done['version']} is the champion; before: {done['previous']}. {done['test']}")


def _of_folder(folder: Path, given: str) -> str:
    """The store of a folder."""
    from pipeline import store as stores

    if not (folder / "mlflow.db").is_file():
        raise InputError(f"{given}: no mlflow.db there; give the output folder of a training, or --tracking-uri")
    return stores.sqlite_store(folder)


def _digest(given: str, client: Any) -> str:
    """The digest of the weights that are meant: of a file, of a folder's model.pt, or of a run's tag."""
    from pipeline.digests import file_digest
    from pipeline.store import find_run
    from pipeline.verdicts import WEIGHTS

    for file in (Path(given), Path(given) / "model.pt"):
        if file.is_file():
            return file_digest(file)
    run = find_run(client, given) if given.isalnum() else None
    if run is None:
        raise InputError(f"{given}: neither a folder with a model.pt nor a run of this store")
    if WEIGHTS not in run.data.tags:
        raise InputError(f"run {given} has no weights: it has not ended, or it is no training and no evaluation")
    return str(run.data.tags[WEIGHTS])
