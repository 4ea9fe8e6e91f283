"""Predictions against references: a table per case and per patient, beside Otsu's threshold; pictures of the worst."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from skimage.filters import threshold_otsu

from pipeline import body as bodies
from pipeline import (
    calibration,
    case_rows,
    instance_scores,
    logged_table,
    overlay,
    subgroups,
    surface_distances,
)
from pipeline.atomic import atomic
from pipeline.batches import cases_of, classes, volume_spacing_mm
from pipeline.case_pictures import CasePictures
from pipeline.checkpoint import training_of
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.manifest import read, unit_name
from pipeline.metrics import overlap_counts
from pipeline.patient_scores import INSTANCES, NETWORK, SURFACES
from pipeline.patient_table import tabulate
from pipeline.provenance import refuse_overlap
from pipeline.scoring import Scored, Scorer
from pipeline.tables import MEASURES

BASELINE = "otsu"
"""The other method of a table."""

WORST, ONE_BY_ONE = 3, 6
"""Cases with the lowest Dice that stand on one sheet, and those that are drawn in a file each."""

PROBABILITIES = "probabilities"
"""What the postprocessing leaves beside the prediction: (classes, H, W), or (1, H, W) of class 1; and the reference's
objects that a case may be loaded with, (1, H, W)."""

TABLE, OVERLAY, FOLDER = "evaluation.json", "worst.png", "pictures"
PICTURES = ("worst*.png", f"{FOLDER}/*.png")
"""The files of an evaluation; a picture that this evaluation does not make is removed, since it is of another one."""

CALIBRATION = calibration.Calibration.name
"""The key of what is known of the probabilities."""


class CaseTable:
    """A handler of the evaluation engine: scores every case, and writes a table and pictures at its end.

    `evaluation.json` is the table (see `pipeline.patient_table.tabulate`), `worst.png` shows the lowest Dice of single
    cases, where a false positive on a case without the class is a Dice of 0; volumes in three planes. An earlier
    evaluation of the same partition is replaced; one of another partition is refused before the engine starts, and so
    are cases that the checkpoint was trained on.

    Args:
        output_dir: where the files go.
        class_names: class 0, the background, first.
        manifest: path of the manifest that the cases are from.
        partition: of these cases.
        checkpoint: whose SHA-256 the table records.
        otsu_foreground: `dark` or `bright`: also score Otsu's threshold of the first channel, whose foreground
            is on this side; None: do not. For two classes only.
        measures: what is printed and recorded of the table, of `pipeline.tables.MEASURES`; all of them are in the file.
        overlay_channel: of the image, from 0: the one that the pictures show.
        body: pictures show the body alone, see `pipeline.body`; False: the whole field, as that of a microscope. No
            score depends on it.
        scorers: of more than overlap, say `pipeline.separation.Separation`.
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
        measures: Sequence[str] = ("dice", "pixel_error"),
        overlay_channel: int = 0,
        body: bool = True,
        scorers: Sequence[Scorer] = (),
    ) -> None:
        if otsu_foreground not in (None, "dark", "bright"):
            raise InputError(f"`otsu_foreground` must be dark, bright or null, got {otsu_foreground!r}")
        if otsu_foreground and len(class_names) != 2:
            raise InputError(f"Otsu's threshold separates 2 classes, this bundle has {len(class_names)}")
        if strange := [measure for measure in measures if measure not in MEASURES]:
            raise InputError(f"`measures` are of {', '.join(MEASURES)}, got {', '.join(map(str, strange))}")
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.manifest = manifest
        self.partition = partition
        self.checkpoint = checkpoint
        self.otsu_foreground = otsu_foreground
        self.measures = list(measures)
        self.overlay_channel = overlay_channel
        self.scorers = list(scorers)
        self.rows: list[dict[str, Any]] = []
        self.body = body
        self.pictures = CasePictures(self.class_names, worst=ONE_BY_ONE)

    def attach(self, engine: Engine) -> None:
        """Follow an engine; stands before the tracking handler, so that what is refused makes no run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, _: Engine) -> None:
        refuse_another_partition(self.output_dir, self.partition)
        self.cases_from = manifest = read(self.manifest)
        self.spacing_mm, self.unit = manifest.spacing_mm, unit_name(manifest)
        self.about = {
            "partition": self.partition,
            "manifest": manifest.name,
            "manifest_sha256": manifest.digest(),
            **manifest.split_digests(),
            "checkpoint_sha256": file_digest(Path(self.checkpoint)),
            "measures": self.measures,
        }
        self.about |= refuse_overlap(training_of(self.checkpoint), manifest, self.partition)
        for scorer in self.scorers:
            scorer.start(self.about | {"unit": self.unit})

    def _count(self, engine: Engine) -> None:
        for item, output in cases_of(engine):
            image = _array(output[CommonKeys.IMAGE], np.float32)
            shown = overlay.channel(image, self.overlay_channel)
            inside = bodies.mask(shown) if self.body else None
            case = Scored(
                item["id"],
                item["patient"],
                shown if inside is None else bodies.covered(shown, inside),
                classes(_array(output[CommonKeys.LABEL])),
                classes(_array(output[CommonKeys.PRED])),
                _array(output[PROBABILITIES], np.float32) if PROBABILITIES in output else None,
                _array(item[INSTANCES], np.int32)[0] if INSTANCES in item else None,
                self._spacing_mm(output[CommonKeys.LABEL]),
                inside,
            )
            counts = {NETWORK: overlap_counts(case.prediction, case.reference, len(self.class_names))}
            if self.otsu_foreground:
                baseline = otsu(image[0], self.otsu_foreground)
                counts[BASELINE] = overlap_counts(baseline, case.reference, len(self.class_names))
            volume = {"spacing_mm": case.spacing_mm} if case.reference.ndim == 3 else {}
            self.rows.append({"id": case.id, "patient": case.patient, "counts": counts} | volume)
            self.pictures.keep(case, counts[NETWORK])
            for scorer in self.scorers:
                scorer.add(case)

    def _spacing_mm(self, label: Any) -> tuple[float, ...] | None:
        """That of a volume's own affine, else the manifest's."""
        declared = self.spacing_mm if self.spacing_mm and len(self.spacing_mm) == label.ndim - 1 else None
        return volume_spacing_mm(label) or (tuple(declared) if declared else None)

    def _write(self, engine: Engine) -> None:
        table = self.about | tabulate(self.rows, self.class_names, unit=self.unit, spacing_mm=self.spacing_mm)
        values = _scalars(table["summary"][NETWORK], self.measures)
        cases = self.pictures.pictures()
        table["pictures"] = [
            {"file": f"{FOLDER}/{shown.file}", "case": shown.case, "patient": shown.patient, "rank": shown.rank}
            | {"dice": shown.dice}
            for shown in cases
        ]
        pictures: dict[str, np.ndarray | None] = {f"{FOLDER}/{shown.file}": shown.pixels for shown in cases}
        pictures[OVERLAY] = (
            overlay.stack_rows([shown.pixels for shown in cases[: min(WORST, len(self.rows))]]) if cases else None
        )
        for scorer in self.scorers:
            table[scorer.name] = scorer.table()
            values |= scorer.scalars()
            pictures[scorer.picture_name] = scorer.picture()
        table |= subgroups.tabulated(table, self.cases_from)
        pictures[subgroups.PICTURE] = subgroups.picture(table)
        with atomic(self.output_dir / TABLE) as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n")
        with atomic(self.output_dir / logged_table.FILE) as temporary:
            temporary.write_text(json.dumps(logged_table.as_logged_table(case_rows.rows(table))) + "\n")
        for stale in (*PICTURES, calibration.Calibration.picture_name, subgroups.PICTURE):
            for file in self.output_dir.glob(stale):
                file.unlink()
        for name, picture in pictures.items():
            if picture is not None:
                overlay.save(picture, self.output_dir / name)
        engine.state.metrics |= {f"{self.partition}_{name}": v for name, v in values.items() if v is not None}


def pooled_table(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of evaluations on disjoint patients as one, say of the folds of a cross-validation.

    Every patient counts once in means and intervals, whichever table it is from. Cells that were separated at a
    threshold (`separation`) are left out: each evaluation may have had one of its own.

    Args:
        tables: contents of evaluation.json files.

    Returns:
        The same keys as of one table. What the evaluations do not agree on, such as the checkpoint, is a list with one
        entry per table.

    Raises:
        InputError: there is no table, a patient is in two of them, or they differ in classes, methods or unit.
    """
    if not tables:
        raise InputError("no evaluation to pool")
    first = tables[0]
    for key in ("classes", "unit", "spacing_mm"):
        if any(table[key] != first[key] for table in tables):
            raise InputError(f"evaluations that differ in `{key}` have no common mean: {[t[key] for t in tables]}")
    if any(list(table["summary"]) != list(first["summary"]) for table in tables):
        raise InputError("evaluations of different methods have no common mean; set `otsu_foreground` alike in all")
    seen = Counter(patient["patient"] for table in tables for patient in table["patients"])
    if twice := [patient for patient, times in seen.items() if times > 1]:
        raise InputError(
            f"{first['unit']} {', '.join(twice[:5])} stands in more than one evaluation; it may count once"
        )
    rows = [
        {"id": case["id"], "patient": case["patient"]}
        | {"counts": {method: np.array(case[method]["counts"]) for method in first["summary"]}}
        | {"spacing_mm": case.get("spacing_mm")}
        for table in tables
        for case in table["cases"]
    ]
    table = _about(tables) | tabulate(rows, first["classes"], unit=first["unit"], spacing_mm=first["spacing_mm"])
    if all(INSTANCES in table for table in tables):
        table[INSTANCES] = instance_scores.joined([table[INSTANCES] for table in tables])
    if all(SURFACES in table for table in tables):
        table[SURFACES] = surface_distances.joined([table[SURFACES] for table in tables])
    if all(CALIBRATION in table for table in tables):
        table[CALIBRATION] = calibration.joined([table[CALIBRATION] for table in tables])
    return table


