"""The command `overtile`: arguments, printing, exit codes. All work is done elsewhere."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline import cli_compare
from pipeline.errors import INTERRUPTED, DataError, InputError, user_error
from pipeline.terminal import console
from pipeline.terminal import progress as _progress
from pipeline.terminal import say as _print

if TYPE_CHECKING:
    from pipeline.manifest import Finding, Manifest

app = typer.Typer(
    help="Medical image segmentation on MONAI: index, audit, split, train, evaluate, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
phantom_app = typer.Typer(help="Make synthetic patients with exactly known labels.", no_args_is_help=True)
app.add_typer(phantom_app, name="phantom")

Folder = Annotated[Path | None, typer.Option(help="Folder of the manifest's paths; default: the manifest's own.")]


MORE = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Commands that hand further words on as overrides of a bundle's keys."""


app.command(context_settings=MORE)(cli_compare.compare)
app.command(context_settings=MORE)(cli_compare.crossvalidate)


class SplitBy(StrEnum):
    """What is dealt to partitions as a whole."""

    patient = "patient"
    section = "section"
    cluster = "cluster"


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
        sys.stderr.write("interrupted; what was complete is on disk\n")
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
    mistake = user_error(error)
    if mistake is None:
        raise error
    sys.stderr.write(f"error: {mistake}\n")
    return mistake.exit_code


@app.command()
def index(
    root: Annotated[Path, typer.Argument(help="Folder with the images.")],
    out: Annotated[Path, typer.Option(help="Manifest to write; an earlier one keeps its partitions.")],
    recipe: Annotated[Path | None, typer.Option(help="YAML file that says what the further options would.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset.")] = None,
    image: Annotated[str | None, typer.Option(help="Pattern of the images, say '{patient}/{case}.tif'.")] = None,
    label: Annotated[str | None, typer.Option(help="Pattern of the labels, say '{patient}/{case}_mask.tif'.")] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="NAME=RAW of a class, class 0 first; RAW as 255, 128..255 or #ff0000; repeat."),
    ] = None,
    patient: Annotated[str | None, typer.Option(help="The only patient, where the pattern names none.")] = None,
    patients_unknown: Annotated[bool, typer.Option("--patients-unknown", help="Nobody knows the patients.")] = False,
    patient_id: Annotated[
        str | None, typer.Option(help="Regular expression of {patient}, with groups patient, study, COLUMN.")
    ] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Name of a channel; repeat.")] = None,
    spacing_mm: Annotated[
        tuple[float, float] | None, typer.Option(help="Height and width of a pixel, where it is known.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Pseudonym key; default: overtile.key beside the manifest.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Patient names are public: keep them.")] = False,
) -> None:
    """Read a folder into a manifest: patients, cases, digests."""
    from pipeline import index as indexing
    from pipeline import manifest as manifests
    from pipeline.patients import read_key
    from pipeline.recipe import read_recipe
    from pipeline.recipe import recipe as checked

    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    options = {
        "name": name,
        "image": image,
        "label": label,
        "classes": [_class(word) for word in classes or ()],
        "patient": patient,
        "patients_unknown": patients_unknown,
        "patient_id": patient_id,
        "modality": modality,
        "spacing_mm": spacing_mm,
        "public": public,
    }
    given = {option: value for option, value in options.items() if value}
    plan = checked((read_recipe(recipe) if recipe else {}) | given, str(recipe or ""))
    secret = None if plan.public else read_key(key or out.parent / "overtile.key")
    manifest = indexing.index(root, plan, key=secret, previous=out, progress=_progress)
    manifests.write(manifest, out)
    cases = list(manifest.cases())
    patients = len({case.patient for _, case in cases})
    of = "of unknown patients" if plan.patients_unknown else f"of {patients} patients"
    _print(f"{len(cases)} cases {of}, {len(manifest.unassigned)} unassigned -> {out}")


