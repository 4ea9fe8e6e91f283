"""The command `overtile`: arguments, printing, exit codes. All work is done elsewhere."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import (
    cli_compare,
    cli_data,
    cli_fingerprint,
    cli_phantom,
    cli_release,
    cli_report,
    cli_retrain,
    cli_review,
    cli_tracking,
    cli_verify,
)
from pipeline.cli_data import Folder
from pipeline.errors import INTERRUPTED, STOPPED, DataError, InputError, user_error
from pipeline.plainly import say_once
from pipeline.processes import explained, launcher, own_device, speaks
from pipeline.terminal import console
from pipeline.terminal import progress as _progress
from pipeline.terminal import say as _print

app = typer.Typer(
    help="Medical image segmentation on MONAI: index, split, audit, train, evaluate, compare, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120},
    rich_markup_mode=None,  # help in plain text: what draws boxes takes longer to load than all the rest
)
app.add_typer(cli_phantom.app, name="phantom")

MORE = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Commands that hand further words on as overrides of a bundle's keys."""


for command in (cli_data.index, cli_data.fetch, cli_data.split, cli_data.audit, cli_fingerprint.fingerprint):
    app.command()(command)


def main() -> None:
    """Run the command; a user's mistake ends it with one sentence and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop is a Ctrl-C: files half written are removed
    try:
        code = app(standalone_mode=False) or 0
    except Exception as error:
        _close_bars()
        sys.exit(_say(error))
    if code == INTERRUPTED:
        _close_bars()
        say_once(STOPPED)
        eval("0")  # Python forgets that an interrupt passed through an eval() of MONAI's; else it exits by signal
    sys.exit(code)


def _close_bars() -> None:
    """Only a training leaves one open; loading its module for nothing would cost seconds."""
    if "pipeline.progress" in sys.modules:
        sys.modules["pipeline.progress"].close_bars()


def _say(error: Exception) -> int:
    """Print the sentence for a user's mistake and give its exit code; raise again what is a defect of ours."""
    if hasattr(error, "format_message"):  # an unknown option, a missing argument
        sys.stderr.write(f"error: {error.format_message()}\n")
        return InputError.exit_code
    mistake = user_error(explained(error))
    if mistake is None:
        raise error
    say_once(f"error: {mistake}")
    return mistake.exit_code


@app.command(context_settings=MORE)
def preview(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="Manifest, or one fold of it: manifest.json#2.")],
    dataset_dir: Folder = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the pictures; default: beside the manifest.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Also show samples as this bundle augments them.")] = None,
    overlay: Annotated[list[str] | None, typer.Option(help="Config laid over the bundle's; repeat.")] = None,
    cases: Annotated[int, typer.Option(help="Cases on each sheet.")] = 12,
    seed: Annotated[int | None, typer.Option(help="Of the choice of cases; with --bundle also its seed.")] = None,
    channel: Annotated[str | None, typer.Option(help="Name or number of the channel to show.")] = None,
) -> None:
    """Draw images with their labels, to be looked at before a training; with --bundle, further words are overrides."""
    from pipeline import preview as previews
    from pipeline.augmented import augmented_sheet
    from pipeline.bundle import find

    overrides = _given({"seed": seed}, context)
    if context.args and not bundle:
        raise InputError(f"{context.args[0]} is no option of preview; overrides go with --bundle")
    home = find(bundle) if bundle else None
    places = (manifest, dataset_dir, output or previews.default_output(manifest))
    chosen: dict[str, Any] = {"seed": seed or 0, "channel": channel, "progress": _progress}
    files = previews.contact_sheets(*places, cases=cases, **chosen)
    if home:
        files.append(augmented_sheet(*places, home, overrides=overrides, overlays=overlay or (), **chosen))
    for file in files:
        _print(str(file))


@app.command(context_settings=MORE)
def run(
    context: typer.Context,
    bundle: Annotated[str, typer.Argument(help="Name under bundles/, or a path.")],
    workflow: Annotated[str, typer.Argument(help="training, evaluating or predicting.")],
    overlay: Annotated[list[str] | None, typer.Option(help="Config laid over the workflow's; repeat.")] = None,
) -> None:
    """Run a bundle's workflow; further words are overrides: --epochs 5 --manifest data/manifest.json."""
    from pipeline import bundle as bundles

    overrides = bundles.parse_overrides(context.args)
    _run(bundles.find(bundle), workflow, overrides, overlay or ())


@app.command()
def check(bundle: Annotated[str, typer.Argument(help="Name under bundles/, or a path.")]) -> None:
    """Find what would break a bundle's configs, without running them. Exit code 1 if something would."""
    from pipeline import bundle as bundles

    folder = bundles.find(bundle)
    problems = bundles.check(folder)
    for problem in problems:
        _print(problem)
    _print(f"{folder.name}: {len(problems)} problems")
    if problems:
        raise typer.Exit(DataError.exit_code)