def _about(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What stands before the scores: one value where all tables have the same."""
    result = {
        "cases",
        "patients",
        "summary",
        INSTANCES,
        SURFACES,
        CALIBRATION,
        "separation",
        "pictures",
        subgroups.NAME,
        subgroups.ABOUT,
    }
    values = {key: [table.get(key) for table in tables] for key in tables[0] if key not in result}
    return {key: its[0] if all(value == its[0] for value in its) else its for key, its in values.items()}


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


def otsu(image: np.ndarray, foreground: str) -> np.ndarray:
    """Otsu's threshold of one image: (H, W) of any range -> (H, W) uint8, 1 on the `dark` or `bright` side."""
    if (image == image.flat[0]).all():
        return np.zeros(image.shape, np.uint8)
    bright = image > threshold_otsu(image)
    return (~bright if foreground == "dark" else bright).astype(np.uint8)


def _array(values: Any, kind: Any = None) -> np.ndarray:
    array = values.detach().cpu().float().numpy() if kind is np.float32 else values.detach().cpu().numpy()
    return array if kind is None else array.astype(kind, copy=False)


def _scalars(summary: Mapping[str, Any], measures: Sequence[str]) -> dict[str, float | None]:
    """What a run records of the network's summary, by name."""
    values: dict[str, float | None] = {}
    for measure in measures:
        mean = summary[measure]
        values |= {f"{measure}_{name}": v for name, v in mean.items()} if isinstance(mean, dict) else {measure: mean}
    return values
