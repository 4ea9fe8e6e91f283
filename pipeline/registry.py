"""The model registry: a version for every finished training, what its test said, and who is `candidate` or `champion`.

What is told here may be told twice and changes nothing then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError
from pipeline.store import PARENT, LoggedModelOutput, MlflowClient, MlflowException, ModelVersion, Run
from pipeline.verdicts import NOTE, PARTITION, VERDICT, WEIGHTS, retold

CANDIDATE, CHAMPION = "candidate", "champion"
"""Aliases: the newest version, and the one that a person has decided for."""

TRAINING_RUN = "training_run"
"""Tag of an evaluation with the id of the run that trained the weights."""

MLMODEL = "MLmodel"
"""The file in a model's folder that describes it."""

LOGGED = "network"
"""The name of the logged model in its run."""


def send_model(client: MlflowClient, run_id: str, payload: Mapping[str, Any], folder: Path | None) -> None:
    """Log a model's files, register a version of it, and move `candidate` to it.

    Args:
        client: of the store.
        run_id: of the training.
        payload: `name` of the registered model or empty for none, `checkpoint_sha256`, `tags` and the `verdict`.
        folder: from `pipeline.logged_model.export`; None, or missing, where a later model has taken its place.
    """
    weights = payload[WEIGHTS]
    model = _logged(client, run_id, weights)
    if model is None or str(model.status) != "READY":
        if folder is None or not (folder / MLMODEL).is_file():
            return
        model = _log(client, run_id, weights, payload["tags"], folder)
    if payload["name"]:
        _register(client, run_id, payload, model)
    join(client, weights)


def send_description(client: MlflowClient, run_id: str, payload: Mapping[str, Any], _: Path | None) -> None:
    """Join an evaluation that is about to end, or a training, with what else the store has of its weights.

    Args:
        client: of the store.
        run_id: of the evaluation or training.
        payload: `checkpoint_sha256`.
    """
    join(client, payload[WEIGHTS], finished=run_id)


def join(client: MlflowClient, weights: str, finished: str = "") -> None:
    """Show the evaluations of weights below their training, and say what the tests found wherever these are spoken of.

    Args:
        client: of the store.
        weights: SHA-256 of the file.
        finished: id of a run that is about to end well.
    """
    training = training_of(client, weights)
    if training is not None:
        for run in _runs(client, weights):
            if run.data.tags.get(PARTITION, "training") != "training" and TRAINING_RUN not in run.data.tags:
                client.set_tag(run.info.run_id, TRAINING_RUN, training.info.run_id)
                if PARENT not in run.data.tags:
                    client.set_tag(run.info.run_id, PARENT, training.info.run_id)
    said = [run.data.tags.get(VERDICT, "") for run in tests_of(client, weights, finished)]
    if training is not None and said:
        before, note = (training.data.tags.get(tag, "") for tag in (VERDICT, NOTE))
        now = retold(before, said)
        client.set_tag(training.info.run_id, VERDICT, now)
        client.set_tag(training.info.run_id, NOTE, note.replace(f"**{before}**", f"**{now}**"))
    for version in versions_of(client, weights) if said else []:
        client.update_model_version(version.name, version.version, retold(version.description or "", said))


def training_of(client: MlflowClient, weights: str) -> Run | None:
    """The newest run that trained these weights."""
    found = _runs(client, weights)
    return next((run for run in found if run.data.tags.get(PARTITION) == "training"), None)


def tests_of(client: MlflowClient, weights: str, finished: str = "") -> list[Run]:
    """The finished evaluations of these weights on a test partition, the oldest first; `finished` is one of them."""
    of_test = [run for run in _runs(client, weights) if run.data.tags.get(PARTITION) == "test"]
    return [run for run in reversed(of_test) if run.info.status == "FINISHED" or run.info.run_id == finished]


