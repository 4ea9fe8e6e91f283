"""What the run above several trainings says of itself: its name, its tags, its note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.manifest import read
from pipeline.run_notes import begun_note, bundle_card, comparison_note, pooled_note
from pipeline.verdicts import NOTE, VERDICT, comparison_verdict, other_verdict, pooled_verdict


class ParentStory:
    """Words about one comparison or cross-validation; nothing in them names a path.

    Args:
        bundle: its folder.
        kind: `comparison` or `cross-validation`.
        manifest: path of it.
        variants: names of what is compared.
        folds: how many; None for one split.
    """

    def __init__(
        self, bundle: Path, kind: str, manifest: Path, *, variants: Sequence[str] = (), folds: int | None = None
    ) -> None:
        self.card = bundle_card({"bundle_root": str(bundle)}, bundle.name)
        self.kind = kind
        self.manifest = read(manifest)
        self.variants = list(variants)
        self.folds = folds

    def name(self, when: datetime) -> str:
        """`lung_segmentation | comparison of unet and resnet34, 5 folds | montgomery | 2026-11-21 14:02`."""
        what = self.kind + (f" of {' and '.join(self.variants)}" if self.variants else "")
        folds = f", {self.folds} folds" if self.folds else ""
        return f"{self.card.name} | {what}{folds} | {self.manifest.name} | {when:%Y-%m-%d %H:%M}"

    def begun(self) -> dict[str, str]:
        """Tags of a run that begins, or is taken up again."""
        about = {"bundle": self.card.name, "bundle_version": self.card.version, "kind": self.kind}
        digests = {"manifest_sha256": self.manifest.digest(), **self.manifest.split_digests()}
        return about | digests | self.ended("RUNNING")

    def ended(self, status: str, failure: str = "") -> dict[str, str]:
        """Tags of a run without a result."""
        verdict = other_verdict(self.kind, status, failure)
        title = f"{self.card.name} on {self.manifest.name}: {self.kind}"
        return {VERDICT: verdict, NOTE: begun_note(title, self.card, self.manifest, verdict)}

    def found(self, found: Mapping[str, Any]) -> dict[str, str]:
        """Tags of a run with its result: what comparison.json or cross_validation.json holds."""
        if "differences" in found:
            verdict = comparison_verdict(found)
            return {VERDICT: verdict, NOTE: comparison_note(self.card, self.manifest, found, verdict)}
        verdict = pooled_verdict(found, self.folds or 0)
        return {VERDICT: verdict, NOTE: pooled_note(self.card, self.manifest, found, verdict)}
