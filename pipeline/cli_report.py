"""The command `report`: arguments and printing. All work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.terminal import say


def report(
    run: Annotated[str, typer.Argument(help="Folder of an evaluation or a training, or the id of an MLflow run.")],
    out: Annotated[Path, typer.Option(help="HTML file to write; an earlier report is replaced.")],
    previous: Annotated[
        str | None, typer.Option(help="Evaluation of the model before, folder or run id; default: the champion.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: mlflow.db of the folder.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle of the run, where it is not found by its name.")] = None,
) -> None:
    """Write one HTML page by which a reviewer can judge a model: figures, worst cases, data, provenance, limits.

    The page loads nothing and stays at the site: it shows images of patients.
    """
    from pipeline import report as reports
    from pipeline.run_record import read

    record = read(run, tracking_uri)
    before = read(previous, None if Path(previous).is_dir() else tracking_uri or record.store) if previous else None
    reports.write(reports.html(record, previous=before, bundle=bundle), out)
    said = f"Run {record.run.id} ({record.run.name}, {record.run.status}) -> {out}"
    say(said if record.run.evaluation else f"{said}; it has no finished evaluation, and the report says so")
