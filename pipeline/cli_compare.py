"""The commands `compare` and `crossvalidate`: arguments and printing. All work is done elsewhere."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import InputError
from pipeline.terminal import console, say

if TYPE_CHECKING:
    from pipeline.trials import Plan, Variant

Bundle = Annotated[str, typer.Argument(help="Name under bundles/, or a path.")]
ManifestFile = Annotated[Path, typer.Option(help="Manifest of the cases, with partitions or folds.")]
Output = Annotated[Path, typer.Option(help="Folder for every training and for the result; the same one to go on.")]
Dataset = Annotated[Path | None, typer.Option(help="Folder of the manifest's paths; default: the manifest's own.")]
Minutes = Annotated[float | None, typer.Option(help="Of wall clock for each training; default: the bundle's epochs.")]
Store = Annotated[str | None, typer.Option(help="MLflow store of all runs; default: mlflow.db in --output.")]


def compare(
    context: typer.Context,
    bundle: Bundle,
    variant: Annotated[list[str], typer.Option(help='NAME="OVERRIDES"; repeat. Later ones against the first.')],
    manifest: ManifestFile,
    output: Output,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant: seeds 0, 1, ...")] = 1,
    minutes: Minutes = None,
    dataset_dir: Dataset = None,
    tracking_uri: Store = None,
) -> None:
    """Train variants on the same data for the same time: the paired difference per patient, with its interval.

    Further words are for all variants: --batch_size 8. A manifest of folds is compared out of fold. The same command
    again goes on where it was stopped.
    """
    from pipeline import child_process, tables, trials
    from pipeline import compare as comparing

    variants = tuple(trials.parse_variant(text) for text in variant)
    common = _overrides(context, minutes)
    if "seed" in common.overrides:
        raise InputError("--seed is set for every training by this command; --seeds 2 trains with seeds 0 and 1")
    plan = trials.Plan(
        kind="comparison",
        bundle=_bundle(bundle),
        manifest=manifest,
        output=output,
        variants=variants,
        common=common,
        seeds=tuple(range(seeds)),
        folds=trials.folds_of(manifest),
        store=_store(tracking_uri, output),
        dataset_dir=dataset_dir,
    )
    _announce(plan)
    found = comparing.compare(plan, run=child_process.start_child, say=_say_now)
    say("")
    console().print(tables.paired_scores(found))
    say("")
    console().print(tables.paired_differences(found))
    say("\n" + "\n".join(found["cautions"]))
    say(f"Every measure: {output / comparing.COMPARISON}\nThe picture: {output / comparing.PICTURE}")


def crossvalidate(
    context: typer.Context,
    bundle: Bundle,
    manifest: ManifestFile,
    output: Output,
    minutes: Minutes = None,
    dataset_dir: Dataset = None,
    tracking_uri: Store = None,
) -> None:
    """Train on every fold of a manifest and score every patient out of fold: one table, one parent run.

    Further words are overrides: --width 8. The same command again goes on where it was stopped.
    """
    from pipeline import calibration, child_process, instance_scores, subgroups, surface_distances, tables, trials
    from pipeline import compare as comparing

    common = _overrides(context, minutes)
    plan = trials.Plan(
        kind="cross-validation",
        bundle=_bundle(bundle),
        manifest=manifest,
        output=output,
        variants=(trials.Variant(""),),
        common=common,
        seeds=(common.overrides.get("seed", 0),),
        folds=trials.folds_of(manifest),
        store=_store(tracking_uri, output),
        dataset_dir=dataset_dir,
    )
    _announce(plan)
    table = comparing.cross_validate(plan, run=child_process.start_child, say=_say_now)
    say("")
    console().print(tables.scores(table))
    objects = instance_scores.lines(table["instances"]) if "instances" in table else []
    surfaces = surface_distances.lines(table["surface_distances"]) if "surface_distances" in table else []
    trusted = calibration.lines(table["calibration"]) if "calibration" in table else []
    more = [*objects, *surfaces, *trusted, *subgroups.lines(table)]
    say("\n".join([*tables.notes(table), *more, *table["cautions"]]))
    say(f"Every case: {output / comparing.CROSS_VALIDATION}")


def _overrides(context: typer.Context, minutes: float | None) -> Variant:
    """What all trainings are given: further words, and the minutes."""
    from pipeline import trials

    common = trials.parse_words("", context.args)
    return common if minutes is None else replace(common, overrides=common.overrides | {"minutes": minutes})


def _bundle(name: str) -> Path:
    from pipeline import bundle as bundles

    return bundles.find(name)


def _store(tracking_uri: str | None, output: Path) -> str:
    from pipeline.store import sqlite_store

    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_store(output)


def _announce(plan: Plan) -> None:
    """Say how much is going to be trained before it begins."""
    parts = [(len(plan.variants), "variants"), (len(plan.seeds), "seeds"), (len(plan.folds), "folds")]
    shown = " x ".join(f"{count} {what}" for count, what in parts if count > 1)
    count = math.prod(number for number, _ in parts)
    minutes = plan.common.overrides.get("minutes")
    time = f", {minutes:g} minutes each: {count * minutes:g} minutes and the evaluations" if minutes else ""
    what = f"{count} trainings ({shown})" if shown else "1 training"
    say(f"{what}{time} -> {plan.output}")
    for number, variant in enumerate(plan.variants):
        for twin in plan.variants[:number]:
            if (twin.overlays, twin.overrides) == (variant.overlays, variant.overrides):
                say(f"{twin.name} and {variant.name} have the same settings")


def _say_now(text: str) -> None:
    """Print before a child process writes to the same place."""
    say(text)
    sys.stdout.flush()
