"""The cases that a run reads, as MLflow's datasets: digests and counts, no path and no name of a patient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.manifest import Case, Manifest, unit_name

DIGEST_LENGTH = 32
"""Hexadecimal digits; MLflow takes up to 36."""


def dataset_inputs(manifest: Manifest, partitions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A dataset per partition, with its context.

    MLflow shows the `profile` (patients and cases) and the `schema` as they are here: the channels of the image and the
    classes of the reference. `source` holds the digests of the manifest and of the split. The dataset's own digest is
    over what its cases are: it stays the same when another partition changes.

    Args:
        manifest: of the cases.
        partitions: that the run reads.
    """
    digests = {"manifest_sha256": manifest.digest()} | manifest.split_digests()
    for partition in partitions:
        cases = manifest.partition(partition)
        profile = {f"{unit_name(manifest)}s": len({case.patient for case in cases}), "cases": len(cases)}
        yield {
            "context": partition,
            "dataset": {
                "name": manifest.name,
                "digest": content_digest(cases),
                "source_type": "overtile manifest",
                "source": json.dumps(digests),
                "profile": json.dumps(profile),
                "schema": json.dumps({"mlflow_colspec": _columns(manifest)}),
            },
        }


def content_digest(cases: Sequence[Case]) -> str:
    """A digest of the pixels of cases and of their references, in any order; of ids where a case has no digests."""
    known = sorted((case.pixels or case.sha256 or case.id, case.label_sha256 or "") for case in cases)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:DIGEST_LENGTH]


def _columns(manifest: Manifest) -> list[dict[str, str]]:
    parts = (("channel", "of the image", manifest.modality), ("class", "of the reference", manifest.labels))
    return [
        {"name": name, "type": f"{what} {number} {of}"} for what, of, named in parts for number, name in named.items()
    ]
