"""The previous model beside this one, patient by patient, for a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.evaluate import INSTANCES, NETWORK, SURFACES
from pipeline.metrics import FN, TP
from pipeline.paired import difference, means, per_patient
from pipeline.report_words import Table, between, counted, figure, listed, plural, signed
from pipeline.run_record import Record, of_weights
from pipeline.run_store import RunStore
from pipeline.tables import FEW

SHORT = 12
"""Digits of a digest that a sentence shows."""


@dataclass(frozen=True)
class Measure:
    """A score as a comparison shows it."""

    key: str
    title: str
    digits: int = 3
    larger_is_better: bool = True


@dataclass(frozen=True)
class Comparison:
    """What a report says of two models."""

    short: str
    said: str
    tables: tuple[Table, ...]
    runs: tuple[Record, Record]


def compared(record: Record, previous: Record) -> Comparison:
    """This model less the previous one, on the same patients.

    Raises:
        InputError: one of them was not evaluated, or they were not scored on the same patients, images, classes and
            references.
    """
    require_comparable(record, previous)
    ours, theirs = (_table(one) for one in (record, previous))
    unit = ours["unit"]
    scores = per_patient(ours), per_patient(theirs)
    measures = [m for m in _measures(ours) if all(m.key in next(iter(its.values())) for its in scores)]
    found = {measure.key: difference(*scores, measure.key) for measure in measures}
    mean = [means(its) for its in scores]
    rows = [_row(measure, found[measure.key], *(of[measure.key] for of in mean)) for measure in measures]
    head = ("Measure", "This model", "Previous", "Difference", "95 % interval", "Better", "Worse")
    note = f"Difference: this model less the previous one, per {unit}, then the mean. Better and worse: {plural(unit)}."
    summary = Table("Both models: means and paired differences", head, rows, (note,))
    dice = [measure for measure in measures if measure.key.startswith("dice_")]
    sentences = [_sentence(m, found[m.key], unit) for m in dice]
    said = " ".join([_named(previous, theirs), *sentences, _few(ours)])
    short = f"Beside the previous model: {' '.join(sentences)}"
    return Comparison(
        short, said, (summary, *(_by_patient(m, found[m.key], scores, unit) for m in dice)), (record, previous)
    )


def champion(record: Record, bundle: str) -> tuple[Record | None, str]:
    """The registered champion's evaluation on the same patients; where there is none, a sentence that says why.

    Args:
        record: of the run that it is to be set beside.
        bundle: its name, which is that of the registered model.
    """
    found = RunStore(record.store).champion(bundle) if record.store and record.run.evaluation else None
    if found is None:
        return None, "No previous model was named, and no champion of this bundle is registered in this store."
    number, weights = found
    if weights == _table(record).get("checkpoint_sha256"):
        return None, f"This model is the registered champion itself (version {number}); no earlier one was named."
    reason = "it was not evaluated in this store"
    for other in of_weights(record, weights):
        try:
            require_comparable(record, other)
        except InputError as error:
            reason = str(error).removeprefix("--previous: ").partition(";")[0]
        else:
            return other, ""
    return None, f"The registered champion (version {number}) cannot be set beside it: {reason}."


def _table(record: Record) -> Mapping[str, Any]:
    table = record.run.evaluation
    if table is None:
        raise InputError(f"run {record.run.id} ({record.run.name}) has no finished evaluation, so nothing to compare")
    return table


def require_comparable(record: Record, previous: Record) -> None:
    """Refuse two evaluations that were not made on the same patients, images, classes and references.

    Raises:
        InputError: says in what they differ.
    """
    ours, theirs = (_table(one) for one in (record, previous))
    if record.run.id == previous.run.id:
        raise InputError("--previous names the run of the report itself; name the evaluation of the model before it")
    for key, what in (("classes", "other classes"), ("unit", "another unit than"), ("partition", "another partition")):
        if ours[key] != theirs[key]:
            raise InputError(
                f"--previous: was scored on {what}: {_words(theirs[key])}, not {_words(ours[key])}; compare "
                "evaluations of one partition of one manifest"
            )
    patients, before = ({row["patient"] for row in table["patients"]} for table in (ours, theirs))
    if patients != before:
        raise InputError(
            f"--previous: was scored on other {plural(ours['unit'])}: {len(patients & before)} are in both, "
            f"{len(patients - before)} in this evaluation alone, {len(before - patients)} in the previous one alone; "
            "evaluate both models on the same partition of the same manifest"
        )
    references, earlier = (_references(table) for table in (ours, theirs))
    if references.keys() != earlier.keys():
        raise InputError("--previous: was scored on other images of these patients; evaluate both on the same manifest")
    if changed := [case for case in references if references[case] != earlier[case]]:
        raise InputError(
            f"--previous: was scored against other references, in {len(changed)} of {len(references)} cases their "
            f"sizes differ, say in {changed[0]}; evaluate both on the same manifest"
        )


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _references(table: Mapping[str, Any]) -> dict[str, list[int]]:
    """Case -> pixels of each class in its reference."""
    return {case["id"]: [row[TP] + row[FN] for row in case[NETWORK]["counts"]] for case in table["cases"]}


def _measures(table: Mapping[str, Any]) -> Iterator[Measure]:
    named = table["classes"][1:]
    for name in named:
        yield Measure(f"dice_{name}", f"Dice {name}")
    for name in named:
        yield Measure(f"iou_{name}", f"IoU {name}")
    yield Measure("miou", "mIoU")
    yield Measure("pixel_error", "Wrong pixels, as a share", 4, larger_is_better=False)
    if SURFACES in table:
        unit = table[SURFACES]["distances_in"]
        for name in named:
            yield Measure(f"hd95_{name}", f"HD95 {name}, {unit}", 2, larger_is_better=False)
            yield Measure(f"surface_dice_{name}", f"Surface Dice {name}")
    if INSTANCES in table:
        yield Measure("aji", "AJI")


def _row(measure: Measure, found: Mapping[str, Any], ours: float | None, theirs: float | None) -> list[str]:
    better, worse = _sides(measure, found)
    digits = measure.digits
    return [
        measure.title,
        figure(ours, digits),
        figure(theirs, digits),
        signed(found["mean"], digits + 1),
        between(found["interval"], digits + 1, sign=True),
        str(better),
        str(worse),
    ]


def _sides(measure: Measure, found: Mapping[str, Any]) -> tuple[int, int]:
    """How many patients are better and how many worse, beyond what the table's digits show."""
    sign = 1 if measure.larger_is_better else -1
    values = [round(sign * value, measure.digits) for value in found["by_patient"].values()]
    return sum(value > 0 for value in values), sum(value < 0 for value in values)


