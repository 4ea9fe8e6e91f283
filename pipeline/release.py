"""A training's result as one signed file that installs and runs anywhere, and holds nothing of a patient."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import (
    bill_of_materials,
    reference_case,
    release_archive,
    release_metadata,
    release_weights,
    signing,
    wheel_file,
)
from pipeline.bundle import check
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.expand import dumps, release_configs
from pipeline.release_card import Card, markdown
from pipeline.release_figures import figures
from pipeline.release_files import BILL, CARD, CONFIGS, LICENCE, LOGGING, METADATA, RECIPE, SUMS, WHEELS, WORKFLOWS
from pipeline.release_files import WEIGHTS as SAFE_WEIGHTS
from pipeline.release_recipe import write as write_recipe
from pipeline.release_training import Training, read_training

SUFFIX = ".zip"

EVALUATION = "evaluation.json"
"""The file of a training's output folder where it was tested."""

TESTED = "test"
"""The partition whose patients have shaped nothing."""


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
            weights; the bundle has changed since; the version is not higher; the file is there already or called
            otherwise.
    """
    training = read_training(run)
    known = release_metadata.read(bundle)
    number = release_metadata.next_version(known["version"], version)
    target = _target(out, bundle.name, number)
    table = _evaluation(evaluation, training)
    indexed = recipe or (bundle / RECIPE if (bundle / RECIPE).is_file() else None)
    with tempfile.TemporaryDirectory(prefix="overtile-release-") as temporary:
        home = Path(temporary) / bundle.name
        _write_configs(home, bundle, training.config)
        deployed = json.loads((home / CONFIGS / WORKFLOWS["predicting"]).read_text())
        tested = figures(table) if table else None
        metadata = release_metadata.metadata(
            known, version=number, changelog=changelog or training.in_words(), config=deployed, tested=tested
        )
        (home / METADATA).write_text(dumps(metadata) + "\n", encoding="utf-8")
        _refuse_breaks(home, run)
        release_weights.write(training.weights, home)
        reference_case.write(home)
        _write_parts(home, bundle.name, number)
        if indexed:
            write_recipe(indexed, home / RECIPE)
        signer = signing.private_key(key)
        card = Card(
            metadata, bundle.name, tested, training.counts(), training.unit, training.epochs, training.best_epoch,
            _began(training, bundle, known["version"]), gate, signing.fingerprint(signer.public_key()), bool(indexed),
        )  # fmt: skip
        (home / CARD).write_text(markdown(card), encoding="utf-8")
        release_archive.seal(home, functools.partial(signing.sign, signer))
        release_archive.pack(home, target)
    return target


def _target(out: Path, name: str, version: str) -> Path:
    """The file to write."""
    wanted = f"{name}-{version}{SUFFIX}"
    target = out if out.suffix == SUFFIX and not out.is_dir() else out / wanted
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


def _refuse_breaks(home: Path, run: Path) -> None:
    """Refuse configs that would break, or keys that nothing refers to: the bundle is not that of the training any more.

    Raises:
        InputError: there are some; names the first.
    """
    if problems := check(home):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(
            f"{run}: this training and bundle {home.name} do not go together: {problems[0]}{more}; give the bundle as "
            "it was when it was trained, or train again"
        )


def _write_parts(home: Path, name: str, version: str) -> None:
    """Our code as a wheel, and the bill of all that the release is made of and needs."""
    wheel = wheel_file.write(home / WHEELS)
    bill_of_materials.write(home / BILL, name=name, version=version, wheel=wheel, weights=home / SAFE_WEIGHTS)


def _began(training: Training, bundle: Path, version: str) -> str:
    """What the training started from; a file of the site is not told, not even by its digest."""
    if not training.started_from:
        return ""
    sums = bundle / SUMS
    released = sums.read_text().split() if sums.is_file() else ()
    return "It began from the weights of " + (
        f"version {version}." if training.started_from in released else "another training."
    )