@app.command()
def split(
    manifest: Annotated[Path, typer.Argument(help="Manifest; its unassigned cases are dealt.")],
    fractions: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Of training, validation and test; they add up to 1. Default: 0.7 0.15 0.15."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another order of the patients.")] = 1,
    by: Annotated[
        SplitBy, typer.Option(help="By patient; by section, or by cluster of near-duplicates, only with a reason.")
    ] = SplitBy.patient,
    folds: Annotated[int | None, typer.Option(help="Folds for a cross-validation instead of partitions.")] = None,
    stratify: Annotated[str | None, typer.Option(help="Column whose values every partition gets its share of.")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the patients outside a fold that validate; default: 0.125.")
    ] = None,
    gap: Annotated[int, typer.Option(help="Sections left out between two partitions.")] = 1,
    because: Annotated[str, typer.Option(help="Why a split that is not by patient is right here.")] = "",
    dataset_dir: Folder = None,
) -> None:
    """Deal the cases to training, validation and test, or to folds: M.json#2 is then the second fold of M.json."""
    from pipeline import manifest as manifests
    from pipeline import tables
    from pipeline.split import FRACTIONS, VALIDATION, split_by_patient, split_by_section, split_into_folds

    _split_options(by, because, folds, stratify, fractions, validation)
    before = manifests.read(manifest)
    whole = _grouped(before, dataset_dir or manifest.parent, because) if by is SplitBy.cluster else before
    if by is SplitBy.section:
        after = split_by_section(whole, fractions or FRACTIONS, gap, because)
    elif folds is not None:
        share = VALIDATION if validation is None else validation
        after = split_into_folds(whole, folds, seed, by=by.value, stratify=stratify, validation=share)
    else:
        after = split_by_patient(whole, fractions or FRACTIONS, seed, by=by.value, stratify=stratify)
    manifests.write(after, manifest)
    dealt = sum(1 for _ in after.assigned()) - sum(1 for _ in before.assigned())
    unit = manifests.unit_name(after)
    console.print(tables.partitions(_counts(after), unit))
    what, place = ("section" if by is SplitBy.section else unit), ("fold" if folds else "partition")
    _print(f"{dealt} cases dealt by {what}; every earlier one kept its {place} -> {manifest}")


@app.command()
def audit(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check.")],
    dataset_dir: Folder = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings here.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="PNG of near-duplicates; default: MANIFEST's name with _near_duplicates.png.")
    ] = None,
) -> None:
    """Check a dataset: files, shapes, label values, leaks. Exit code 1 if there are errors."""
    from dataclasses import asdict

    from pipeline import audit as auditing
    from pipeline.atomic import atomic
    from pipeline.manifest import read

    root = dataset_dir or manifest.parent
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; say --dataset-dir")
    picture = pairs or manifest.with_name(f"{manifest.stem}_near_duplicates.png")
    findings = auditing.audit(read(manifest), root, picture=picture, progress=_progress)
    if json_file:
        with atomic(json_file) as temporary:
            temporary.write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    _print_findings(findings)
    errors = sum(finding.severity == "error" for finding in findings)
    _print(f"{errors} errors, {len(findings) - errors} warnings in {manifest}")
    if any(finding.rule.startswith("near-duplicate") for finding in findings):
        _print(f"near-duplicates side by side, the most alike first -> {picture}")
    if errors:
        raise typer.Exit(DataError.exit_code)


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
def runs(
    store: Annotated[str, typer.Argument(help="Folder of a training, or an MLflow tracking URI.")],
) -> None:
    """List the runs of a store; those whose process was killed outright are marked KILLED first."""
    from pipeline import tables, tracking

    uri = store
    if "://" not in store:
        if not (Path(store) / "mlflow.db").is_file():
            raise InputError(f"{store}: no mlflow.db in it; give the output folder of a training, or a tracking URI")
        uri = tracking.sqlite_store(Path(store))
    console.print(tables.runs(tracking.runs(uri)))


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
    bundle: Annotated[str, typer.Option(help="Name under bundles/, or a path.")],
    manifest: Annotated[Path, typer.Option(help="Manifest of the cases.")],
    output: Annotated[Path, typer.Option(help="Folder for evaluation.json and pictures, one per partition.")],
    checkpoint: Annotated[Path, typer.Option(help="Weights.")],
    partition: Annotated[str, typer.Option(help="test or validation.")] = "test",
    threshold: Annotated[
        str | None, typer.Option(help="Where a membrane separates cells: validation's evaluation.json, or a number.")
    ] = None,
    dataset_dir: Folder = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: mlflow.db in --output.")] = None,
) -> None:
    """Score a checkpoint on a partition: a table per patient, beside Otsu's threshold; further words are overrides."""
    from pipeline import bundle as bundles

    overrides = {
        "manifest": str(manifest),
        "output_dir": str(output),
        "partition": partition,
        "checkpoint": str(checkpoint),
        "dataset_dir": str(dataset_dir) if dataset_dir else None,
        "tracking_uri": tracking_uri,
        "threshold": _number_or_path(threshold),
    }
    _run(bundles.find(bundle), "evaluating", _given(overrides, context), ())
    table = json.loads((output / "evaluation.json").read_text())
    _print_scores(table)
    _print(f"Every case: {output / 'evaluation.json'}")
    for what, name in (("The worst ones", "worst.png"), ("The worst separation", "worst_separation.png")):
        if (output / name).exists():
            _print(f"{what}: {output / name}")


