"""Pictures of the worst, the median and the best case of a validation or an evaluation, drawn when all are known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from monai.utils import CommonKeys

from pipeline import body, overlay, planes, processes
from pipeline.batches import classes, volume_spacing_mm
from pipeline.metrics import dice_empty_scored, overlap_counts, pixel_error
from pipeline.scoring import Scored

SPEED = 1
"""Of zlib: what is drawn of a case is kept at a third of its size, for a millisecond."""


@dataclass(frozen=True)
class Picture:
    """A case that is drawn, and why: `rank` is `worst`, `worst 1`, `median` or `best`."""

    rank: str
    case: str
    patient: str
    dice: float
    pixels: np.ndarray
    """(H, W, 3) uint8."""

    @property
    def file(self) -> str:
        """Its name: `worst_1.png`."""
        return self.rank.replace(" ", "_") + ".png"


@dataclass(frozen=True)
class _Kept:
    """A case without its arrays: a few hundred kilobytes, whatever the volume's size."""

    order: tuple[float, float, int]
    case: str
    patient: str
    notes: list[str]
    views: list[planes.View]
    layers: list[bytes]

    def drawn(self, rank: str, names: Mapping[int, str] | None, *about: str) -> Picture:
        dice = self.order[0]
        lines = [", ".join((f"{self.case}  Dice {dice:.3f}", rank, *about)), *self.notes]
        views = [
            replace(view, layers=np.frombuffer(zlib.decompress(packed), np.uint8).reshape(view.layers.shape))
            for view, packed in zip(self.views, self.layers, strict=True)
        ]
        return Picture(rank, self.case, self.patient, dice, planes.drawn(views, lines, names))


class CasePictures:
    """Keeps what is drawn of each case of an epoch, and draws the worst, the median and the best at its end.

    Cases stand in the order of their Dice, the mean over the classes but the background, where a case without a class
    counts 1 if none of it is found and 0 if some is. Of cases with the same Dice those with more wrong pixels are
    worse, then those with less foreground. Nothing of a case outside its body is kept.

    Args:
        class_names: class 0, the background, first.
        worst: cases that are drawn from the worst end.
        channel: of the image, from 0: the one that is shown.
        crop: look for the body and show nothing else; False: the whole field is of interest, as under a microscope.
    """

    def __init__(self, class_names: Sequence[str], *, worst: int = 1, channel: int = 0, crop: bool = True) -> None:
        self.classes = len(class_names)
        self.names = several(class_names)
        self.worst = worst
        self.channel = channel
        self.crop = crop
        self.kept: list[_Kept] = []
        self._bodies: dict[str, tuple[tuple[int, ...], bytes]] = {}

    def clear(self) -> None:
        """Begin an epoch; the bodies of the cases are remembered, since they are the same."""
        self.kept = []

    def add(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Keep a case as `pipeline.batches.cases_of` gives it."""
        image, reference, prediction = (
            output[key].detach().float().cpu().numpy() for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
        )
        image = overlay.channel(image, self.channel)
        where = self._body(item["id"], image) if self.crop else None
        self.keep(
            Scored(
                item["id"], item["patient"], image, classes(reference),
                classes(prediction), spacing_mm=volume_spacing_mm(output[CommonKeys.LABEL]), body=where,
            )
        )  # fmt: skip

    def keep(self, case: Scored, counts: np.ndarray | None = None) -> None:
        """Keep a case.

        Args:
            case: whose arrays are not kept.
            counts: of `pipeline.metrics.overlap_counts`, where they are known.
        """
        if counts is None:
            counts = overlap_counts(case.prediction, case.reference, self.classes)
        order = (float(dice_empty_scored(counts)[1:].mean()), -pixel_error(counts), int((case.reference > 0).sum()))
        views = views_of(case)
        packed = [zlib.compress(view.layers.tobytes(), SPEED) for view in views]
        hollow = [replace(view, layers=np.broadcast_to(np.uint8(0), view.layers.shape)) for view in views]
        self.kept.append(_Kept(order, case.id, case.patient, case.notes, hollow, packed))

    def gather(self) -> None:
        """Take in what other processes have kept of their cases; every process gets all, each case once."""
        self.kept = list({kept.case: kept for share in processes.gathered(self.kept) for kept in share}.values())

    def pictures(self, *about: str) -> list[Picture]:
        """The worst cases, the worst first, the median and the best.

        Args:
            about: words for the captions, say the epoch.
        """
        ordered = sorted(self.kept, key=lambda kept: kept.order)
        if not ordered:
            return []
        number = min(self.worst, len(ordered))
        ranks = {"worst" if self.worst == 1 else f"worst {place + 1}": ordered[place] for place in range(number)}
        ranks |= {"median": ordered[(len(ordered) - 1) // 2], "best": ordered[-1]}
        return [kept.drawn(rank, self.names, *about) for rank, kept in ranks.items()]

    def drawn(self, *about: str) -> dict[str, np.ndarray]:
        """`pictures` by file name."""
        return {picture.file: picture.pixels for picture in self.pictures(*about)}

    def _body(self, case: str, image: np.ndarray) -> np.ndarray:
        if case not in self._bodies:
            self._bodies[case] = (image.shape[1:], zlib.compress(np.packbits(body.mask(image)).tobytes(), SPEED))
        shape, packed = self._bodies[case]
        bits = np.frombuffer(zlib.decompress(packed), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def views_of(case: Scored) -> list[planes.View]:
    """What is drawn of a case: see `pipeline.planes.views`."""
    return planes.views(case.image, case.reference, case.prediction, case.spacing_mm, case.body)


def drawn(case: Scored, title: str, class_names: Sequence[str]) -> np.ndarray:
    """One case, (H, W, 3) uint8, below its title and what is not shown of it."""
    return planes.drawn(views_of(case), [title, *case.notes], several(class_names))


def several(class_names: Sequence[str]) -> dict[int, str] | None:
    """Class index from 1 on -> name; None where there is one class, whose colour says nothing."""
    return dict(enumerate(class_names[1:], start=1)) if len(class_names) > 2 else None
