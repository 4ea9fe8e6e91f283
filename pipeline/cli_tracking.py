"""The commands about MLflow: `runs` lists a store, `sync` sends what could not be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    console.print(tables.runs(stores.runs(uri)))


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
