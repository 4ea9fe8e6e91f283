"""An evaluation's scores by subgroup: sex, age band, institution, whatever the manifest says beside the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import charts
from pipeline.groups import LEAST, Grouping, columns, grouping
from pipeline.instance_scores import PRINTED
from pipeline.manifest import Manifest
from pipeline.metrics import bootstrap_interval
from pipeline.patient_scores import INSTANCES, SURFACES, Scores, per_patient
from pipeline.surface_distances import SCORES
from pipeline.tables import FEW, PER_CLASS

NAME, ABOUT, PICTURE = "subgroups", "subgroups_about", "subgroups.png"
"""Keys of evaluation.json, and the file of the bars."""

RESAMPLES = 4000
"""Of each bootstrap: there are many."""

MOST_PANELS = 4
"""Classes whose Dice is drawn, the first ones."""


def tabulated(table: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Scores per subgroup, for every column of the manifest that divides the evaluated patients.

    A patient counts once, with all of its cases pooled, as everywhere in the table.

    Args:
        table: an evaluation's, with all of its scores.
        manifest: that its cases are from.

    Returns:
        `subgroups`: column -> group -> `patients`, `cases`, and per measure (and class) `mean`, `interval_95`,
        `patients` (for whom it is defined), `difference` (to the mean of all other patients) and its
        `difference_interval_95`. `subgroups_about`: `left_out` (column -> why), `edges` (column -> where numbers were
        cut), `groups` (column -> patient -> group), `not_shown` (column -> how many patients are in groups that stay
        too small), `comparisons`, `leave_out_0` (of them, with an interval that does not contain 0), `note`.
    """
    cases = {case["id"]: case["patient"] for case in table["cases"]}
    found = {name: grouping(values) for name, values in columns(manifest, cases).items()}
    used = {name: groups for name, groups in found.items() if isinstance(groups, Grouping)}
    scores, sizes = per_patient(table), Counter(cases.values())
    entries = {
        name: {group: _entry(group, groups, scores, sizes, table) for group in groups.shown()}
        for name, groups in used.items()
    }
    compared, away = _compared(entries)
    return {
        NAME: entries,
        ABOUT: {
            "unit": table["unit"],
            "least": LEAST,
            "left_out": {name: reason for name, reason in found.items() if isinstance(reason, str)},
            "edges": {name: list(groups.edges) for name, groups in used.items() if groups.edges},
            "groups": {name: dict(groups.of) for name, groups in used.items()},
            "not_shown": {name: missing for name, groups in used.items() if (missing := _not_shown(groups))},
            "comparisons": compared,
            "leave_out_0": away,
            "note": _note(table, compared, away),
        },
    }


