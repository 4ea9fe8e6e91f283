"""What one run says of itself at its start and at its end: its name, its tags, its note."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from platform import python_version
from typing import Any

from pipeline.digests import file_digest
from pipeline.manifest import read
from pipeline.run_notes import (
    begun_note,
    bundle_card,
    evaluation_note,
    network_text,
    run_name,
    training_note,
)
from pipeline.verdicts import (
    NOTE,
    PARTITION,
    VERDICT,
    WEIGHTS,
    Progress,
    evaluation_verdict,
    other_verdict,
    training_verdict,
)

TABLE = "evaluation.json"
"""The artifact of an evaluation that holds its scores."""

INPUT_OUTPUT = {
    "input": "an image as the bundle's preprocessing leaves it",
    "output": "logits, one channel per class (one channel alone: of class 1)",
}
"""What a logged model takes and gives."""


class RunStory:
    """Words about one run; nothing in them names a path.

    Args:
        config: the merged configuration as the bundle was started with, paths and all.
        experiment: of MLflow; stands for the bundle's name where no bundle is run.
        manifest: path of it.
        partition: that the engine reads; `training` makes it a training, any other an evaluation.
        weights: the file of the best weights of a training.
        artifacts: of an evaluation, its table among them.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        experiment: str,
        manifest: Path,
        *,
        partition: str,
        weights: Path | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        self.experiment = experiment
        self.card = bundle_card(config, experiment)
        self.network = network_text(config)
        self.manifest = manifest
        self.partition = partition
        self.weights = weights
        self.table = next((path for path in artifacts if path.name == TABLE), None)
        self.verdict = ""
        self.what = "training" if partition == "training" else f"evaluation of the {partition} partition"

    def name(self, when: datetime) -> str:
        """The run's name."""
        data = read(self.manifest).name
        return run_name(
            self.card.name, self.network, data if self.partition == "training" else f"{data} {self.partition}", when
        )

    def begun(self) -> dict[str, str]:
        """Tags of a run that begins, or is taken up again."""
        manifest = read(self.manifest)
        verdict = other_verdict(self.what, "RUNNING")
        return {
            "bundle": self.card.name,
            "bundle_version": self.card.version,
            PARTITION: self.partition,
            "manifest_sha256": manifest.digest(),
            **manifest.split_digests(),
            VERDICT: verdict,
            NOTE: begun_note(f"{self.card.name} on {manifest.name}: {self.what}", self.card, manifest, verdict),
        }

    def ended(self, status: str, progress: Progress, failure: str = "") -> dict[str, str]:
        """Tags of a run that ends.

        Args:
            status: FINISHED, FAILED or KILLED.
            progress: of a training.
            failure: why it ended before its time.
        """
        manifest = read(self.manifest)
        if self.partition == "training":
            verdict = self.verdict = training_verdict(status, progress, failure)
            tags = {VERDICT: verdict, NOTE: training_note(self.card, self.network, manifest, verdict)}
            return tags | ({WEIGHTS: self.digest()} if self.digest() else {})
        if status == "FINISHED" and (table := self._scores()):
            note = evaluation_note(self.card, self.network, manifest, table)
            return {VERDICT: evaluation_verdict(table), NOTE: note, WEIGHTS: table[WEIGHTS]}
        verdict = other_verdict(self.what, status, failure)
        title = f"{self.card.name} on {manifest.name}: {self.what}"
        return {VERDICT: verdict, NOTE: begun_note(title, self.card, manifest, verdict)}

    def model(self, digest: str) -> dict[str, Any]:
        """What is said of the logged model of a training that has ended, and of its version in the registry."""
        manifest = read(self.manifest)
        about = {
            "bundle": self.card.name,
            "bundle_version": self.card.version,
            "manifest_sha256": manifest.digest(),
            **manifest.split_digests(),
        }
        return {
            "name": self.experiment,
            "task": self.card.task,
            WEIGHTS: digest,
            "tags": about,
            VERDICT: self.verdict,
            "metadata": {**about, WEIGHTS: digest, "classes": list(manifest.labels.values()), **INPUT_OUTPUT},
        }

    def digest(self) -> str:
        """SHA-256 of the weights that a training leaves or an evaluation scores; empty where there are none."""
        if self.partition != "training":
            return str(self._scores().get(WEIGHTS, ""))
        return file_digest(self.weights) if self.weights is not None and self.weights.is_file() else ""

    def _scores(self) -> dict[str, Any]:
        """The table of an evaluation; empty where there is none."""
        there = self.table is not None and self.table.is_file()
        return dict(json.loads(self.table.read_text())) if self.table is not None and there else {}


def environment_text() -> str:
    """Every installed package and its version, as `requirements.txt` has them."""
    lines = sorted({line for one in distributions() if (line := _name_and_version(one))}, key=str.lower)
    return "\n".join([f"# Python {python_version()}", *lines]) + "\n"


def _name_and_version(package: Distribution) -> str:
    """`NAME==VERSION`; a package's description is not parsed, which over all of them takes a second."""
    head = (package.read_text("METADATA") or package.read_text("PKG-INFO") or "").partition("\n\n")[0]
    found = dict(line.split(": ", 1) for line in head.splitlines() if line.startswith(("Name: ", "Version: ")))
    return f"{found['Name']}=={found['Version']}" if len(found) == 2 else ""
