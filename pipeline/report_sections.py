"""What stands in the sections of a report that are words: the verdict, what was asked, data, learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.evaluate import BASELINE, NETWORK
from pipeline.learning_curves import MEAN, VALIDATION, is_drawn, svg
from pipeline.patient_flow import FILE
from pipeline.report_charts import embedded
from pipeline.report_figures import few, is_few, worst
from pipeline.report_pairs import Comparison
from pipeline.report_words import UNITS, between, counted, figure, listed, plural, things
from pipeline.run_record import Record, Run

SHORT = 12
"""Digits of a digest that a sentence shows."""

NOT_SCORED = (
    "These weights have not been scored on patients that were held back, so nothing here says whether the model may be "
    "used on patients. Evaluate them on the test partition first."
)

PURPOSES = {
    "training": "the weights were fitted to these",
    "validation": "these chose the epoch",
    "test": "held back for the test",
    "each in turn": "scored by a training that had not seen them",
}
"""What partitions are for."""


def state(record: Record) -> str:
    """One or two words in capitals: how far a reader may take the figures."""
    run = record.run
    if run.evaluation is None and run.status != "FINISHED":
        return {"RUNNING": "NOT FINISHED"}.get(run.status, run.status)
    if run.evaluation is None:
        return "NOT EVALUATED"
    if run.evaluation.get("partition") == "validation":
        return "VALIDATION ONLY"
    return f"EVALUATED, ON FEW {plural(run.evaluation['unit']).upper()}" if is_few(run.evaluation) else "EVALUATED"


def verdict(record: Record, model: str, intended_use: str, previous: Comparison | None = None) -> list[str]:
    """The sentences at the top of a report.

    Args:
        record: of the run.
        model: what it is called.
        intended_use: as its bundle declares; an empty text where it declares none.
        previous: the comparison with an earlier model, if there is one.
    """
    table = record.run.evaluation
    said = list(_not_scored(record, model) if table is None else _scored(table, model))
    said += [previous.short] if previous else []
    declared = f"Its makers declare as its use: “{intended_use}”." if intended_use else "Its makers declare no use."
    return [*said, declared, "This report gives figures; it does not release the model."]


def _scored(table: Mapping[str, Any], model: str) -> Iterator[str]:
    unit, units, image = table["unit"], len(table["patients"]), things(table)[0]
    weights = table.get("checkpoint_sha256") or ""
    on = f"{counted(len(table['cases']), image)} of {counted(units, unit)}"
    if isinstance(weights, list):
        yield (
            f"{model} was cross-validated on {on} of {table['manifest']}: {len(weights)} trainings, each scored on the "
            f"{plural(unit)} that it had not seen."
        )
    else:
        yield (
            f"{model} (weights {str(weights)[:SHORT]}) was scored on {on}, the {table['partition']} partition of "
            f"{table['manifest']}."
        )
    if unit in UNITS:
        yield UNITS[unit]
    for name in table["classes"][1:]:
        summary, lowest = table["summary"][NETWORK], worst(table, name)
        interval = summary["interval_95"]["dice"][name]
        ends = f" (95 % interval {between(interval)})" if interval else " (no interval)"
        low = f"; the lowest {unit} has {figure(lowest[1])}" if lowest and units > 1 else ""
        yield f"Mean Dice of {name} is {figure(summary['dice'][name])}{ends}{low}."
        if BASELINE in table["summary"]:
            simple = table["summary"][BASELINE]["dice"][name]
            yield f"Otsu's threshold, a method that learns nothing, reaches {figure(simple)} on the same images."
    yield few(table)
    if table["partition"] == "validation":
        yield "The validation partition chose the epoch of these weights, so the figures are too good; it is no test."
    yield overlap(table)


def overlap(table: Mapping[str, Any]) -> str:
    """Whether a patient of the evaluation was in the training, in a sentence."""
    patients, pixels = (_one(table.get(f"overlap_with_training_{what}")) for what in ("patients", "pixels"))
    unit = plural(table["unit"])
    if patients == pixels == "none":
        return f"None of these {unit} and none of their {things(table)[0]}s was in the training."
    image, pixel = things(table)
    if pixels == "none":
        same = f"None of these {image}s, compared {pixel} by {pixel}, was in the training"
        return f"{same}; of patients: {_known(patients)}."
    return f"Were they in the training? Patients: {_known(patients)}. {image.capitalize()}s: {_known(pixels)}."


def _known(said: str) -> str:
    return {"none": "none was", "": "not recorded"}.get(said, said)


def _one(value: Any) -> str:
    return "; ".join(sorted(set(map(str, value)))) if isinstance(value, list) else str(value or "")


def _not_scored(record: Record, model: str) -> Iterator[str]:
    run = record.run
    what = "training" if run.partition == "training" else f"evaluation of the {run.partition or 'chosen'} partition"
    if run.status == "FINISHED":
        yield f"This is a {what} of {model} that has finished."
    elif run.status == "RUNNING":
        yield f"This {what} of {model} has not finished; its figures may still change."
    else:
        why = f": {run.failure}" if run.failure else "; nobody could say why"
        yield f"This {what} of {model} {run.status}{why}."
    yield NOT_SCORED


def flow(record: Record) -> dict[str, Any]:
    """The way of the patients: as the run recorded it, else as far as older runs know it."""
    recorded = (
        None
        if record.scored
        else next((found for run in (record.run, *record.trainings) if (found := run.json(FILE))), None)
    )
    if recorded and "partitions" in recorded:
        return recorded | {"complete": True}
    table = record.run.evaluation or {}
    cases: Mapping[str, int] = record.run.dataset.get("cases", {})
    partitions: dict[str, dict[str, int | None]] = {
        name: {"patients": None, "cases": count} for name, count in cases.items()
    }
    if record.scored:
        everyone: dict[str, int | None] = {"patients": len(table["patients"]), "cases": len(table["cases"])}
        partitions = {"each in turn": everyone}
    elif table and isinstance(table.get("partition"), str):
        scored = {"patients": len(table["patients"]), "cases": len(table["cases"])}
        partitions = partitions | {table["partition"]: {**scored}}
    name = table.get("manifest") or record.run.dataset.get("name", "")
    return {"manifest": name, "unit": table.get("unit", "patient"), "partitions": partitions, "complete": False}


def split(found: Mapping[str, Any]) -> str:
    """How the cases were dealt, in a sentence."""
    how = found.get("split") or {}
    if not how:
        return f"Data set {found['manifest']}. How it was divided is not recorded with this run."
    fold = f" This is fold {how['fold']} of {how['folds']}." if "fold" in how and "folds" in how else ""
    seed = f", in an order drawn with seed {how['seed']}" if "seed" in how else ""
    return (
        f"Data set {found['manifest']}, divided by {how.get('by', 'patient')}{seed}: all images of one "
        f"{found['unit']} are in one partition.{fold}"
    )


def steps(found: Mapping[str, Any]) -> list[tuple[str, str, Sequence[str]]]:
    """What led to the usable cases: (what, how many, details)."""
    return list(_steps(found))


def _steps(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    if "found" in found:
        passed = [f"{counted(files, 'file')} passed over: {kind}" for kind, files in found["passed_over"].items()]
        yield "Found", counted(found["found"]["series"], "series"), passed
        rules = sorted(found["refused"].items(), key=lambda item: -item[1])
        told = [f"{rule}: {count:,}" for rule, count in rules]
        yield "Refused", counted(sum(count for _, count in rules), "time"), told
    if "indexed" in found:
        yield "Usable", _of(found["indexed"], found["unit"]), []


def parts(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Into what the usable cases were divided: (partition, how many, what for)."""
    return [
        (name.capitalize(), _of(counts, found["unit"]), PURPOSES.get(name, "not used"))
        for name, counts in found["partitions"].items()
        if counts.get("cases") or name in PURPOSES
    ]