@app.command(context_settings=MORE)
def evaluate(
    context: typer.Context,
    bundle: Annotated[str, typer.Option(help="Name under bundles/, a path, or a release's zip.")],
    manifest: Annotated[Path, typer.Option(help="Manifest of the cases.")],
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json and pictures, one per partition.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; default: models/model.pt of the bundle.")] = None,
    partition: Annotated[str, typer.Option(help="test or validation.")] = "test",
    threshold: Annotated[
        str | None, typer.Option(help="Where a membrane separates cells: validation's evaluation.json, or a number.")
    ] = None,
    dataset_dir: Folder = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: mlflow.db in --output.")] = None,
    key: cli_verify.OpenKey = None,
    trust: cli_verify.OpenTrust = "",
) -> None:
    """Score a checkpoint on a partition: a table per patient, beside Otsu's threshold; further words are overrides."""
    overrides = {
        "manifest": str(manifest),
        "output_dir": str(output),
        "partition": partition,
        "dataset_dir": str(dataset_dir) if dataset_dir else None,
        "tracking_uri": tracking_uri,
        "threshold": _number_or_path(threshold),
    }
    given = _given(overrides, context)
    with cli_verify.opened(bundle, key, trust, given.get("device"), output) as (folder, release):
        weights = {"checkpoint": str(checkpoint or folder / "models" / "model.pt")}
        _run(folder, "evaluating", weights | given, (), shown=release is None)
    table = json.loads((output / "evaluation.json").read_text())
    _print_scores(table)
    _print(f"Every case: {output / 'evaluation.json'}")
    for what, name in (
        ("ones", "worst.png"),
        ("separation", "worst_separation.png"),
        ("objects", "worst_instances.png"),
        ("surfaces", "worst_surfaces.png"),
    ):
        if (output / name).exists():
            _print(f"The worst {what}: {output / name}")
    for what, name in (("Reliability", "calibration.png"), ("Subgroups", "subgroups.png")):
        if (output / name).exists():
            _print(f"{what}: {output / name}")


@app.command(context_settings=MORE)
def predict(
    context: typer.Context,
    bundle: Annotated[str, typer.Option(help="Name under bundles/, a path, or a release's zip.")],
    source: Annotated[Path, typer.Option("--input", help="Image, volume, DICOM folder, or a folder of such.")],
    output: Annotated[Path, typer.Option(help="Folder for the label maps.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; default: models/model.pt of the bundle.")] = None,
    match: Annotated[str | None, typer.Option(help="Glob that files must match, say '*/image.tif'.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep a journal of answers; pass over those it has.")
    ] = False,
    key: cli_verify.OpenKey = None,
    trust: cli_verify.OpenTrust = "",
) -> None:
    """Write a label map for every input, in its format and geometry; further words are overrides.

    For DICOM, --output_format labelmap or nifti asks for another answer, and --channels says which series of a study is
    which channel: "{'T1': {'SeriesDescription': 't1.*'}}". Exit code 1 if an input was passed over.
    """
    overrides = {"source": str(source), "output_dir": str(output), "match": match, "probabilities": probabilities}
    given = _given(overrides | {"resume": resume or None}, context)
    given |= {"device": device} if (device := own_device(given.get("device"))) else {}
    with cli_verify.opened(bundle, key, trust, given.get("device"), output) as (folder, release):
        weights = {"checkpoint": str(checkpoint or folder / "models" / "model.pt")}
        _run(folder, "predicting", weights | given, (), shown=release is None)
    if speaks():
        _print(f"Label maps: {output}")


app.command()(cli_review.review)
app.command()(cli_tracking.runs)
app.command()(cli_tracking.sync)
app.command()(cli_tracking.promote)
app.command(context_settings=MORE)(cli_compare.compare)
app.command(context_settings=MORE)(cli_compare.crossvalidate)
app.command()(cli_report.report)
app.command()(cli_release.release)
app.command()(cli_verify.verify)
app.command(context_settings=MORE)(cli_retrain.retrain)


def _run(
    folder: Path, workflow: str, overrides: dict[str, Any], overlays: Sequence[str], *, shown: bool = True
) -> None:
    """Print the command that does the same, unless the folder is there for this alone, and do it."""
    from pipeline import bundle as bundles

    if shown and speaks():
        line = bundles.command(folder, workflow, overrides, overlays)
        _print(f"$ {line.replace('python -m', launcher(), 1)}")
    bundles.run(folder, workflow, overrides, overlays)


def _given(options: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """The options that were given, and further words as overrides: --width 8 --device cpu."""
    from pipeline import bundle as bundles

    return {key: value for key, value in options.items() if value is not None} | bundles.parse_overrides(context.args)


def _number_or_path(word: str | None) -> float | str | None:
    """A number, or a path that means the same in the bundle's folder."""
    try:
        return None if word is None else float(word)
    except ValueError:
        return str(Path(str(word)).absolute())


def _print_scores(table: dict[str, Any]) -> None:
    """The table per patient, and how well cells are separated."""
    from pipeline import calibration, instance_scores, provenance, separation, subgroups, surface_distances, tables

    checkpoint = table["checkpoint_sha256"][:12]
    _print(f"\n{table['partition']} partition of {table['manifest']}, checkpoint {checkpoint}")
    console().print(tables.scores(table))
    said = [*tables.notes(table), provenance.sentence(table)]
    _print("\n".join(said))
    if "separation" in table:
        _print("\n" + "\n".join(line for line in separation.lines(table["separation"]) if line not in said))
    if "instances" in table:
        _print("\n" + "\n".join(instance_scores.lines(table["instances"])))
    if "surface_distances" in table:
        _print("\n" + "\n".join(surface_distances.lines(table["surface_distances"])))
    if "calibration" in table:
        _print("\n" + "\n".join(calibration.lines(table["calibration"])))
    if groups := subgroups.lines(table):
        _print("\n" + "\n".join(groups))


if __name__ == "__main__":
    main()
