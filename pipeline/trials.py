"""Which trainings a comparison or a cross-validation consists of, and the settings of each."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import bundle as bundles
from pipeline.errors import InputError
from pipeline.manifest import read

SET_BY_US = ("manifest", "dataset_dir", "output_dir", "checkpoint", "tracking_uri", "resume", "parent_run", "partition")
"""Keys that every trial is given; as overrides they would be overwritten."""

SAME_FOR_ALL = ("seed", "epochs", "minutes", "experiment")
"""Keys in which variants may not differ: the comparison is of equal time, on equal seeds."""

LENGTH = "train#trainer#max_epochs"
"""Where a training reads its length from; variants may not differ there either."""

PLACEHOLDER = "0"
"""Stands for the id of the parent run while the settings are checked, before there is one."""


@dataclass(frozen=True)
class Variant:
    """One way to train: overlays over the training config, and overrides of keys."""

    name: str
    overlays: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)

    def after(self, common: Variant) -> Variant:
        """This variant with what is common to all of them before its own."""
        return Variant(self.name, common.overlays + self.overlays, common.overrides | self.overrides)


@dataclass(frozen=True)
class Plan:
    """Which trainings there are: every variant with every seed on every fold, on the same data for the same time.

    `kind` is `comparison` or `cross-validation`; `folds` are numbers counted from 1, or (None,) where the manifest's
    own partitions are used; `common` is what all variants are given before their own.
    """

    kind: str
    bundle: Path
    manifest: Path
    output: Path
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    store: str
    common: Variant = Variant("")
    dataset_dir: Path | None = None


@dataclass(frozen=True)
class Trial:
    """One training and its evaluation on the test partition; the overrides of both, and where its files go."""

    variant: str
    seed: int
    fold: int | None
    folder: Path
    overlays: tuple[str, ...]
    training: Mapping[str, Any]
    evaluating: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Name for a reader."""
        parts = [self.variant, f"seed {self.seed}", f"fold {self.fold}" if self.fold else ""]
        return ", ".join(part for part in parts if part)

    @property
    def evaluation(self) -> Path:
        """The evaluation's folder."""
        return self.folder / "evaluation"


def parse_variant(text: str) -> Variant:
    """`NAME=--key value --overlay name` -> a variant.

    Raises:
        InputError: there is no `=`, or the name cannot be that of a folder.
    """
    name, equals, words = text.partition("=")
    if not equals:
        raise InputError(f'--variant {text!r}: write NAME="OVERRIDES", as in --variant resnet34="--encoder resnet34"')
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or name == "artifacts":
        raise InputError(f"--variant {text!r}: {name!r} becomes a folder: use letters, digits, - and _")
    try:
        return parse_words(name, shlex.split(words))
    except ValueError as error:
        raise InputError(f"--variant {text!r}: {error}") from None


def parse_words(name: str, words: Sequence[str]) -> Variant:
    """`--overlay NAME` and overrides as a variant.

    Raises:
        InputError: a word is no `--key`, or a key has no value.
    """
    overlays: list[str] = []
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        option, equals, value = word.partition("=")
        if option != "--overlay":
            rest.append(word)
        elif equals or queue:
            overlays.append(value if equals else queue.pop(0))
        else:
            raise InputError("--overlay has no value; write --overlay NAME")
    return Variant(name, tuple(overlays), bundles.parse_overrides(rest))


def folds_of(manifest: Path) -> tuple[int | None, ...]:
    """The numbers of a manifest's folds, from 1; (None,) where it has partitions instead."""
    folds = read(manifest).folds()
    return tuple(range(1, folds + 1)) if folds else (None,)


def trials(plan: Plan, parent_run: str = PLACEHOLDER) -> list[Trial]:
    """All trials of a plan; variants change fastest, so that what slows a machine down slows all of them."""
    variants = [variant.after(plan.common) for variant in plan.variants]
    divided = _divided(plan.bundle, variants)
    return [
        _trial(plan, variant, overrides, seed=seed, fold=fold, parent_run=parent_run)
        for seed in plan.seeds
        for fold in plan.folds
        for variant, overrides in zip(variants, divided, strict=True)
    ]


