"""Predictions against references: a table per case and per patient, beside Otsu's threshold; and separated cells."""

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
from pipeline.checkpoint import training_of
from pipeline.errors import InputError
from pipeline.index import file_digest
from pipeline.manifest import read
from pipeline.metrics import dice, dice_empty_scored, overlap_counts, pixel_error, pooled
from pipeline.provenance import refuse_overlap
from pipeline.separation import Separation, threshold_of
from pipeline.tracking import cases_of, classes

BASELINE = "otsu"
NETWORK = "network"
"""The two methods of a table."""

WORST = 3
"""Cases that the overlay shows: those with the lowest Dice."""

PROBABILITIES = "probabilities"
"""What the postprocessing leaves beside the prediction: (classes, H, W), or (1, H, W) of class 1."""

TABLE, OVERLAY, CELLS = "evaluation.json", "worst.png", "worst_separation.png"
"""The files of an evaluation; a picture that this evaluation does not make is removed, since it is of another one."""


class CaseTable:
    """A handler of the evaluation engine: scores every case, and writes a table and pictures at its end.

    `evaluation.json` is the table, `worst.png` shows the lowest Dice and `worst_separation.png` the lowest V_Rand. An
    earlier evaluation of the same partition is replaced; one of another partition is refused before the engine starts,
    and so are cases that the checkpoint was trained on.

    Args:
        output_dir: where the files go.
        class_names: class 0, the background, first.
        manifest: path of the manifest that the cases are from.
        partition: of these cases.
        checkpoint: whose SHA-256 the table records.
        otsu_foreground: `dark` or `bright`: also score Otsu's threshold of the first channel, whose foreground
            is on this side; None: do not. For two classes only.
        membrane: class that separates cells, whose probability is scored as `pipeline.segments` says; None: do not.
        threshold: of that probability: a number, or the evaluation.json of the validation that chose it; None: choose
            it if this is the validation partition, else take 0.5.
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
        membrane: str | None = None,
        threshold: float | str | None = None,
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
        self.membrane = membrane
        self.threshold = threshold
        self.separation: Separation | None = None
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[float, np.ndarray]] = []

    def attach(self, engine: Engine) -> None:
        """Follow an engine; stands before the tracking handler, so that what is refused makes no run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, _: Engine) -> None:
        refuse_another_partition(self.output_dir, self.partition)
        manifest = read(self.manifest)
        self.about = {
            "partition": self.partition,
            "manifest": manifest.name,
            "manifest_sha256": manifest.digest(),
            **manifest.split_digests(),
            "checkpoint_sha256": file_digest(Path(self.checkpoint)),
        }
        self.about |= refuse_overlap(training_of(self.checkpoint), manifest, self.partition)
        if self.membrane is not None:
            threshold = threshold_of(self.threshold, self.partition, self.about)
            self.separation = Separation(self.class_names, membrane=self.membrane, threshold=threshold)

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
            if self.separation:
                self.separation.add(item, image, reference, output[PROBABILITIES].detach().float().cpu().numpy())

    def _keep_if_worst(
        self, case: str, image: np.ndarray, reference: np.ndarray, found: np.ndarray, counts: np.ndarray
    ) -> None:
        if reference.ndim != 2:
            return
        score = float(dice_empty_scored(counts)[1:].mean())
        picture = overlay.comparison(image, reference, found, f"{case}  Dice {score:.3f}")
        self.pictures = sorted([*self.pictures, (score, picture)], key=lambda entry: entry[0])[:WORST]

    def _write(self, engine: Engine) -> None:
        table = self.about | tabulate(self.rows, self.class_names)
        values = _scalars(table["summary"][NETWORK])
        if self.separation:
            table["separation"] = self.separation.table()
            values |= _separation_scalars(table["separation"])
        with atomic(self.output_dir / TABLE) as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n")
        rows = overlay.stack_rows([picture for _, picture in self.pictures]) if self.pictures else None
        _save_or_remove(rows, self.output_dir / OVERLAY)
        _save_or_remove(self.separation.picture() if self.separation else None, self.output_dir / CELLS)
        engine.state.metrics |= {f"{self.partition}_{name}": value for name, value in values.items()}


def refuse_another_partition(output_dir: Path, partition: str) -> None:
    """Refuse a folder that holds the evaluation of another partition.

    Raises:
        InputError: it does, or what is called evaluation.json there cannot be read.
    """
    file = output_dir / TABLE
    if not file.exists():
        return
    try:
        earlier = json.loads(file.read_text())["partition"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file}: no evaluation, it would be overwritten; give another output folder") from None
    if earlier != partition:
        raise InputError(
            f"{file} is the evaluation of the {earlier} partition; give that of the {partition} partition a folder of "
            f"its own, say {output_dir / partition}"
        )


def _save_or_remove(picture: np.ndarray | None, file: Path) -> None:
    if picture is None:
        file.unlink(missing_ok=True)
    else:
        overlay.save(picture, file)


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


def _separation_scalars(separation: dict[str, Any]) -> dict[str, float]:
    values = {"membrane_threshold": separation["threshold"]}
    for score in ("v_rand", "v_info"):
        values[score] = separation["mean"][score]
        values[f"{score}_challenge_convention"] = separation["challenge_convention"][score]
    return {name: value for name, value in values.items() if value is not None}
