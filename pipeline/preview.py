"""Contact sheets of a manifest's cases with the outlines of their labels: to be looked at before a training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import overlay, planes
from pipeline.batches import volume_spacing_mm
from pipeline.errors import DataError, InputError
from pipeline.loading import LoadCased
from pipeline.manifest import PARTITIONS, Case, Manifest, fold_of, read, unit_name
from pipeline.progress import Progress, silent
from pipeline.seeding import seed_of

SIDE = 256
"""Pixels of a picture's longer side on a sheet, whatever the image's size."""

COLUMNS = 4
"""Pictures of images side by side; of volumes, which are drawn in three planes, half as many."""

MOST_CASES = 200
"""Of a sheet, which then has 15 megapixels: every viewer opens it."""

PER_PATIENT = 3
"""Cases of one patient before it is the next patient's turn: two with the most foreground, one without any."""

SHEETS = [f"preview_{name}.png" for name in (*PARTITIONS, "unassigned")]
"""The files; that of a fold is `preview_fold_1.png`."""

COLOURS = (("red", "green", "blue"), ("r", "g", "b"))
"""Names of three channels that are drawn as one picture."""

Foreground = Callable[[Case], float | None]
"""The share of a case's pixels that are not class 0; None where it has no label."""


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
        output: folder for `preview_training.png` and so on. They show patients, so they stay at the site. Sheets of
            partitions that are no more are removed.
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
    reader = Reader.of(manifest_path, root, channel)
    files = []
    for name, members in _groups(reader.manifest).items():
        picked = choose(members, cases, seed=seed, foreground=reader.foreground)
        tiles = [reader.tile(case) for case in progress(picked, len(picked), f"preview of {name}")]
        rows = _rows(tiles)
        about = f"{reader.manifest.name}, {name}: {_how_many(picked, members, reader.manifest)}"
        files.append(output / f"preview_{name.replace(' ', '_')}.png")
        overlay.save(overlay.stack_rows([*heading(about, reader.manifest), *rows]), files[-1])
    if not files:
        raise DataError(f"{manifest_path}: the manifest has no cases; `overtile index` finds them")
    for old in {output / name for name in SHEETS} | set(output.glob("preview_fold_*.png")):
        if old not in files:
            old.unlink(missing_ok=True)
    return files


def default_output(manifest_path: Path) -> Path:
    """`data_preview` beside `data.json`, `data_fold_2_preview` for its second fold."""
    return manifest_path.with_name(manifest_path.name.replace(".json", "").replace("#", "_fold_") + "_preview")


def choose(
    cases: Sequence[Case], number: int, *, seed: int, foreground: Foreground, per_patient: int = PER_PATIENT
) -> list[Case]:
    """Choose cases that show something: of several patients, those with the most foreground, and some without any.

    Patients come in an order that follows from the seed. Each gives `per_patient` cases, the last of them one without
    foreground where the patient has one, and more in further rounds if there are too few patients. Only the labels of
    patients whose turn comes are read.

    Args:
        cases: to choose from.
        number: how many; fewer if there are not so many.
        seed: another seed, other patients and other cases without foreground.
        foreground: share of a case's pixels.
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

    Example:
        >>> channels_of({"0": "T1", "1": "FLAIR"}, "flair")
        Channels(indices=[1], name='FLAIR')
    """
    names = list(modality.values())
    if wanted is not None:
        for index, name in enumerate(names):
            if wanted.lower() in (name.lower(), str(index)):
                return Channels([index], name)
        raise InputError(f"no channel {wanted!r}; there is {', '.join(f'{i} ({n})' for i, n in enumerate(names))}")
    if tuple(name.lower() for name in names) in COLOURS:
        return Channels([0, 1, 2], "")
    return Channels([0], names[0] if len(names) > 1 else "")


class Reader:
    """Reads the cases of a manifest and draws them; remembers how much foreground each has.

    Args:
        manifest: of the cases.
        folder: that its paths are relative to.
        channels: to draw.
    """

    def __init__(self, manifest: Manifest, folder: Path, channels: Channels) -> None:
        self.manifest = manifest
        self.folder = folder
        self.channels = channels
        self.shares: dict[str, float | None] = {}

    @classmethod
    def of(cls, manifest_path: str | Path, root: str | Path | None, channel: str | None) -> Reader:
        """A reader of the manifest at a path.

        Raises:
            InputError: there is no such manifest, folder or channel.
        """
        manifest = read(manifest_path)
        folder = Path(root) if root else Path(manifest_path).parent
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; say --dataset-dir")
        return cls(manifest, folder, channels_of(manifest.modality, channel))

    def foreground(self, case: Case) -> float | None:
        """Share of the pixels that are not class 0; None without a label."""
        if case.id not in self.shares:
            label = self._loaded(case, "label").get("label")
            self.shares[case.id] = None if label is None else float((np.asarray(label) > 0).mean())
        return self.shares[case.id]

    def tile(self, case: Case) -> np.ndarray:
        """The case's picture, its label outlined, below its id, its patient and its share of foreground."""
        known = case.id.startswith(case.patient)
        patient = "" if known else f"{unit_name(self.manifest)} {case.patient}"
        details = (patient, self.channels.name, _foreground(self.foreground(case)))
        drawn = picture(case.id, self._loaded(case, "image", "label"), self.channels)
        return overlay.captioned(drawn, case.id, ", ".join(filter(None, details)), width=SIDE)

    def _loaded(self, case: Case, *keys: str) -> dict[str, Any]:
        """Tensors `image` (C, ...) float32 and `label` (1, ...) uint8, of those keys that the case has."""
        wanted = [key for key in keys if key == "image" or case.label is not None]
        images = [str(self.folder / path) for path in case.images]
        item: dict[Any, Any] = {"image": images[0] if len(images) == 1 else images}
        item |= {"page": case.page, "series": case.series, "resampled": case.resampled}
        if case.label is not None:
            item["label"] = str(self.folder / case.label)
        try:
            loaded = LoadCased(wanted, self.manifest.label_values)(item) if wanted else {}
        except InputError as error:
            raise type(error)(f"case {case.id}: {error}") from None
        return {key: loaded[key] for key in wanted}


