"""Compare variants of a bundle, or cross-validate one: trainings under one parent run, then one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import bundle as bundles
from pipeline import (
    calibration,
    case_rows,
    charts,
    evaluate,
    logged_table,
    overlay,
    paired,
    paired_picture,
    patient_scores,
    subgroups,
)
from pipeline.atomic import atomic
from pipeline.children import Run, Say, read_plan, run_trials, write_plan
from pipeline.configuration import pathless
from pipeline.errors import InputError
from pipeline.manifest import FOLD_MARK, Manifest, read
from pipeline.metrics import bootstrap_interval
from pipeline.parent import ParentRun
from pipeline.parent_story import ParentStory
from pipeline.trials import Plan, Trial, Variant, check, trials

COMPARISON, PICTURE, CROSS_VALIDATION = "comparison.json", "comparison.png", "cross_validation.json"
"""The files in the output folder."""


def compare(plan: Plan, *, run: Run, say: Say) -> dict[str, Any]:
    """Train every variant with every seed (on every fold), and compare the later ones with the first.

    Args:
        plan: of kind `comparison`.
        run: starts a child process.
        say: told what begins and what has ended.

    Returns:
        What is written to `comparison.json`: that of `paired.comparison`, the plan, and `cautions`.

    Raises:
        InputError: fewer than two variants, a wrong override, or the folder holds another plan.
        DataError: a training failed.
    """
    if len(plan.variants) < 2:
        raise InputError('give at least two variants, as in --variant unet="" --variant wide="--width 32"')
    with _parent(plan) as parent:
        tables = _tables(plan, parent, run, say)
        by_variant: dict[str, dict[int, Any]] = {}
        for (variant, seed), table in tables.items():
            by_variant.setdefault(variant, {})[seed] = table
        found = _about(plan, tables) | paired.comparison(by_variant)
        found["cautions"] = paired.cautions(len(found["patients"]), found["unit"], len(plan.seeds), _folds(plan))
        _write(found, plan.output / COMPARISON)
        paired_picture.save(found, plan.output / PICTURE)
        parent.log(_difference_scalars(found), [plan.output / COMPARISON, plan.output / PICTURE])
        parent.tell(found)
    return found


def cross_validate(plan: Plan, *, run: Run, say: Say) -> dict[str, Any]:
    """Train one variant on every fold and score every patient out of fold.

    Args:
        plan: of kind `cross-validation`: one variant, one seed.
        run: starts a child process.
        say: told what begins and what has ended.

    Returns:
        What is written to `cross_validation.json`: an evaluation's table of all patients, the plan, and `cautions`.

    Raises:
        InputError: the manifest has no folds, an override is wrong, or the folder holds another plan.
        DataError: a training failed.
    """
    if _folds(plan) is None:
        raise InputError(f"{plan.manifest}: {_why_no_folds(plan.manifest)}")
    with _parent(plan) as parent:
        tables = _tables(plan, parent, run, say)
        (table,) = tables.values()
        found = table | _about(plan, tables)
        found["cautions"] = paired.cautions(
            len(found["patients"]), found["unit"], len(plan.seeds), _folds(plan), each="fold"
        )
        found |= subgroups.tabulated(found, read(plan.manifest))
        _write(found, plan.output / CROSS_VALIDATION)
        parent.log(_mean_scalars(found), [plan.output / CROSS_VALIDATION, *_shown_files(found, plan.output)])
        parent.tell(found)
    return found


def _shown_files(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """The table of cases for the tracking pages, and pictures of calibration and subgroups, where there are any."""
    pictures = {subgroups.PICTURE: subgroups.picture(found)}
    if evaluate.CALIBRATION in found:
        diagrams = calibration.diagram(found[evaluate.CALIBRATION])
        pictures[calibration.Calibration.picture_name] = charts.pixels(diagrams)
    _write(logged_table.as_logged_table(case_rows.rows(found)), folder / logged_table.FILE)
    drawn = {folder / name: picture for name, picture in pictures.items() if picture is not None}
    for path, picture in drawn.items():
        overlay.save(picture, path)
    return [folder / logged_table.FILE, *drawn]


def _why_no_folds(manifest: Path) -> str:
    if "fold" in (read(manifest).split or {}):
        whole, _, number = str(manifest).rpartition(FOLD_MARK)
        return f"is one fold; give {whole} without {FOLD_MARK}{number} to train on every one"
    return "has no folds; `overtile split --folds 5` deals patients to them"


def _parent(plan: Plan) -> ParentRun:
    """The parent run, after everything was checked that can be checked before a training begins."""
    check(plan)
    key = read_plan(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    experiment = plan.common.overrides.get("experiment") or bundles.settings(plan.bundle, "training").get("experiment")
    params = {
        "kind": plan.kind,
        "bundle": plan.bundle.name,
        "variants": _variants(plan),
        "common": _shown(plan.common),
        "seeds": str(list(plan.seeds)),
        "folds": str(_folds(plan)),
        "manifest_sha256": read(plan.manifest).digest(),
        **read(plan.manifest).split_digests(),
    }
    return ParentRun(
        plan.store,
        plan.output,
        str(experiment or plan.bundle.name),
        plan.kind,
        params,
        key=key,
        created=lambda new: write_plan(plan, new),
        story=ParentStory(plan.bundle, plan.kind, plan.manifest, variants=list(_variants(plan)), folds=_folds(plan)),
    )


def _tables(plan: Plan, parent: ParentRun, run: Run, say: Say) -> dict[tuple[str, int], dict[str, Any]]:
    """Run what is not done, and give the table of all test patients per variant and seed."""
    planned = trials(plan, parent.key)
    titles = {trial.training["output_dir"]: f"{trial.title}: training" for trial in planned}
    titles |= {trial.evaluating["output_dir"]: f"{trial.title}: test" for trial in planned}
    run_trials(planned, plan, run, say, lambda: parent.name_children(titles))
    groups: dict[tuple[str, int], list[Trial]] = {}
    for trial in planned:
        groups.setdefault((trial.variant, trial.seed), []).append(trial)
    return {key: evaluate.pooled_table([_table(trial) for trial in group]) for key, group in groups.items()}


def _table(trial: Trial) -> dict[str, Any]:
    return dict(json.loads((trial.evaluation / evaluate.TABLE).read_text()))


def _about(plan: Plan, tables: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    """What was compared: enough to do it again."""
    manifest, table = read(plan.manifest), next(iter(tables.values()))
    return {
        "kind": plan.kind,
        "bundle": plan.bundle.name,
        "manifest": manifest.name,
        "manifest_sha256": manifest.digest(),
        **_split_digests(manifest, table),
        "unit": table["unit"],
        "classes": table["classes"],
        "headline": patient_scores.headline(table),
        "variants": _variants(plan),
        "common": _shown(plan.common),
        "seeds_trained": list(plan.seeds),
        "folds": _folds(plan),
    }


def _split_digests(manifest: Manifest, table: Mapping[str, Any]) -> dict[str, Any]:
    """The digests that stand in the evaluations, a list where each fold has one of its own; else the manifest's."""
    return {key: table.get(key, digest) for key, digest in manifest.split_digests().items()}


