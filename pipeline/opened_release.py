"""A release that is used straight from its zip: verified, unpacked for as long as it is needed, and told of."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.atomic import atomic
from pipeline.bundle import find
from pipeline.verify import Verified, verify

RECORD = "release.json"
"""Beside what a release has answered: which one it was, how it was checked, and why it was trusted if it was."""


@contextmanager
def opened(
    bundle: str, *, key: Path | None, trust: str = "", device: str | None = None
) -> Iterator[tuple[Path, Verified | None]]:
    """A bundle's folder; that of a release is there within the block only.

    Args:
        bundle: name under `bundles/`, a folder, or a release's zip. Only a zip is verified: what lies in a folder, its
            owner may have changed.
        key: public key of who made the release.
        trust: why to use it whatever fails.
        device: to reproduce the reference case on; None: what the bundles use here.

    Yields:
        The folder, and of a release what was found.

    Raises:
        RefusalError: a check of the release failed.
        InputError: there is no such bundle.
    """
    if not Path(bundle).is_file():
        yield find(bundle), None
        return
    with tempfile.TemporaryDirectory(prefix="overtile-release-") as temporary:
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = verify(Path(bundle), key=key, into=Path(temporary), trust=trust, device=where)
        yield found.folder, found


def write_record(found: Verified, output: Path) -> None:
    """Write which release it was into the folder of its answers, `release.json`."""
    record = {
        "name": found.name,
        "version": found.version,
        "sha256": found.sha256,
        "signer": found.signer,
        "trust": found.trust,
        "checks": [asdict(check) for check in found.checks],
    }
    with atomic(output / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