def picture(
    case_id: str,
    item: Mapping[str, Any],
    channels: Channels,
    span: tuple[float, float] | None = None,
    *,
    upright: bool = False,
) -> np.ndarray:
    """An item's image with its label's outlines, which are drawn after scaling so that small ones stay visible.

    Args:
        case_id: to name in an error.
        item: `image` (C, H, W) or (C, X, Y, Z), and perhaps `label` with the class indices in its first channel.
        channels: to draw.
        span: values drawn black and white; None: the image's own.
        upright: the three planes of a volume stand below each other, else side by side; without letters for its sides,
            since a sample may be mirrored.

    Returns:
        (H, W, 3) uint8; of an image the longer side is `SIDE`, of a volume see `pipeline.planes.outlined`.

    Raises:
        DataError: a channel is lacking, or image and label differ in size.
    """
    image = np.asarray(item["image"])
    if image.shape[0] <= max(channels.indices):
        raise DataError(f"case {case_id}: has {image.shape[0]} channels, fewer than the manifest names")
    label = None if item.get("label") is None else np.asarray(item["label"])[0].astype(np.uint8)
    if label is not None and label.shape != image.shape[1:]:
        raise DataError(f"case {case_id}: image is {pixels(image)}, label is {pixels(label[None])}")
    if image.ndim == 4:
        spacing_mm = volume_spacing_mm(item["image"])
        drawn = planes.outlined(image[channels.indices], label, spacing_mm=spacing_mm, span=span, letters=not upright)
        return overlay.stack_rows(drawn) if upright else overlay.beside(drawn)
    flat = overlay.fitted(overlay.shown(image[channels.indices], span), SIDE)
    return flat if label is None else overlay.outlined(flat, overlay.fitted(label, SIDE, smooth=False))


def heading(about: str, manifest: Manifest) -> list[np.ndarray]:
    """What a sheet shows, and the colour of every class."""
    width = COLUMNS * (SIDE + overlay.GAP) - overlay.GAP
    names = {int(index): name for index, name in manifest.labels.items()}
    background = names.pop(0, None)
    title = overlay.captioned(np.full((0, width, 3), 255, np.uint8), about)
    if not names:
        return [title]
    rule = f"Outlines: what the labels say. Class 0, {background}, has none; all the others are foreground."
    return [title, overlay.captioned(overlay.legend(names, width), rule)]


def pixels(image: Any) -> str:
    """The size of a (C, H, W) image or a (C, X, Y, Z) volume in words."""
    return " x ".join(map(str, np.shape(image)[1:])) + (" px" if np.ndim(image) == 3 else " voxels")


def _rows(tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures side by side, as many as fit; volumes are wider."""
    widest = max(tile.shape[1] for tile in tiles)
    columns = max(1, COLUMNS * (SIDE + overlay.GAP) // (widest + overlay.GAP))
    return [overlay.beside(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]


def _groups(manifest: Manifest) -> dict[str, list[Case]]:
    """Partition, or `fold 1` and so on, -> cases."""
    placed = {case.id: name for name, case in manifest.assigned()}
    groups: dict[str, list[Case]] = defaultdict(list)
    for name, case in sorted(manifest.cases(), key=lambda entry: fold_of(entry[1]) or 0 if manifest.folds() else 0):
        groups[placed.get(case.id, name)].append(case)
    return groups


def _ranked(cases: Sequence[Case], seed: int, foreground: Foreground, per_patient: int) -> list[Case]:
    """A patient's cases: those with foreground, most first, and after every few of them one without."""
    filled = sorted((case for case in cases if foreground(case)), key=lambda case: -(foreground(case) or 0))
    empty = sorted((case for case in cases if not foreground(case)), key=lambda case: seed_of(seed, case.id))
    places = [(place // max(1, per_patient - 1), case) for place, case in enumerate(filled)]
    return [case for _, case in sorted([*places, *enumerate(empty)], key=lambda entry: entry[0])]


def _foreground(share: float | None) -> str:
    if share is None:
        return "no label"
    return "no foreground" if share == 0 else f"{max(share, 0.001):.1%} foreground"


def _how_many(picked: Sequence[Case], members: Sequence[Case], manifest: Manifest) -> str:
    few, all_ = ({case.patient for case in cases} for cases in (picked, members))
    return f"{len(picked)} of {len(members)} cases, {len(few)} of {len(all_)} {unit_name(manifest)}s"