def _named(previous: Record, table: Mapping[str, Any]) -> str:
    weights = table.get("checkpoint_sha256")
    digest = "weights of every fold" if isinstance(weights, list) else f"weights {str(weights)[:SHORT]}"
    return f"The previous model is that of run {previous.run.name} ({digest}), scored on the same images."


def _sentence(measure: Measure, found: Mapping[str, Any], unit: str) -> str:
    if found["mean"] is None:
        return f"{measure.title} is not defined for any {unit}, so it cannot be compared."
    better, worse = _sides(measure, found)
    interval = found["interval"]
    ends = f" (95 % interval {between(interval, measure.digits + 1, sign=True)})" if interval else ""
    left_out = f", {counted(len(found['left_out']), unit)} left out" if found["left_out"] else ""
    meaning = _meaning(interval, found["patients"])
    return (
        f"{measure.title} differs by {signed(found['mean'], measure.digits + 1)}{ends} on average, better in {better} "
        f"and worse in {worse} of {counted(found['patients'], unit)}{left_out}: {meaning}."
    )


def _meaning(interval: tuple[float, float] | None, units: int) -> str:
    if interval is None:
        return "too few to say more"
    low, high = interval
    if low <= 0 <= high:
        return "neither is shown to be better"
    side = "better" if low > 0 else "worse"
    return f"this model seems {side}, too few to be sure" if units < FEW else f"this model is {side} on data like these"


def _few(table: Mapping[str, Any]) -> str:
    units, unit = len(table["patients"]), table["unit"]
    return f"With fewer than about {FEW} {plural(unit)}, as here, such intervals are too narrow." if units < FEW else ""


def _by_patient(measure: Measure, found: Mapping[str, Any], scores: Any, unit: str) -> Table:
    """Every patient with both scores, the greatest loss first; those without a score last."""
    known = sorted(found["by_patient"].items(), key=lambda entry: entry[1])
    rows = [
        [p, *(figure(its[p][measure.key], measure.digits) for its in scores), signed(found["by_patient"].get(p))]
        for p in (*(patient for patient, _ in known), *found["left_out"])
    ]
    caption = f"{measure.title} of every {unit} with both models, the greatest loss first"
    return Table(caption, (unit.capitalize(), "This model", "Previous", "Difference"), rows)


def differing_runs(comparison: Comparison) -> str:
    """In what the two models' trainings differ, as far as their bundles say, in a sentence."""
    one, other = (run.run for run in comparison.runs)
    told = [
        f"{what} {other.tags.get(tag, 'not recorded')} then, {one.tags.get(tag, 'not recorded')} now"
        for tag, what in (("bundle", "bundle"), ("bundle_version", "version"), ("code_commit", "code"))
        if one.tags.get(tag) != other.tags.get(tag)
    ]
    return f"They differ in: {listed(told)}." if told else ""
