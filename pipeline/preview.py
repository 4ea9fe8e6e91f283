"""Contact sheets of a manifest's cases and of augmented samples: for a person to look at before a training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import bundle as bundles
from pipeline import overlay
from pipeline.errors import DataError, InputError
from pipeline.loading import LoadCased
from pipeline.manifest import PARTITIONS, Case, Manifest, read
from pipeline.progress import Progress, silent
from pipeline.seeding import Draw, SeededDataset, seed_of

SIDE = 256
"""Pixels of a picture's longer side on a sheet, whatever the image's size."""

COLUMNS = 4
"""Pictures side by side."""

MOST_CASES = 200
"""Of a sheet, which then has 15 megapixels: every viewer opens it."""

PER_PATIENT = 3
"""Cases of one patient before it is the next patient's turn: two with the most foreground, one without any."""

AUGMENTED_CASES = 4
"""Rows of the sheet of augmented samples."""

SAMPLES = 4
"""Augmented samples in each of them."""

SHEETS = [f"preview_{name}.png" for name in (*PARTITIONS, "unassigned")]
"""Their names; a fold's is `preview_fold_1.png`, that of augmented samples `preview_augmented.png`."""

COLOURS = (("red", "green", "blue"), ("r", "g", "b"))
"""Names of three channels that are drawn as one picture; a fourth, alpha, is left out."""


class Channels(NamedTuple):
    """What is drawn of an image: one channel in grey, or three in colour; `name` is that of one among several."""

    indices: list[int]
    name: str