def versions_of(client: MlflowClient, weights: str) -> list[ModelVersion]:
    """The registered versions of these weights, the newest first."""
    found = client.search_model_versions(f"tags.`{WEIGHTS}` = '{weights}'")
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def promote(client: MlflowClient, weights: str, reason: str, today: datetime) -> dict[str, str]:
    """Move `champion` to a version, by a person's decision.

    Args:
        client: of the store.
        weights: SHA-256 of the file.
        reason: of the person, in a sentence.
        today: when it was decided.

    Returns:
        `name` and `version`, `previous` (the champion before, or none) and `test` (what its test said).

    Raises:
        InputError: no reason, no version of these weights, no finished test of them, or it is the champion already.
    """
    if not reason.strip():
        raise InputError('say why: --reason "better on every subgroup, see the report of 3 May"')
    versions = versions_of(client, weights)
    if not versions:
        raise InputError(
            f"no version of these weights ({weights[:16]}) is registered in this store; a training registers one at "
            "its end, where `log_model` is true and it belongs to no comparison"
        )
    tests = tests_of(client, weights)
    version = versions[0]
    if not tests:
        raise InputError(
            f"{_title(version)} was never tested, or its test is not in this store; give `overtile evaluate` these "
            "weights, the test partition and the --tracking-uri of this store"
        )
    before = champion(client, version.name)
    if before is not None and before.version == version.version:
        raise InputError(f"{_title(version)} is the champion already")
    verdict = str(tests[-1].data.tags.get(VERDICT, "a test without a verdict"))
    previous = f"version {before.version}" if before else "none"
    tags = {"promoted_on": f"{today:%Y-%m-%d}", "promoted_because": reason.strip(), "previous_champion": previous}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
    if before is not None:
        client.set_model_version_tag(before.name, before.version, "followed_by", f"version {version.version}")
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return {"name": version.name, "version": str(version.version), "previous": previous, "test": verdict}


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that `champion` points to, or None."""
    return _aliased(client, name, CHAMPION)


def allowed_name(name: str) -> str:
    """A name that MLflow takes for a registered model."""
    return re.sub(r"[/:.]", "_", name) or "model"


def _title(version: ModelVersion) -> str:
    return f"version {version.version} of {version.name}"


def _runs(client: MlflowClient, weights: str) -> list[Run]:
    """Every run whose tag names these weights, the newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = ["attributes.start_time DESC"]
    return list(
        client.search_runs(experiments, f"tags.`{WEIGHTS}` = '{weights}'", order_by=newest) if experiments else []
    )


def _logged(client: MlflowClient, run_id: str, weights: str) -> Any:
    """The run's logged model of these weights, or None."""
    experiment = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return next((model for model in models if model.tags.get(WEIGHTS) == weights), None)


def _log(client: MlflowClient, run_id: str, weights: str, tags: Mapping[str, str], folder: Path) -> Any:
    """Create the logged model, or go on with one whose files were cut off, and send its files."""
    model = _logged(client, run_id, weights)
    if model is None:
        experiment = client.get_run(run_id).info.experiment_id
        model = client.create_logged_model(experiment, LOGGED, run_id, tags={**tags, WEIGHTS: weights})
    description = folder / MLMODEL
    description.write_text(yaml.safe_dump(yaml.safe_load(description.read_text()) | {"model_id": model.model_id}))
    client.log_model_artifacts(model.model_id, str(folder))
    known = client.get_run(run_id).outputs
    if model.model_id not in [output.model_id for output in (known.model_outputs if known else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, "READY")


def _register(client: MlflowClient, run_id: str, payload: Mapping[str, Any], model: Any) -> None:
    name, weights = payload["name"], payload[WEIGHTS]
    try:
        client.create_registered_model(name, description=payload.get("task", ""))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = [each for each in versions_of(client, weights) if each.name == name and each.run_id == run_id]
    if versions:
        version = versions[0]
    else:
        tags = {**payload["tags"], WEIGHTS: weights, "run": run_id}
        # A server finds a model by its id; without one, MLflow would look for it in this process's default store.
        served = client.tracking_uri.startswith("http")
        source = f"models:/{model.model_id}" if served else model.artifact_location
        version = client.create_model_version(
            name, source, run_id, tags=tags, description=payload[VERDICT], await_creation_for=0, model_id=model.model_id
        )
    now = _aliased(client, name, CANDIDATE)
    if now is None or int(now.version) < int(version.version):
        client.set_registered_model_alias(name, CANDIDATE, version.version)


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
