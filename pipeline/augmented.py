"""A sheet of training cases with the samples that a bundle's training makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bundle as bundles
from pipeline import overlay, planes
from pipeline.errors import InputError
from pipeline.preview import SIDE, Channels, Reader, choose, heading, picture, pixels
from pipeline.progress import Progress, silent
from pipeline.seeding import Draw, SeededDataset

FILE = "preview_augmented.png"
"""Stands beside the contact sheets."""

CASES = 4
"""Rows of the sheet."""

SAMPLES = 4
"""Augmented samples in each of them."""


def augmented_sheet(
    manifest_path: str | Path,
    root: str | Path | None,
    output: Path,
    bundle: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    overlays: Sequence[str] = (),
    seed: int = 0,
    channel: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Draw training cases, each with the first samples that a bundle's training makes of it.

    They come from the bundle's own `train#dataset`, seeded as there, so these are the samples of epoch 1 (and of the
    next ones, where an epoch has too few). A row shows the case after preprocessing, then samples, all with the black
    and white of the former, so that changed contrast is seen. Where the loss takes weights of pixels, they stand below.
    Only the cases that are drawn are loaded; no network is made, and nothing is trained, tracked or written but the
    picture.

    Args:
        manifest_path: the manifest, or one fold of it.
        root: folder that its paths are relative to; None is the manifest's own folder.
        output: folder for the picture, which stays at the site.
        bundle: its folder.
        overrides: of the bundle's keys, as for a training.
        overlays: configs laid over `train.yaml`, as for a training.
        seed: chooses the cases; the samples follow the bundle's own key `seed`.
        channel: name or number of the channel to draw; None: see `pipeline.preview.channels_of`.
        progress: told about every case.

    Returns:
        The file.

    Raises:
        InputError: as `pipeline.preview` or the bundle says, or the bundle's samples are not seeded one by one.
    """
    reader = Reader.of(manifest_path, root, channel)
    settings = {"manifest": str(manifest_path), "dataset_dir": str(reader.folder), **(overrides or {})}
    dataset, sampler = bundles.components(bundle, "training", settings, ("train#dataset", "train#sampler"), overlays)
    if not isinstance(dataset, SeededDataset):
        raise InputError(f"{bundle.name}: train#dataset is no pipeline.seeding.SeededDataset, so no sample is known")
    numbers = {item["id"]: number for number, item in enumerate(dataset.cases.data)}
    known = [case for case in reader.manifest.training if case.id in numbers]
    picked = choose(known, CASES, seed=seed, foreground=reader.foreground, per_patient=1)
    rows: list[np.ndarray] = []
    for case in progress(picked, len(picked), "augmented samples"):
        draws = [Draw(1 + k // sampler.repeats, numbers[case.id], k % sampler.repeats) for k in range(SAMPLES)]
        rows += _rows(case.id, dataset, draws, reader.channels)
    about = f"{reader.manifest.name}, {bundle.name}: training cases as prepared, and samples as the network sees them"
    overlay.save(overlay.stack_rows([*heading(about, reader.manifest), *rows]), output / FILE)
    return output / FILE


def _rows(case_id: str, dataset: SeededDataset, draws: Sequence[Draw], channels: Channels) -> Iterator[np.ndarray]:
    """A case before its augmentation and its samples; below them their weights, if they have any."""
    before = dataset.cases[draws[0].number]
    items = [before, *(_first(dataset[draw]) for draw in draws)]
    captions = [(case_id, ", ".join(filter(None, ("prepared", channels.name, pixels(before["image"])))))]
    for draw, item in zip(draws, items[1:], strict=True):
        captions.append((f"epoch {draw.epoch}, sample {draw.repeat + 1}", pixels(item["image"])))
    span = overlay.window(np.asarray(before["image"])[channels.indices])
    drawn = [picture(case_id, item, channels, span, upright=True) for item in items]
    yield overlay.beside(
        [overlay.captioned(one, *lines, width=SIDE) for one, lines in zip(drawn, captions, strict=True)]
    )
    weights = [weight for item in items if (weight := _weight(item)) is not None]
    if weights:
        least, most = min(map(np.min, weights)), max(map(np.max, weights))
        about = f"loss weight {least:.2g} (black) to {most:.2g} (white)"
        heats = [overlay.fitted(overlay.heat(weight, least, most), SIDE) for weight in weights]
        lacking = [np.full((0, SIDE, 3), 255, np.uint8)] * (len(items) - len(weights))
        yield overlay.beside([*lacking, *(overlay.captioned(heat, about, width=SIDE) for heat in heats)])


def _first(sample: Any) -> Mapping[str, Any]:
    """A crop may give several samples at once, as a list."""
    return sample[0] if isinstance(sample, list) else sample


def _weight(item: Mapping[str, Any]) -> np.ndarray | None:
    """(H, W) weights of an item's pixels, of a volume's axial slice: its `weight`, or its label's second channel."""
    label = np.asarray(item["label"])
    if "weight" not in item and label.shape[0] != 2:
        return None
    weight = np.asarray(item["weight"])[0] if "weight" in item else label[1]
    if weight.ndim == 2:
        return weight
    return planes.cut(weight, planes.AXIAL, planes.most(label[0] > 0)[planes.AXIAL.axis])
