"""A training's result as one signed file that installs and runs anywhere, and holds nothing of a patient."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import reference_case, release_archive, release_metadata, release_weights, signing
from pipeline.checkpoint import TRAINING, training_of
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.expand import dumps, release_configs
from pipeline.release_figures import figures
from pipeline.release_files import CARD, CONFIGS, LICENCE, LOGGING, METADATA, WORKFLOWS

SUFFIX = ".zip"

WEIGHTS, STATE, EVALUATION = "model.pt", "last.pt", "evaluation.json"
"""Files of a training's output folder."""

TESTED = "test"
"""The partition whose patients have shaped nothing."""


@dataclass(frozen=True)
class Training:
    """What a release needs of a training.

    Attributes:
        weights: its model.pt.
        config: as it was run, `a.b.0` -> text, without paths.
        record: what the weights were trained on, in digests: to be counted, never to be written.
        run_id: of MLflow.
        epochs: that it took.
        best_epoch: whose weights these are.
    """

    weights: Path
    config: Mapping[str, str]
    record: Mapping[str, Any]
    run_id: str
    epochs: int
    best_epoch: int


def release(
    bundle: Path,
    run: Path,
    out: Path,
    *,
    key: Path,
    version: str | None = None,
    changelog: str = "",
    evaluation: Path | Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    gate: Mapping[str, Any] | None = None,
) -> Path:
    """Write a release: a MONAI bundle with expanded configs, bare weights, our code, a card and a signature, as a zip.

    It may leave the site: what was trained and tested on is told in aggregates over five patients or more. No earlier
    file is replaced, and nothing is written unless everything is.

    Args:
        bundle: folder of the bundle that was trained, or of an unpacked release.
        run: output folder of a finished training: model.pt, last.pt and, where it was tested, evaluation.json.
        out: file to write, called NAME-VERSION.zip after bundle and version; or a folder that is there, for one
            called so.
        key: private key to sign with; made where it is missing, with the public one beside it.
        version: of the release; None: the bundle's with its last number raised.
        changelog: what is new, in one sentence; empty: what the run says of itself.
        evaluation: evaluation.json of the test partition, or its contents; None: the run's own, if it has one.
        recipe: YAML file that says how the training's dataset was indexed; None: that of the bundle, if it has one.
        gate: the verdict of a comparison with the model before, in aggregates, for the card.

    Returns:
        The zip.

    Raises:
        InputError: the training is not finished, or its files are of different trainings; the evaluation is of other
            weights; the version is not higher; the file is there already or called otherwise.
    """
    training = read_training(run)
    known = release_metadata.read(bundle)
    number = release_metadata.next_version(known["version"], version)
    target = _target(out, bundle.name, number)
    table = _evaluation(evaluation, training)
    signer = signing.private_key(key)
    with tempfile.TemporaryDirectory(prefix="overtile-release-") as temporary:
        home = Path(temporary) / bundle.name
        _write_configs(home, bundle, training.config)
        deployed = json.loads((home / CONFIGS / WORKFLOWS["predicting"]).read_text())
        tested = figures(table) if table else None
        metadata = release_metadata.metadata(
            known, version=number, changelog=changelog or _changes(training), config=deployed, tested=tested
        )
        (home / METADATA).write_text(dumps(metadata) + "\n", encoding="utf-8")
        release_weights.write(training.weights, home)
        reference_case.write(home)
        release_archive.seal(home, functools.partial(signing.sign, signer))
        release_archive.pack(home, target)
    return target


def read_training(run: Path) -> Training:
    """A finished training, from its output folder.

    Raises:
        InputError: there is none, it is not finished, or weights and state are of two trainings.
    """
    for name in (WEIGHTS, STATE):
        if not (run / name).is_file():
            raise InputError(f"{run}: no {name} in it; give the output folder of a training")
    try:
        state = torch.load(run / STATE, map_location="cpu", weights_only=True)
        finished, config = state["finished"], dict(state["config"])
        record, found = state[TRAINING], training_of(run / WEIGHTS)
        training = Training(
            run / WEIGHTS, config, record, state["run_id"], int(state["epoch"]), int(state["best_metric_epoch"])
        )
    except InputError:
        raise
    except Exception:
        raise InputError(f"{run / STATE}: not the state of a training of this version; train again") from None
    if not finished:
        raise InputError(f"{run}: this training stopped after epoch {training.epochs}; add --resume True to finish it")
    if found != record:
        raise InputError(f"{run}: {WEIGHTS} and {STATE} are of different trainings; give the folder as it was written")
    return training


def _target(out: Path, name: str, version: str) -> Path:
    """The file to write."""
    wanted = f"{name}-{version}{SUFFIX}"
    target = out / wanted if out.is_dir() else out
    if target.name != wanted:
        raise InputError(f"{out}: call it {wanted}, after bundle and version; or give another --version, or a folder")
    if target.exists():
        raise InputError(f"{target}: is there already; a release is never replaced, give a higher version")
    return target


def _evaluation(given: Path | Mapping[str, Any] | None, training: Training) -> Mapping[str, Any] | None:
    """The table of the test partition; None where the training was not tested.

    Raises:
        InputError: it cannot be read, is of another partition or of other weights.
    """
    own = training.weights.with_name(EVALUATION)
    path = own if given is None else given
    if isinstance(path, Mapping):
        table, place = path, "the evaluation"
    elif given is None and not own.is_file():
        return None
    else:
        table, place = _table(path), str(path)
    if table["partition"] != TESTED:
        if given is None:
            return None
        raise InputError(
            f"{place}: is of the {table['partition']} partition, which shaped the weights; give the test's"
        )
    if table["checkpoint_sha256"] != file_digest(training.weights):
        raise InputError(f"{place}: is the evaluation of other weights than {training.weights}; evaluate these first")
    return table


def _table(path: Path) -> Mapping[str, Any]:
    try:
        table = json.loads(path.read_text())
        return dict(table) | {key: table[key] for key in ("partition", "checkpoint_sha256", "summary", "patients")}
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path}: no evaluation; overtile evaluate writes one") from None


def _changes(training: Training) -> str:
    """What is new, as far as the run itself knows."""
    return f"weights of a new training of {training.epochs} epochs, those after epoch {training.best_epoch}"


def _write_configs(home: Path, bundle: Path, run: Mapping[str, str]) -> None:
    """The three workflows, and what every bundle has beside them."""
    for file in (CONFIGS, Path(CARD).parent, "models"):
        (home / file).mkdir(parents=True, exist_ok=True)
    for name, config in release_configs(bundle, run).items():
        (home / CONFIGS / name).write_text(dumps(config) + "\n", encoding="utf-8")
    for name in (LICENCE, LOGGING, METADATA):
        if not (bundle / name).is_file():
            raise InputError(f"{bundle}: no {name} in it; a release needs one")
        shutil.copyfile(bundle / name, home / name)