def _of(counts: Mapping[str, Any], unit: str) -> str:
    cases = counted(counts["cases"], "case")
    if counts.get("patients") is None:
        return f"{cases} ({plural(unit)} not recorded)"
    return f"{counted(counts['patients'], unit)}, {cases}"


def curves(trainings: Sequence[Run]) -> list[tuple[Markup, str]]:
    """Learning curves with their sentences: of one training all of them, of several the validation of each."""
    if len(trainings) == 1:
        history, told = trainings[0].points, [*_loss(trainings[0]), *_validation(trainings[0])]
        best = max(history.get(MEAN, ()), key=lambda point: point[1], default=(None,))[0]
    else:
        history = {f"{VALIDATION}{_short(run)}": run.points[MEAN] for run in trainings if run.points.get(MEAN)}
        told, best = [_folds(trainings)], None
    if not any(points for name, points in history.items() if is_drawn(name)):
        return []
    words = " ".join(told)
    return [(embedded(svg(history, best), "learning", title="Learning curves", told=words), words)]


def _loss(run: Run) -> Iterator[str]:
    if points := run.points.get("loss"):
        (first, before), (last, after) = points[0], points[-1]
        yield (
            f"The training loss went from {figure(before)} in epoch {first} to {figure(after)} in epoch {last}; "
            "smaller is better."
        )


def _validation(run: Run) -> Iterator[str]:
    if points := run.points.get(MEAN):
        epoch, best = max(points, key=lambda point: point[1])
        yield (
            f"Dice on the validation partition was highest in epoch {epoch}, {figure(best)}: its weights were kept. "
            f"In the last epoch, {points[-1][0]}, it was {figure(points[-1][1])}."
        )


def _folds(trainings: Sequence[Run]) -> str:
    best = {_short(run): max(points, key=lambda p: p[1]) for run in trainings if (points := run.points.get(MEAN))}
    each = listed([f"{name}, {figure(value)} in epoch {epoch}" for name, (epoch, value) in best.items()])
    return f"Dice on validation was highest: {each}. The weights of these epochs were kept."


def _short(run: Run) -> str:
    return run.name.removesuffix(": training")


def asked(record: Record, bundle: str) -> list[tuple[str, str]]:
    """What was asked for: (term, text)."""
    table, run = record.run.evaluation or {}, record.run
    classes = listed(table["classes"][1:]) if table else "not recorded"
    partition = table.get("partition") or run.partition or "not recorded"
    data = table.get("manifest") or run.dataset.get("name", "not recorded")
    return [
        ("Bundle", f"{bundle} {run.tags.get('bundle_version', '(version not recorded)')}"),
        ("Data", f"{'each fold in turn' if record.scored else f'the {partition} partition'} of {data}"),
        ("To mark", classes),
        ("Trainings behind the weights", ", ".join(one.name for one in record.trainings) or "not recorded here"),
    ]
