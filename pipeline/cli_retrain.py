"""The command `retrain`: arguments, printing, exit codes. All work is done elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.terminal import console, say
from pipeline.terminal import progress as _progress

if TYPE_CHECKING:
    from pipeline.manifest import Finding
    from pipeline.retrain_record import RetrainRecord

NOT_ACCEPTED = 3
"""Exit code where the gate refused, or could not decide."""

RESULTS = {
    "report.html": "The report",
    "gate.json": "The decision, patient by patient",
    "openings.jsonl": "Every opening of the sealed patients",
    "retrain.json": "The record",
}
"""Files that are named at the end, if they are there."""


def retrain(
    context: typer.Context,
    bundle: Annotated[Path, typer.Option(help="The deployed release, NAME-VERSION.zip.")],
    data: Annotated[Path, typer.Option(help="Folder with the site's studies; it is only read.")],
    out: Annotated[Path, typer.Option(help="Folder for everything; the same one to go on.")],
    key: Annotated[Path | None, typer.Option(help="Public key of who made the release.")] = None,
    hours: Annotated[
        float | None, typer.Option(help="Of fine-tuning; default: 8, or as many --epochs as given.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="How the studies are indexed; default: recipe.yaml in --data, or the release's.")
    ] = None,
    rule: Annotated[
        Path | None, typer.Option(help="YAML file with the gate's rule, if the usual one is not meant.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="Private key for the new release; default: one that is made in --out.")
    ] = None,
    trust: Annotated[str, typer.Option(help="Why to go on although a check of the release fails; it is kept.")] = "",
    previous: Annotated[
        Path | None,
        typer.Option(help="Folder of the retraining before: its patients stay where they were, sealed ones too."),
    ] = None,
    fractions: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Of patients for training, validation and sealed; default: so that the gate can decide."),
    ] = None,
    split_seed: Annotated[int, typer.Option(help="Of the order in which patients are dealt.")] = 1,
) -> None:
    """From a released model and a folder of studies to a better model that was proven not worse, or a plain no.

    Further words are keys of the release's train.json: --learning_rate 1e-4 --frozen "['encoder']" --epochs 20. The
    same command again goes on where it was stopped. Exit codes: 0 a release was made, 3 refused or not decidable, 1
    errors in the data, 2 wrong use or a release that cannot be trusted, 130 interrupted.
    """
    from pipeline import bundle as bundles
    from pipeline.retrain import retrain as retrained
    from pipeline.retrain_plan import Plan
    from pipeline.retrain_steps import Hands
    from pipeline.told_child import run_told

    plan = Plan(
        release=bundle,
        data=data,
        out=out,
        key=key,
        trust=trust,
        hours=hours,
        recipe=recipe,
        rule=rule,
        sign=sign,
        previous=previous,
        fractions=fractions,
        seed=split_seed,
        overrides=bundles.parse_overrides(context.args),
    )
    record = retrained(plan, Hands(run=run_told, say=_say_now, show=_show, progress=_progress))
    _print_end(record, out)
    if record.result is None or record.result.verdict != "accepted":
        raise typer.Exit(NOT_ACCEPTED)


def _print_end(record: RetrainRecord, out: Path) -> None:
    result = record.result
    if result is None:
        return
    why = result.reason.removeprefix(f"{result.verdict.capitalize()}: ")
    say(f"\n{result.verdict.upper()}: {why[:1].upper()}{why[1:]}")
    if result.release:
        say(f"The release: {out / result.release}")
    for name, what in RESULTS.items():
        if (out / name).is_file():
            say(f"{what}: {out / name}")


def _show(findings: Sequence[Finding]) -> None:
    from pipeline.cli_data import print_findings

    print_findings(findings)


def _say_now(text: str) -> None:
    """Print before a child process writes to the same place."""
    say(text)
    console().file.flush()
