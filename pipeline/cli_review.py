"""The command `review`: arguments and printing. All work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import review as reviewing
from pipeline.terminal import say


def review(
    folder: Annotated[Path, typer.Argument(help="Output folder of a training or an evaluation, with its mlflow.db.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = reviewing.PORT,
    host: Annotated[
        str, typer.Option(help="Interface; another than loopback lets others in, and nobody is asked for a password.")
    ] = reviewing.LOOPBACK,
) -> None:
    """Show the runs of a folder in a browser, by MLflow's own page on this machine, until Ctrl-C."""
    if sentence := reviewing.caution(folder):
        say(f"! {sentence}")
    try:
        reviewing.serve(folder, host=host, port=port, ready=lambda url: say(f"{url}\nCtrl-C ends it."))
    except KeyboardInterrupt:
        return  # which is how a page is closed, not an interruption of work
