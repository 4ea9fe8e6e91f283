"""The models of a retraining in MLflow's registry: the deployed one is `champion`, the new one `candidate`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import bundle as bundles
from pipeline import registry
from pipeline.digests import file_digest
from pipeline.logged_model import export
from pipeline.store import MlflowClient, open_store
from pipeline.verdicts import PARTITION, WEIGHTS, evaluation_verdict

RELEASE, GATE, GATE_REASON = "release", "gate", "gate_reason"
"""Tags of a version: which release it is of, what the gate said of it, and why."""


def register_deployed(
    store: str, name: str, bundle: Path, weights: Path, *, version: str, evaluation: Mapping[str, Any]
) -> None:
    """Register the deployed model under the run that scored it; it is the champion where the store has none.

    Done twice, it is done once.

    Args:
        store: MLflow tracking URI.
        name: of the registered model.
        bundle: folder of the unpacked release.
        weights: its model.pt.
        version: of the release.
        evaluation: contents of its evaluation.json on validation.
    """
    client, digest = open_store(store), file_digest(weights)
    name = registry.allowed_name(name)
    if not registry.versions_of(client, digest):
        (network,) = bundles.components(bundle, "evaluating", {}, ["network_def"])
        tags = {RELEASE: version, "bundle": bundle.name}
        said = f"the deployed release {version}; {evaluation_verdict(evaluation)}"
        payload = {"name": name, WEIGHTS: digest, "tags": tags, "verdict": said}
        with tempfile.TemporaryDirectory(prefix="overtile-model-") as folder:
            export(network, weights, Path(folder) / "model", metadata=tags)
            registry.send_model(client, _run_of(client, digest), payload, Path(folder) / "model")
    if registry.champion(client, name) is None:
        client.set_registered_model_alias(name, registry.CHAMPION, registry.versions_of(client, digest)[0].version)


def tell_verdict(store: str, name: str, weights: Path, *, verdict: str, reason: str, version: str | None) -> None:
    """Say of the new model what the gate said; an accepted one becomes the champion.

    Args:
        store: MLflow tracking URI.
        name: of the registered model.
        weights: the new model.pt.
        verdict: of the gate.
        reason: of the verdict.
        version: of the new release; None: none was made.
    """
    client, digest = open_store(store), file_digest(weights)
    for found in registry.versions_of(client, digest):
        tags = {GATE: verdict, GATE_REASON: reason} | ({RELEASE: version} if version else {})
        for key, value in tags.items():
            client.set_model_version_tag(found.name, found.version, key, value)
        parts = [part for part in (found.description or "").split("; ") if not part.startswith("gate: ")]
        client.update_model_version(found.name, found.version, "; ".join([*parts, f"gate: {verdict}"]))
    champion = registry.champion(client, registry.allowed_name(name))
    if verdict == "accepted" and (champion is None or champion.tags.get(WEIGHTS) != digest):
        registry.promote(client, digest, reason, datetime.now(UTC))


def _run_of(client: MlflowClient, weights: str) -> str:
    """The newest evaluation of weights on the validation partition."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    where = f"tags.`{WEIGHTS}` = '{weights}' and tags.{PARTITION} = 'validation'"
    found = client.search_runs(experiments, where, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise LookupError("the run that scored the deployed model is not in this store")
    return str(found[0].info.run_id)