def contact_sheets(
    manifest_path: str | Path,
    root: str | Path | None,
    output: Path,
    *,
    cases: int = 12,
    seed: int = 0,
    channel: str | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Draw cases of every partition, or of every fold, with the outlines of their labels.

    Args:
        manifest_path: the manifest, or one fold of it.
        root: folder that its paths are relative to; None is the manifest's own folder.
        output: folder for `preview_training.png` and so on. They show patients, so they stay at the site.
        cases: on each sheet; `choose` says which.
        seed: another seed, other cases.
        channel: name or number of the channel to draw; None: see `channels_of`.
        progress: told about every case.

    Returns:
        The files.

    Raises:
        InputError: the manifest, the folder, an image or a label cannot be read; names the case.
        DataError: image and label differ in size, or a raw label value is not declared.
    """
    if not 1 <= cases <= MOST_CASES:
        raise InputError(f"--cases must be from 1 to {MOST_CASES}, got {cases}")
    manifest = read(manifest_path)
    reader = _Reader(manifest, _folder(manifest_path, root), channels_of(manifest.modality, channel))
    files = []
    for name, members in _groups(manifest).items():
        picked = choose(members, cases, seed=seed, foreground=reader.foreground)
        tiles = [reader.tile(case) for case in progress(picked, len(picked), f"preview of {name}")]
        about = f"{manifest.name}, {name}: {_how_many(picked, members)}"
        rows = [overlay.beside(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
        files.append(output / f"preview_{name.replace(' ', '_')}.png")
        overlay.save(overlay.stack_rows([*_heading(about, manifest), *rows]), files[-1])
    if not files:
        raise DataError(f"{manifest_path}: the manifest has no cases; `overtile index` finds them")
    for old in {output / name for name in SHEETS} | set(output.glob("preview_fold_*.png")):
        if old not in files:
            old.unlink(missing_ok=True)  # of a partition that is no more
    return files


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
    """Draw training cases, each with the samples that the first epoch of a bundle's training makes of it.

    They come from the bundle's own `train#dataset`, seeded as there. A row shows the case after preprocessing, then
    samples, all with the black and white of the former, so that changed contrast is seen. Where a loss takes pixel
    weights, they stand below as heat. Nothing is trained, tracked or written but the picture.

    Args:
        manifest_path: as for `contact_sheets`.
        root: as for `contact_sheets`.
        output: folder for `preview_augmented.png`, which stays at the site.
        bundle: its folder.
        overrides: of the bundle's keys, as for a training.
        overlays: configs laid over `train.yaml`, as for a training.
        seed: chooses the cases; the samples follow the bundle's own `seed`.
        channel: as for `contact_sheets`.
        progress: told about every case.

    Returns:
        The file.

    Raises:
        InputError: as `contact_sheets` or the bundle itself says, or the bundle's samples are not seeded one by one.
    """
    manifest, folder = read(manifest_path), _folder(manifest_path, root)
    channels = channels_of(manifest.modality, channel)
    settings = {"manifest": str(manifest_path), "dataset_dir": str(folder), **(overrides or {})}
    dataset, sampler = bundles.components(bundle, "training", settings, ("train#dataset", "train#sampler"), overlays)
    if not isinstance(dataset, SeededDataset):
        raise InputError(f"{bundle.name}: train#dataset is no pipeline.seeding.SeededDataset, so no sample is known")
    numbers = {item["id"]: number for number, item in enumerate(dataset.cases.data)}
    foreground = _Reader(manifest, folder, channels).foreground
    known = [case for case in manifest.training if case.id in numbers]
    picked = choose(known, AUGMENTED_CASES, seed=seed, foreground=foreground, per_patient=1)
    rows = []
    for case in progress(picked, len(picked), "augmented samples"):
        draws = [Draw(1 + k // sampler.repeats, numbers[case.id], k % sampler.repeats) for k in range(SAMPLES)]
        rows += _row(case.id, dataset, draws, channels)
    about = (
        f"{manifest.name}, {bundle.name}: training cases after preprocessing, and augmented as the network sees them"
    )
    file = output / "preview_augmented.png"
    overlay.save(overlay.stack_rows([*_heading(about, manifest), *rows]), file)
    return file


def choose(
    cases: Sequence[Case],
    number: int,
    *,
    seed: int,
    foreground: Callable[[Case], float | None],
    per_patient: int = PER_PATIENT,
) -> list[Case]:
    """Choose cases that show something: of several patients, those with the most foreground, and some without any.

    Patients come in an order that follows from the seed. Each gives `per_patient` cases, the last of them one without
    foreground where the patient has one, and more in further rounds if there are too few patients. Only the labels of
    patients that are chosen are read.

    Args:
        cases: to choose from.
        number: how many; fewer if there are not so many.
        seed: another seed, other patients and other cases without foreground.
        foreground: share of a case's pixels that are not class 0; None where it has no label.
        per_patient: cases of a patient in each round.

    Returns:
        The chosen ones in the order of `cases`.
    """
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        patients[case.patient].append(case)
    order = sorted(patients, key=lambda patient: seed_of(seed, patient))
    ranked: dict[str, list[Case]] = {}

    def rounds() -> Iterator[Case]:
        for start in range(0, max(map(len, patients.values()), default=0), per_patient):
            for patient in order:
                if patient not in ranked:
                    ranked[patient] = _ranked(patients[patient], seed, foreground, per_patient)
                yield from ranked[patient][start : start + per_patient]

    taken = {case.id for case in islice(rounds(), number)}
    return [case for case in cases if case.id in taken]


def channels_of(modality: Mapping[str, str], wanted: str | None) -> Channels:
    """The channels to draw: the one that is wanted, else red, green and blue if they are called so, else the first.

    Args:
        modality: channel number -> name.
        wanted: a name or a number; None to choose as above.

    Raises:
        InputError: there is no such channel.
    """
    names = list(modality.values())
    if wanted is not None:
        for index, name in enumerate(names):
            if wanted.lower() in (name.lower(), str(index)):
                return Channels([index], name)
        raise InputError(f"no channel {wanted!r}; there is {', '.join(f'{i} ({n})' for i, n in enumerate(names))}")
    if tuple(name.lower() for name in names[:3]) in COLOURS:
        return Channels([0, 1, 2], "")
    return Channels([0], names[0] if len(names) > 1 else "")


class _Reader:
    """Reads the cases of a manifest and draws them; remembers how much foreground each has."""

    def __init__(self, manifest: Manifest, folder: Path, channels: Channels) -> None:
        self.folder = folder
        self.channels = channels
        self.load = LoadCased(("image", "label"), manifest.label_values, allow_missing_keys=True)
        self.shares: dict[str, float | None] = {}

    def foreground(self, case: Case) -> float | None:
        """Share of the pixels that are not class 0; None without a label."""
        if case.id not in self.shares:
            label = self._loaded(case, "label").get("label")
            self.shares[case.id] = None if label is None else float((label > 0).mean())
        return self.shares[case.id]

    def tile(self, case: Case) -> np.ndarray:
        """The case's picture, its label outlined, below its id, its patient and its share of foreground."""
        item = self._loaded(case, "image", "label")
        found = _foreground(self.foreground(case))
        patient = "" if case.id.startswith(case.patient) else case.patient
        details = ", ".join(part for part in (patient, self.channels.name, found) if part)
        return overlay.captioned(_picture(case.id, item, self.channels), case.id, details, width=SIDE)

    def _loaded(self, case: Case, *keys: str) -> dict[str, np.ndarray]:
        """(C, H, W) float32 `image` and (1, H, W) uint8 `label`, of those keys that the case has."""
        paths = {key: getattr(case, key) for key in keys}
        item = {key: self.folder / path for key, path in paths.items() if path is not None}
        try:
            loaded = self.load({**item, "page": case.page})
        except InputError as error:
            raise type(error)(f"case {case.id}: {error}") from None
        return {key: np.asarray(loaded[key]) for key in item}


def _picture(
    case_id: str, item: Mapping[str, Any], channels: Channels, span: tuple[float, float] | None = None
) -> np.ndarray:
    """An item's image at the size of a sheet's pictures, with its label's outlines, which are as wide at any size.

    Args:
        case_id: to name in an error.
        item: `image` (C, H, W), and `label` with the class indices in its first channel.
        channels: to draw.
        span: as for `overlay.shown`.

    Raises:
        DataError: a channel is lacking, or image and label differ in size.
        InputError: the item is a volume.
    """
    image = np.asarray(item["image"])
    if image.ndim != 3:
        raise InputError(f"case {case_id}: is a volume; preview draws 2D images alone")
    if image.shape[0] <= max(channels.indices):
        raise DataError(f"case {case_id}: has {image.shape[0]} channels, fewer than the manifest names")
    picture = overlay.fitted(overlay.shown(image[channels.indices], span), SIDE)
    if item.get("label") is None:
        return picture
    label = np.asarray(item["label"])[0].astype(np.uint8)
    if label.shape != image.shape[1:]:
        raise DataError(f"case {case_id}: image is {_by(image.shape[1:])}, label is {_by(label.shape)} pixels")
    return overlay.outlined(picture, overlay.fitted(label, SIDE, smooth=False))


def _row(case_id: str, dataset: SeededDataset, draws: Sequence[Draw], channels: Channels) -> Iterator[np.ndarray]:
    """A case before its augmentation and its samples; below them their weights, if they have any."""
    before = dataset.cases[draws[0].number]
    span = overlay.window(np.asarray(before["image"])[channels.indices])
    items = {f"epoch {draw.epoch}, sample {draw.repeat + 1}": _first(dataset[draw]) for draw in draws}
    items = {case_id: before, **items}

    def picture(title: str) -> np.ndarray:
        about = f"{_by(np.shape(items[title]['image'])[1:])} px"
        if title == case_id:
            about = ", ".join(part for part in ("after preprocessing", channels.name, about) if part)
        return overlay.captioned(_picture(case_id, items[title], channels, span), title, about, width=SIDE)

    yield overlay.beside([picture(title) for title in items])
    weights = [_weight(item) for item in items.values()]
    if any(weight is not None for weight in weights):
        yield overlay.beside([_heat(weight) for weight in weights])


def _heat(weight: np.ndarray | None) -> np.ndarray:
    if weight is None:
        return np.full((1, SIDE, 3), 255, np.uint8)
    about = f"loss weight {weight.min():.2g} (black) to {weight.max():.2g} (white)"
    return overlay.captioned(overlay.fitted(overlay.heat(weight), SIDE), about, width=SIDE)


def _first(sample: Any) -> Mapping[str, Any]:
    """A crop may give several samples at once, as a list."""
    return sample[0] if isinstance(sample, list) else sample


def _weight(item: Mapping[str, Any]) -> np.ndarray | None:
    """(H, W) weights of an item's pixels: its `weight`, or the second channel of its label; None without."""
    if "weight" in item:
        return np.asarray(item["weight"])[0]
    label = np.asarray(item["label"])
    return label[1] if label.shape[0] == 2 else None


def _groups(manifest: Manifest) -> dict[str, list[Case]]:
    """Partition -> cases; cases that only a fold has a place for stand under `fold 1` and so on."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for name, case in manifest.cases():
        fold = (case.model_extra or {}).get("fold")
        groups[f"fold {fold}" if name == "unassigned" and fold is not None else name].append(case)
    return dict(sorted(groups.items(), key=lambda group: int(group[0].removeprefix("fold ")) if " " in group[0] else 0))


def _foreground(share: float | None) -> str:
    if share is None:
        return "no label"
    return "no foreground" if share == 0 else f"{max(share, 0.001):.1%} foreground"


def _ranked(
    cases: Sequence[Case], seed: int, foreground: Callable[[Case], float | None], per_patient: int
) -> list[Case]:
    """A patient's cases: those with foreground, most first, and after every few of them one without."""
    filled = sorted((case for case in cases if foreground(case)), key=lambda case: -(foreground(case) or 0))
    empty = sorted((case for case in cases if not foreground(case)), key=lambda case: seed_of(seed, case.id))
    places = [(place // max(1, per_patient - 1), case) for place, case in enumerate(filled)]
    return [case for _, case in sorted([*places, *enumerate(empty)], key=lambda entry: entry[0])]


def _heading(about: str, manifest: Manifest) -> list[np.ndarray]:
    """What the sheet shows, and the colour of every class."""
    width = COLUMNS * (SIDE + overlay.GAP) - overlay.GAP
    names = {int(index): name for index, name in manifest.labels.items()}
    background = names.pop(0, None)
    heading = [overlay.captioned(np.full((0, width, 3), 255, np.uint8), about)]
    if names:
        lines = f"Outlines: what the labels say. Class 0, {background}, has none; all the others are foreground."
        heading += [overlay.captioned(overlay.legend(names, width), lines)]
    return heading


def default_output(manifest_path: Path) -> Path:
    """`data_preview` beside `data.json`, `data_fold_2_preview` for its second fold."""
    return manifest_path.with_name(manifest_path.name.replace(".json", "").replace("#", "_fold_") + "_preview")


def _how_many(picked: Sequence[Case], members: Sequence[Case]) -> str:
    few, all_ = ({case.patient for case in cases} for cases in (picked, members))
    return f"{len(picked)} of {len(members)} cases, {len(few)} of {len(all_)} patients"


def _folder(manifest_path: str | Path, root: str | Path | None) -> Path:
    folder = Path(root) if root else Path(manifest_path).parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; say --dataset-dir")
    return folder


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)