def check(plan: Plan) -> None:
    """Refuse what would fail, or would not be compared fairly, before anything runs.

    Raises:
        InputError: names of variants or their settings are wrong; says which.
    """
    _check_names(plan)
    first_trials = trials(plan)[: len(plan.variants)]
    for trial in first_trials:
        bundles.prepare(plan.bundle, "training", trial.training, trial.overlays)
        bundles.prepare(plan.bundle, "evaluating", trial.evaluating, ())
    _check_lengths(plan, first_trials)


def _check_names(plan: Plan) -> None:
    names = [variant.name for variant in plan.variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--variant {twice} is given twice; give every variant a name of its own")
    for variant in plan.variants:
        for key in variant.overrides:
            if key in SAME_FOR_ALL:
                raise InputError(
                    f"--variant {variant.name}: --{key} is the same for all variants; give it outside of one"
                )
    for key in [*plan.common.overrides, *(key for variant in plan.variants for key in variant.overrides)]:
        if key in SET_BY_US:
            raise InputError(f"--{key} is set for every training by this command; leave it out")
        if f"{LENGTH}#".startswith(f"{key.replace('::', '#')}#"):
            raise InputError(f"--{key}: the length of a training is set for all variants at once, by --epochs")


def _check_lengths(plan: Plan, of_variants: Sequence[Trial]) -> None:
    """An overlay can change what the words of a variant may not."""
    first, *others = [_same_for_all(plan.bundle, trial) for trial in of_variants]
    for trial, found in zip(of_variants[1:], others, strict=True):
        for key in first:
            if found[key] != first[key]:
                raise InputError(
                    f"--variant {trial.variant}: its {key} is {found[key]}, but {first[key]} in "
                    f"{of_variants[0].variant}; variants are compared after equal trainings: take {key} out of the "
                    "overlay, or give it outside of the variants"
                )


def _same_for_all(bundle: Path, trial: Trial) -> dict[str, Any]:
    config = bundles.settings(bundle, "training", trial.overlays)
    length: Any = config
    for step in LENGTH.split("#"):
        length = length.get(step) if isinstance(length, Mapping) else None
    return {key: trial.training.get(key, config.get(key)) for key in SAME_FOR_ALL} | {LENGTH: length}


def _trial(
    plan: Plan,
    variant: Variant,
    overrides: tuple[dict[str, Any], dict[str, Any]],
    *,
    seed: int,
    fold: int | None,
    parent_run: str,
) -> Trial:
    folder = plan.output.absolute()
    if plan.kind == "comparison":
        folder = folder / variant.name / f"seed-{seed}"
    if fold is not None:
        folder = folder / f"fold-{fold}"
    manifest = str(plan.manifest.absolute()) + (f"#{fold}" if fold is not None else "")
    given = {"manifest": manifest, "tracking_uri": plan.store, "parent_run": parent_run}
    if plan.dataset_dir is not None:
        given["dataset_dir"] = str(plan.dataset_dir.absolute())
    to_train = {"output_dir": str(folder), "seed": seed}
    to_score = {"output_dir": str(folder / "evaluation"), "checkpoint": str(folder / "model.pt"), "partition": "test"}
    training, evaluating = given | to_train | overrides[0], given | to_score | overrides[1]
    return Trial(variant.name, seed, fold, folder, variant.overlays, training, evaluating)


def _divided(bundle: Path, variants: Sequence[Variant]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Per variant the overrides for training and for evaluation: each gets those that its configs define.

    An overlay is of the training alone; the evaluation gets what it sets of the keys that both know, say the width or
    a list such as `act`, but for those that this command sets or that MONAI looks up itself.
    """
    base, evaluating = bundles.settings(bundle, "training"), bundles.settings(bundle, "evaluating")
    shared = evaluating.keys() - {*SET_BY_US, *bundles.OUTSIDE}
    divided = []
    for variant in variants:
        training = bundles.settings(bundle, "training", variant.overlays) if variant.overlays else base
        overlaid = {key: value for key, value in training.items() if key in shared and base.get(key) != value}
        given = variant.overrides
        known = {key: key.replace("::", "#").partition("#")[0] for key in given}
        to_train = {
            key: value for key, value in given.items() if known[key] in training or known[key] not in evaluating
        }
        to_score = {key: value for key, value in given.items() if known[key] in evaluating}
        divided.append((to_train, overlaid | to_score))
    return divided
