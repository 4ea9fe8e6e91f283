"""What an evaluation hands to those who score more than overlap, and what it expects back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.body import box


@dataclass(frozen=True)
class Scored:
    """One case with its reference and prediction, as arrays."""

    id: str
    patient: str
    image: np.ndarray
    """(1, H, W) float32, or (1, X, Y, Z), any range: the channel that pictures show, covered outside the body."""
    reference: np.ndarray
    """(H, W) uint8 class indices; a volume has three axes."""
    prediction: np.ndarray
    """As the reference."""
    probabilities: np.ndarray | None = None
    """(classes, H, W) float32, or (1, H, W) of class 1; None where the postprocessing leaves none."""
    instances: np.ndarray | None = None
    """(H, W) int32, the reference's objects, 0 for the background; None where none are loaded."""
    spacing_mm: tuple[float, ...] | None = None
    """Between voxels, along each axis of the reference; None where it is not known."""
    body: np.ndarray | None = None
    """(H, W) bool, from `pipeline.body.mask`, as the reference; None: all of the image. It bears on pictures alone."""

    def visible(self, label: np.ndarray) -> np.ndarray:
        """A label map that a network made, without what lies outside the body: it may be the shape of letters."""
        return label if self.body is None else np.where(self.body, label, 0).astype(label.dtype)

    @property
    def crop(self) -> tuple[slice, ...]:
        """The part of the image that pictures show: the body, and the reference wherever it is."""
        if self.body is None:
            return tuple(slice(0, side) for side in self.reference.shape)
        return box(self.body | (self.reference > 0))

    @property
    def notes(self) -> list[str]:
        """What a picture has to say about what it does not show."""
        if self.body is None:
            return []
        hidden = int(((self.prediction > 0) & ~self.body).sum())
        unit = "px" if self.body.ndim == 2 else "voxels"
        nothing = ["no body was found: the image is not shown"] if not self.body.any() else []
        return nothing + ([f"{hidden} {unit} outside the body not drawn"] if hidden else [])


class Scorer(Protocol):
    """Scores the cases of an evaluation one by one and sums them up.

    Attributes:
        name: the key of its table in evaluation.json.
        picture_name: the file of its picture.
    """

    name: str
    picture_name: str

    def start(self, about: Mapping[str, Any]) -> None:
        """Begin an evaluation: `partition`, `unit`, and digests of checkpoint, manifest and split."""

    def add(self, case: Scored) -> None:
        """Score a case."""

    def table(self) -> dict[str, Any]:
        """All scores, ready for JSON."""

    def scalars(self) -> dict[str, float | None]:
        """The scores that a run records, by name; None where there is none."""

    def picture(self) -> np.ndarray | None:
        """The worst case, (H, W, 3) uint8, if there is one."""
