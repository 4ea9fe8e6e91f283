"""The command `release`: arguments and printing. All work is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError
from pipeline.terminal import say

KEY = "overtile_release.key"
"""The key to sign with, beside the run's folder, where none is named."""


def release(
    run: Annotated[Path, typer.Argument(help="Output folder of a finished training.")],
    out: Annotated[Path, typer.Option(help="NAME-VERSION.zip to write, or a folder for it.")],
    bundle: Annotated[str | None, typer.Option(help="Bundle that was trained; default: what the run says.")] = None,
    key: Annotated[
        Path | None,
        typer.Option(help=f"Private key to sign with, made where it is missing; default: {KEY} beside RUN."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Default: the bundle's, with its last number raised.")] = None,
    changelog: Annotated[str, typer.Option(help="What is new, in one sentence; default: what the run says.")] = "",
    evaluation: Annotated[
        Path | None, typer.Option(help="evaluation.json of the test partition; default: that in RUN, if there is one.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe by which the dataset was indexed; goes along.")] = None,
) -> None:
    """Make one signed file of a training: a MONAI bundle with weights, code, model card and a case to check it with.

    It may leave the site: aggregates over five patients or more, nothing of a single one.
    """
    from pipeline import release as releases
    from pipeline import signing
    from pipeline.bundle import find
    from pipeline.release_training import read_training

    folder = find(bundle or _bundle_of(read_training(run).config))
    signer = key or run.resolve().parent / KEY
    fresh = not signer.exists()
    file = releases.release(
        folder, run, out, key=signer, version=version, changelog=changelog, evaluation=evaluation, recipe=recipe
    )
    public = signer.with_suffix(signing.PUBLIC)
    if fresh:
        say(f"A new key: {signer} signs, keep it secret; {public} is for whoever receives the release")
    say(f"Signed by the key with the fingerprint {signing.fingerprint(signing.private_key(signer).public_key())}")
    say(f"Read before it leaves: docs/README.md{' and recipe.yaml' if recipe else ''} in {file}")
    say(f"Release: {file}")


def _bundle_of(config: Mapping[str, str]) -> str:
    """The bundle that a run names as its experiment, as ours do."""
    from pipeline.bundle import find

    name = config.get("experiment", "")
    try:
        return str(find(name))
    except InputError:
        raise InputError(f"the run does not say which bundle was trained ({name!r} is none); give --bundle") from None
