"""What a reviewer reads first of an MLflow run: its name, and its note of one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import calibration, instance_scores, separation, subgroups, surface_distances, tables
from pipeline.manifest import Manifest, unit_name
from pipeline.verdicts import NETWORK, evaluation_verdict, figure

EMPTY = (
    "Where a reference lacks a class, Dice is not defined. The second and fourth column leave such cases out; the "
    "third and fifth count them as 1 where nothing was predicted, else as 0."
)
"""Both conventions for empty references."""

NOTE_LENGTH = 7500
"""MLflow refuses tags of more than 8000 characters."""

SPLIT = {
    "patient": "by patient: no patient is in two partitions",
    "cluster": "by cluster: images that look alike are in one partition; whose they are is not known",
    "image": "by image: whose they are is not known, so one patient may be in two partitions",
    "section": "by section of one specimen: partitions share it",
    "volume": "by volume: whose they are is not known, so one patient may be in two partitions",
}
"""What a split keeps apart, for a reader."""

WHERE_TRAINING = (
    "Metrics: `loss` (training), `val_mean_dice` (validation, chose the epoch), `learning_rate`, `images_per_second`.",
    "Pictures: `pictures` or `overlays`, validation cases of the best epoch with the reference and the prediction.",
    "Exact settings: `config.json` and the parameters; `environment.txt`: every installed package and its version.",
    "Data: the datasets of this run, with digests of what they hold; the tags `..._sha256` say the same of the split.",
    "Weights: the logged model, if there is one; its tag `checkpoint_sha256` is the digest of `model.pt`.",
)
WHERE_EVALUATION = (
    "Every case and patient: `evaluation.json`; the worst ones first: `worst.png` and `pictures`.",
    "Which training: the run above this one, or the one whose tag `checkpoint_sha256` is this run's.",
    "Data: the dataset of this run, with a digest of what it holds.",
)
WHERE_PARENT = (
    "Every measure: `comparison.json` with `comparison.png`, or `cross_validation.json`.",
    "Every training and its test: the runs below this one, each with its curves, pictures and table.",
)
"""What lies where in a run, one line each."""


@dataclass(frozen=True)
class BundleCard:
    """What a bundle says of itself.

    Attributes:
        name: of its folder.
        version: of its `metadata.json`.
        task: in one sentence.
        intended_use: in one sentence.
    """

    name: str
    version: str = "unknown"
    task: str = ""
    intended_use: str = "not stated"


def bundle_card(config: Mapping[str, Any], otherwise: str) -> BundleCard:
    """What the bundle says that is being run.

    Args:
        config: the merged configuration, with its `bundle_root`.
        otherwise: the name where there is no bundle.
    """
    root = Path(str(config.get("bundle_root", ".")))
    try:
        said = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return BundleCard(otherwise)
    known = {key: str(said[key]) for key in ("version", "task", "intended_use") if key in said}
    return BundleCard(root.resolve().name, **known)


def network_text(config: Mapping[str, Any]) -> str:
    """A network in a few words: `UNet width 32 depth 4`, or `resnet34`, or the name of its class."""
    encoder, width, depth = (config.get(key) for key in ("encoder", "width", "depth"))
    if isinstance(encoder, str) and not encoder.startswith(("@", "$")):
        return encoder
    if isinstance(width, int) and isinstance(depth, int):
        return f"UNet width {width} depth {depth}"
    definition = config.get("network_def")
    target = definition.get("_target_", "") if isinstance(definition, Mapping) else ""
    return str(target).rpartition(".")[2] or "a network"


def run_name(bundle: str, network: str, data: str, when: datetime) -> str:
    """`lung_segmentation | UNet width 8 depth 5 | montgomery | 2026-11-21 14:02`.

    Args:
        bundle: its name.
        network: from `network_text`.
        data: the manifest's name, and the partition of an evaluation.
        when: it began.
    """
    return f"{bundle} | {network} | {data} | {when:%Y-%m-%d %H:%M}"


def training_note(card: BundleCard, network: str, manifest: Manifest, verdict: str) -> str:
    """The page of a training, in Markdown.

    Args:
        card: of the bundle.
        network: from `network_text`.
        manifest: of its cases.
        verdict: from `training_verdict`.
    """
    return _page(
        f"Training: {card.name} on {manifest.name}",
        [
            f"**{verdict}**",
            f"{card.task}. Network: {network}. Version {card.version} of the bundle.".removeprefix(". "),
            "A validation Dice is too good as a forecast: it chose the epoch. What weights can do, a test alone says.",
        ],
        {
            "Data and split": split_lines(manifest),
            "Where to look": _list(WHERE_TRAINING),
            "Limits": _list(limits(card, manifest)),
        },
    )


def evaluation_note(card: BundleCard, network: str, manifest: Manifest, table: Mapping[str, Any]) -> str:
    """The page of an evaluation, in Markdown; `table` is that of evaluation.json."""
    return _page(
        f"Evaluation: {card.name} on the {table['partition']} partition of {manifest.name}",
        [f"**{evaluation_verdict(table)}**", f"Network: {network}. Weights: `{table['checkpoint_sha256'][:16]}`."],
        {
            "Figures": figures(table),
            **_more(table),
            "Data and split": [*split_lines(manifest), "", *_list(_overlap(table))],
            "Where to look": _list(WHERE_EVALUATION),
            "Limits": _list(limits(card, manifest)),
        },
    )


def comparison_note(card: BundleCard, manifest: Manifest, found: Mapping[str, Any], verdict: str) -> str:
    """The page of a comparison, in Markdown; `found` is that of comparison.json."""
    rows = [
        (
            f"{row['first']} - {row['second']}",
            row["measure"],
            figure(found["means"][row["first"]].get(row["measure"])),
            figure(found["means"][row["second"]].get(row["measure"])),
            figure(row["mean"], row["interval"], sign="+"),
            row["patients"],
        )
        for row in found["differences"]
        if row["measure"] in found["headline"]
    ]
    columns = ("first - second", "measure", "first", "second", "difference (95 % interval)", f"{found['unit']}s")
    variants = [f"{name}: {_settings(how)}." for name, how in found["variants"].items()]
    return _page(
        f"Comparison: {card.name} on {manifest.name}",
        [f"**{verdict}**"],
        {
            "Figures": [*markdown_table(columns, rows), "", *_list(found["cautions"])],
            "What was compared": _list([*variants, f"all of them: {_settings(found['common'])}."]),
            "Data and split": split_lines(manifest),
            "Where to look": _list(WHERE_PARENT),
            "Limits": _list(limits(card, manifest)),
        },
    )


def pooled_note(card: BundleCard, manifest: Manifest, found: Mapping[str, Any], verdict: str) -> str:
    """The page of a cross-validation, in Markdown; `found` is that of cross_validation.json."""
    return _page(
        f"Cross-validation: {card.name} on {manifest.name}",
        [f"**{verdict}**", f"Every {found['unit']} is scored once, by weights that have not seen it."],
        {
            "Figures": [*figures(found), *_list(found["cautions"])],
            **_more(found),
            "Data and split": split_lines(manifest),
            "Where to look": _list(WHERE_PARENT),
            "Limits": _list(limits(card, manifest)),
        },
    )


def begun_note(title: str, card: BundleCard, manifest: Manifest, verdict: str) -> str:
    """The page of a run without a result."""
    lines = {"Data and split": split_lines(manifest), "Limits": _list(limits(card, manifest))}
    return _page(title, [f"**{verdict}**"], lines)


def figures(table: Mapping[str, Any]) -> list[str]:
    """The figures of an evaluation: a table in Markdown with both conventions for empty references, and sentences."""
    summary, unit = table["summary"][NETWORK], table["unit"]
    single = summary["mean_over_single_cases"]
    rows = [
        (
            name,
            figure(summary["dice"][name], summary["interval_95"]["dice"].get(name)),
            figure(summary["dice_empty_scored"][name]),
            figure(single["dice_empty_references_left_out"][name]),
            figure(single["dice_empty_references_1_or_0"][name]),
        )
        for name in summary["dice"]
    ]
    found = markdown_table(
        ("class", f"Dice per {unit} (95 % interval)", f"{unit}s without it as 1 or 0", "Dice of single cases",
         "cases without it as 1 or 0"),
        rows,
    )  # fmt: skip
    return [*found, "", EMPTY, "", *_list(_sentences(table))]


def split_lines(manifest: Manifest) -> list[str]:
    """Patients and cases of every partition as a table in Markdown, and by what they were divided."""
    unit, split = unit_name(manifest), manifest.split or {}
    placed: dict[str, list[str]] = {name: [] for name in manifest.places()}
    for name, case in manifest.assigned():
        placed[name].append(case.patient)
    rows = [(name, len(set(patients)), len(patients)) for name, patients in placed.items()]
    by = str(split.get("by", "patient"))
    fold = f" Fold {split['fold']} of {split['folds']}." if "fold" in split else ""
    place = "fold" if manifest.folds() else "partition"
    table = markdown_table((place, f"{unit}s", "cases"), rows)
    return [*table, "", f"Split {SPLIT.get(by, f'by {by}')}.{fold}"]


def limits(card: BundleCard, manifest: Manifest) -> list[str]:
    """What a model or a figure may not be used for."""
    return [
        f"Intended use: {card.intended_use}.",
        f"Every figure is of the data set {manifest.name}; nothing is said of another site, scanner or labelling.",
        "A promotion to `champion` (`overtile promote`) is a person's decision and asks for a finished test.",
    ]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a table in Markdown, numbers to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines]


def _sentences(table: Mapping[str, Any]) -> list[str]:
    """All that stands beside the Dice: other measures, how far to trust the intervals, false positives, volumes."""
    summary = table["summary"]
    found = []
    for measure in table["measures"]:
        if measure == "dice":
            continue
        value, interval = summary[NETWORK][measure], summary[NETWORK]["interval_95"][measure]
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        shown = [f"{name} {figure(v, interval[name] if name else interval)}".strip() for name, v in pairs]
        found.append(f"{tables.MEASURES[measure]}: {', '.join(shown)}.")
    for method in summary:
        if method != NETWORK:
            dice = ", ".join(figure(value) for value in summary[method]["dice"].values())
            found.append(f"For comparison, {method}: Dice {dice}.")
    return found + tables.notes(table)


def _more(table: Mapping[str, Any]) -> dict[str, list[str]]:
    """A section for each further way of scoring that the evaluation has."""
    scored = {
        "Separation of cells": ("separation", separation.lines),
        "Objects": ("instances", instance_scores.lines),
        "Surfaces": ("surface_distances", surface_distances.lines),
        "Calibration": ("calibration", lambda one: calibration.lines(one)[1:-1]),  # its title, and how it is reckoned
        "Subgroups": (subgroups.NAME, lambda _: subgroups.lines(table)[1:]),
    }
    return {title: _list(lines(table[key])) for title, (key, lines) in scored.items() if table.get(key)}


def _settings(how: Mapping[str, Any]) -> str:
    """Overlays and overrides of a variant, in words."""
    given = [str(name) for name in how["overlays"]] + [f"{key} {value}" for key, value in how["overrides"].items()]
    return ", ".join(given) or "as the bundle is"


def _overlap(table: Mapping[str, Any]) -> list[str]:
    said = {what: table.get(f"overlap_with_training_{what}", "unknown") for what in ("patients", "pixels")}
    return [f"Overlap with the training's {what}: {text}." for what, text in said.items()]


def _page(title: str, lead: Iterable[str], sections: Mapping[str, Sequence[str]]) -> str:
    parts = [f"### {title}", *lead]  # MLflow's page lays the lines of a larger heading over each other
    for heading, lines in sections.items():
        parts += [f"### {heading}", "\n".join(lines)]
    page = "\n\n".join(part for part in parts if part) + "\n"
    return page if len(page) <= NOTE_LENGTH else page[:NOTE_LENGTH] + " ...\n"


def _list(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]