def difference_interval(group: Sequence[float], others: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the difference of two means, of patients that are in one group only.

    Both groups are resampled, each on its own. Too narrow with few patients, as `pipeline.metrics.bootstrap_interval`.

    Args:
        group: one value per patient.
        others: likewise.
        seed: of the draw.

    Returns:
        Lower and upper end; None where a group has fewer than two values.
    """
    if min(len(group), len(others)) < 2:
        return None
    if (len(group), *group) > (len(others), *others):  # the interval of a - b is that of b - a, mirrored
        low, high = difference_interval(others, group, seed) or (np.nan, np.nan)
        return -high, -low
    random = np.random.default_rng(seed)
    first, second = (
        random.choice(np.asarray(values, float), (RESAMPLES, len(values))).mean(axis=1) for values in (group, others)
    )
    low, high = np.quantile(first - second, (0.025, 0.975))
    return float(low), float(high)


def picture(table: Mapping[str, Any]) -> np.ndarray | None:
    """The bars of a table with `subgroups`, (H, W, 3) uint8; None where there are none."""
    figure = bars(table)
    return None if figure is None else charts.pixels(figure)


def bars(table: Mapping[str, Any]) -> charts.Figure | None:
    """Dice of every subgroup with its interval, a panel per class; None where there are no subgroups."""
    if not table.get(NAME):
        return None
    classes = table["classes"][1 : 1 + MOST_PANELS]
    sections = [
        (
            column,
            [
                charts.Group(group, entry["patients"], [_drawn(entry["dice"][name]) for name in classes])
                for group, entry in groups.items()
            ],
        )
        for column, groups in table[NAME].items()
    ]
    overall = [table["summary"]["network"]["dice"][name] for name in classes]
    return charts.subgroup_bars(sections, [f"Dice {name}" for name in classes], overall, table[ABOUT]["unit"])


def lines(table: Mapping[str, Any]) -> list[str]:
    """What a reader wants of the subgroups, as lines of text."""
    about, found = table[ABOUT], []
    for column, groups in table[NAME].items():
        for group, entry in groups.items():
            dice = "; ".join(f"Dice {name} {_in_words(score)}" for name, score in entry["dice"].items())
            found.append(f"{column} {group}: {entry['patients']} {about['unit']}s, {entry['cases']} cases; {dice}")
    if found:
        found = ["Subgroups:", *found, about["note"]]
    reasons: dict[str, list[str]] = {}
    for name, reason in about["left_out"].items():
        reasons.setdefault(reason, []).append(name)
    return found + [f"No subgroups by {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def _entry(
    group: str, groups: Grouping, scores: Scores, sizes: Mapping[str, int], table: Mapping[str, Any]
) -> dict[str, Any]:
    members = [patient for patient, its in groups.of.items() if its == group]
    rest = [patient for patient, its in groups.of.items() if its != group]

    def score(measure: str) -> dict[str, Any]:
        ours, theirs = (
            [v for p in patients if (v := scores[p].get(measure)) is not None] for patients in (members, rest)
        )
        return {
            "mean": float(np.mean(ours)) if ours else None,
            "interval_95": bootstrap_interval(ours, resamples=RESAMPLES),
            "patients": len(ours),
            "difference": float(np.mean(ours) - np.mean(theirs)) if ours and theirs else None,
            "difference_interval_95": difference_interval(ours, theirs),
        }

    entry: dict[str, Any] = {"patients": len(members), "cases": sum(sizes[patient] for patient in members)}
    for measure in _measures(table):
        classes = table["classes"][1:] if measure in (*PER_CLASS, *SCORES) else ()
        entry[measure] = {name: score(f"{measure}_{name}") for name in classes} if classes else score(measure)
    return entry


def _measures(table: Mapping[str, Any]) -> list[str]:
    """Dice, and what else the evaluation shows."""
    more = [*(PRINTED if INSTANCES in table else ()), *(SCORES if SURFACES in table else ())]
    return list(dict.fromkeys(["dice", *table["measures"], *more]))


def _compared(entries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[int, int]:
    """Differences with an interval, and those whose interval leaves out 0; of two groups, one is the other's mirror."""
    intervals = []
    for groups in entries.values():
        for entry in list(groups.values())[: 1 if len(groups) == 2 else None]:
            scores = [score for value in entry.values() if isinstance(value, Mapping) for score in _flat(value)]
            intervals += [score["difference_interval_95"] for score in scores if score["difference_interval_95"]]
    return len(intervals), sum(not low <= 0 <= high for low, high in intervals)


def _flat(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [value] if "difference_interval_95" in value else list(value.values())


def _not_shown(groups: Grouping) -> int:
    shown = groups.shown()
    return sum(group not in shown for group in groups.of.values())


def _note(table: Mapping[str, Any], compared: int, away: int) -> str:
    unit, units = table["unit"], len(table["patients"])
    narrow = f" Below about {FEW} {unit}s an interval is too narrow, and more of them do." if units < 2 * FEW else ""
    return (
        f"Means over {unit}s with 95 % bootstrap intervals; groups of fewer than {LEAST} {unit}s are put together. "
        f"{compared} differences of a group to all other {unit}s were looked at, measures that go together among them: "
        f"if no group differed at all, one in 20 of their 95 % intervals would still leave out 0 by chance; of these, "
        f"{away} do.{narrow} Groups may differ in more than their name: this is no proof of a cause."
    )


def _drawn(score: Mapping[str, Any]) -> tuple[float, tuple[float, float] | None] | None:
    interval = score["interval_95"]
    return None if score["mean"] is None else (score["mean"], tuple(interval) if interval else None)


def _in_words(score: Mapping[str, Any]) -> str:
    if score["mean"] is None:
        return "-"
    interval, away = score["interval_95"], score["difference_interval_95"]
    between = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    others = f", {score['difference']:+.3f} to the others ({away[0]:+.3f} to {away[1]:+.3f})" if away else ""
    return f"{score['mean']:.3f}{between}{others}"