def _variants(plan: Plan) -> dict[str, Any]:
    return {variant.name: _shown(variant) for variant in plan.variants if variant.name}


def _shown(variant: Variant) -> dict[str, Any]:
    return {"overlays": list(variant.overlays), "overrides": pathless(variant.overrides)}


def _folds(plan: Plan) -> int | None:
    return None if plan.folds == (None,) else len(plan.folds)


def _difference_scalars(found: Mapping[str, Any]) -> dict[str, float]:
    values = {}
    for row in found["differences"]:
        if row["measure"] in found["headline"] and row["mean"] is not None:
            name = f"{row['first']}-{row['second']}_{row['measure']}"
            values[name] = row["mean"]
            values |= dict(zip((f"{name}_low", f"{name}_high"), row["interval"] or (), strict=False))
    return values


def _mean_scalars(found: Mapping[str, Any]) -> dict[str, float]:
    """Means over patients and the ends of their intervals, under the names that an evaluation's run has."""
    scores = patient_scores.per_patient(found)
    values = {}
    for name in found["headline"]:
        defined = [value for row in scores.values() if (value := row.get(name)) is not None]
        if defined:
            values[f"test_{name}"] = sum(defined) / len(defined)
            values |= dict(
                zip((f"test_{name}_low", f"test_{name}_high"), bootstrap_interval(defined) or (), strict=False)
            )
    return values


def _write(content: Mapping[str, Any], file: Path) -> None:
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
