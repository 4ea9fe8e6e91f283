"""Predictions against references: a table per case and per patient, beside Otsu's threshold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from skimage.filters import threshold_otsu

from pipeline import overlay
from pipeline.atomic import atomic
from pipeline.errors import InputError
from pipeline.index import file_digest
from pipeline.manifest import read
from pipeline.metrics import dice, dice_empty_scored, overlap_counts, pixel_error, pooled
from pipeline.tracking import cases_of, classes

BASELINE = "otsu"
NETWORK = "network"
"""The two methods of a table."""

WORST = 3
"""Cases that the overlay shows: those with the lowest Dice."""


class CaseTable:
    """A handler of the evaluation engine: counts every case, and writes `evaluation.json` and `worst.png` at its end.

    Args:
        output_dir: where the two files go.
        class_names: class 0, the background, first.
        manifest: path of the manifest that the cases are from.
        partition: of these cases.
        checkpoint: whose SHA-256 the table records.
        otsu_foreground: `dark` or `bright`: also score Otsu's threshold of the first channel, whose foreground
            is on this side; None: do not. For two classes only.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        *,
        manifest: str,
        partition: str,
        checkpoint: str,
        otsu_foreground: str | None = None,
    ) -> None:
        if otsu_foreground not in (None, "dark", "bright"):
            raise InputError(f"`otsu_foreground` must be dark, bright or null, got {otsu_foreground!r}")
        if otsu_foreground and len(class_names) != 2:
            raise InputError(f"Otsu's threshold separates 2 classes, this bundle has {len(class_names)}")
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.manifest = manifest
        self.partition = partition
        self.checkpoint = checkpoint
        self.otsu_foreground = otsu_foreground
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[float, np.ndarray]] = []

    def attach(self, engine: Engine) -> None:
        """Follow an engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _count(self, engine: Engine) -> None:
        for item, output in cases_of(engine):
            image = output[CommonKeys.IMAGE].detach().float().cpu().numpy()
            label = output[CommonKeys.LABEL].detach().cpu().numpy()
            prediction = output[CommonKeys.PRED].detach().cpu().numpy()
            reference, found = classes(label), classes(prediction)
            counts = {NETWORK: overlap_counts(found, reference, len(self.class_names))}
            if self.otsu_foreground:
                baseline = otsu(image[0], self.otsu_foreground)
                counts[BASELINE] = overlap_counts(baseline, reference, len(self.class_names))
            self.rows.append({"id": item["id"], "patient": item["patient"], "counts": counts})
            self._keep_if_worst(item["id"], image, reference, found, counts[NETWORK])

    def _keep_if_worst(
        self, case: str, image: np.ndarray, reference: np.ndarray, found: np.ndarray, counts: np.ndarray
    ) -> None:
        if reference.ndim != 2:
            return
        score = float(dice_empty_scored(counts)[1:].mean())
        picture = overlay.comparison(image, reference, found, f"{case}  Dice {score:.3f}")
        self.pictures = sorted([*self.pictures, (score, picture)], key=lambda entry: entry[0])[:WORST]

    def _write(self, engine: Engine) -> None:
        table = {
            "partition": self.partition,
            "manifest": read(self.manifest).name,
            "manifest_sha256": read(self.manifest).digest(),
            "split_sha256": read(self.manifest).split_digest(),
            "checkpoint_sha256": file_digest(Path(self.checkpoint)),
            **tabulate(self.rows, self.class_names),
        }
        with atomic(self.output_dir / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n")
        if self.pictures:
            sheet = overlay.stack_rows([picture for _, picture in self.pictures])
            overlay.save(sheet, self.output_dir / "worst.png")
        summary = table["summary"][NETWORK]
        engine.state.metrics |= {f"{self.partition}_{name}": value for name, value in _scalars(summary).items()}


def otsu(image: np.ndarray, foreground: str) -> np.ndarray:
    """Otsu's threshold of one image: (H, W) of any range -> (H, W) uint8, 1 on the `dark` or `bright` side."""
    if (image == image.flat[0]).all():
        return np.zeros(image.shape, np.uint8)
    bright = image > threshold_otsu(image)
    return (~bright if foreground == "dark" else bright).astype(np.uint8)


def tabulate(rows: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Scores per case and per patient, and their means over patients.

    A patient's cases are pooled: its Dice is that of all its pixels at once, never a mean over slices.

    Args:
        rows: `id`, `patient` and `counts`, a (classes, 3) array of counts per method.
        class_names: class 0, the background, first; it is not scored.

    Returns:
        `cases` and `patients`, a list of scores each, and `summary`, per method.
    """
    methods = list(rows[0]["counts"]) if rows else []
    patients: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    for row in rows:
        patients[row["patient"]].append(row["counts"])
    by_case = [
        {"id": row["id"], "patient": row["patient"]}
        | {m: _scores(row["counts"][m], class_names) | {"counts": row["counts"][m].tolist()} for m in methods}
        for row in rows
    ]
    by_patient = [
        {"patient": patient, "cases": len(counts)}
        | {m: _scores(pooled(c[m] for c in counts), class_names) for m in methods}
        for patient, counts in sorted(patients.items())
    ]
    summary = {m: _means([row[m] for row in by_patient]) for m in methods}
    return {"classes": list(class_names), "cases": by_case, "patients": by_patient, "summary": summary}


def _scores(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    named = list(class_names)[1:]
    defined, scored = dice(counts)[1:], dice_empty_scored(counts)[1:]
    return {
        "dice": {n: None if np.isnan(v) else float(v) for n, v in zip(named, defined, strict=True)},
        "dice_empty_scored": {n: float(v) for n, v in zip(named, scored, strict=True)},
        "pixel_error": pixel_error(counts),
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over patients; a Dice that is not defined for any of them stays None."""
    names = list(rows[0]["dice"])

    def mean(values: list[float | None]) -> float | None:
        defined = [value for value in values if value is not None]
        return float(np.mean(defined)) if defined else None

    return {
        "dice": {name: mean([row["dice"][name] for row in rows]) for name in names},
        "dice_empty_scored": {name: mean([row["dice_empty_scored"][name] for row in rows]) for name in names},
        "pixel_error": mean([row["pixel_error"] for row in rows]),
    }


def _scalars(summary: dict[str, Any]) -> dict[str, float]:
    values = {f"dice_{name}": value for name, value in summary["dice"].items()}
    return {k: v for k, v in (values | {"pixel_error": summary["pixel_error"]}).items() if v is not None}