@app.command(context_settings=MORE)
def predict(
    context: typer.Context,
    bundle: Annotated[str, typer.Option(help="Name under bundles/, or a path.")],
    source: Annotated[Path, typer.Option("--input", help="Image, DICOM folder, or a folder of such.")],
    output: Annotated[Path, typer.Option(help="Folder for the label maps.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; default: models/model.pt of the bundle.")] = None,
    match: Annotated[str | None, typer.Option(help="Glob that files must match, say '*/image.tif'.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
) -> None:
    """Write a label map for every input, in its format and geometry. Exit code 1 if one was passed over."""
    from pipeline import bundle as bundles

    folder = bundles.find(bundle)
    overrides = {
        "source": str(source),
        "output_dir": str(output),
        "checkpoint": str(checkpoint or folder / "models" / "model.pt"),
        "match": match,
        "probabilities": probabilities,
    }
    _run(folder, "predicting", _given(overrides, context), ())
    _print(f"Label maps: {output}")


@phantom_app.command("em")
def phantom_em(
    folder: Annotated[Path, typer.Argument(help="Folder to write patients to.")],
    patients: Annotated[int, typer.Option(help="How many.")] = 10,
    sections: Annotated[int, typer.Option(help="Pages of each patient's stack.")] = 6,
    size: Annotated[int, typer.Option(help="Pixels of a section's side.")] = 192,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 1,
) -> None:
    """EM-like membranes: one TIFF stack of images and one of labels per patient."""
    from pipeline.phantom import write_em_patients

    write_em_patients(folder, patients=patients, sections=sections, size=size, seed=seed, progress=_progress)
    _print(f"{patients} synthetic patients -> {folder}")


@phantom_app.command("ct")
def phantom_ct(
    folder: Annotated[Path, typer.Argument(help="Empty or absent folder to write the series to.")],
    seed: Annotated[int, typer.Option(help="Another seed, another patient.")] = 1,
) -> None:
    """One CT-like DICOM series with a bright lesion."""
    from pipeline.phantom import write_ct_patient

    label = write_ct_patient(folder, seed=seed)
    _print(f"{label.shape[2]} slices, a lesion of {int(label.sum())} voxels -> {folder}")


def _run(folder: Path, workflow: str, overrides: dict[str, Any], overlays: Sequence[str]) -> None:
    """Print the command that does the same, and do it."""
    from pipeline import bundle as bundles

    _print(f"$ {bundles.command(folder, workflow, overrides, overlays)}")
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


def _split_options(
    by: SplitBy,
    because: str,
    folds: int | None,
    stratify: str | None,
    fractions: tuple[float, float, float] | None,
    validation: float | None,
) -> None:
    """Refuse options that would do nothing beside the others."""
    if because and by is SplitBy.patient:
        raise InputError("--because goes with --by section or cluster: a split by patient needs no excuse")
    if by is SplitBy.section and (folds is not None or stratify):
        raise InputError("--by section takes neither --folds nor --stratify: sections are not dealt, they are cut")
    if folds is None and validation is not None:
        raise InputError("--validation goes with --folds; for partitions say --fractions")
    if folds is not None and fractions is not None:
        raise InputError("--fractions are of partitions; with --folds say --validation")


def _grouped(manifest: Manifest, root: Path, because: str) -> Manifest:
    """The manifest with clusters of near-duplicates in the place of patients."""
    from pipeline.duplicates import clusters
    from pipeline.grouping import group_by_cluster, require_groupable

    require_groupable(manifest, because)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; say --dataset-dir")
    return group_by_cluster(manifest, clusters(manifest, root, _progress), because)


def _counts(manifest: Manifest) -> list[tuple[str, int, int]]:
    """Cases and patients of every partition or fold."""
    places = {name: [case for where, case in manifest.assigned() if where == name] for name in manifest.places()}
    if not manifest.folds():
        places["unassigned"] = manifest.unassigned
    return [(name, len(cases), len({case.patient for case in cases})) for name, cases in places.items()]


def _class(word: str) -> tuple[str, str]:
    name, equals, raw = word.rpartition("=")
    if not (name and equals and raw):
        raise InputError(f"--class {word!r}: write NAME=RAW VALUE, as in --class tumour=255")
    return name, raw


def _print_findings(findings: Sequence[Finding]) -> None:
    """One line each, in columns; a message is never wrapped, so that it can be searched for."""
    width = max((len(finding.rule) for finding in findings), default=0)
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{colour}]{finding.severity:<7}[/]  {finding.rule:<{width}}  {escape(finding.message)}")


def _print_scores(table: dict[str, Any]) -> None:
    """The table per patient, and how well cells are separated."""
    from pipeline import provenance, tables
    from pipeline.separation import lines

    checkpoint = table["checkpoint_sha256"][:12]
    _print(f"\n{table['partition']} partition of {table['manifest']}, checkpoint {checkpoint}")
    console.print(tables.scores(table))
    _print(provenance.sentence(table))
    if "separation" in table:
        _print("\n" + "\n".join(lines(table["separation"])))


if __name__ == "__main__":
    main()
