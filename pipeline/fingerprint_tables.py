"""The tables of a fingerprint: what its cases are like, as rows for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from pipeline import tables
from pipeline.case_statistics import PERCENTILES, Intensities
from pipeline.cautions import axis_names
from pipeline.fingerprint import Fingerprint


def summary(found: Fingerprint) -> list[Table]:
    """Sizes and spacings per axis; intensities per channel; amounts per class, if the manifest has any."""
    voxels, unit = ("voxels", "ml") if found.spatial_dims == 3 else ("px", "mm2")
    shown = [tables.sizes(voxels, _axes(found)), tables.intensities(PERCENTILES, _channels(found))]
    return [*shown, tables.amounts(unit, _classes(found))] if found.classes[1:] else shown


def _axes(found: Fingerprint) -> Iterator[list[Any]]:
    spacings = found.spacings_mm
    for axis, name in enumerate(axis_names(found.spatial_dims)):
        yield [name, *_spread(found.sizes[:, axis]), *_spread(spacings[:, axis])]


def _channels(found: Fingerprint) -> Iterator[list[Any]]:
    """Medians over the cases; of the foreground, of all its voxels together."""
    for channel, name in enumerate(found.channels):
        rows = [_row(case.intensities[channel]) for case in found.cases]
        yield [f"{name}, median of the cases", *map(float, np.median(rows, axis=0))]
        if found.foreground:
            yield [f"{name}, foreground of all cases", *_row(found.foreground[channel])]


def _row(values: Intensities) -> list[float]:
    return [values.mean, values.std, *values.percentiles]


def _classes(found: Fingerprint) -> Iterator[list[Any]]:
    labelled = [case for case in found.cases if case.voxels is not None]
    for name in found.classes[1:]:
        having = [case for case in labelled if case.voxels and case.voxels[name]]
        voxels = [(case.voxels or {})[name] for case in having]
        known = [amount for case in having if (amount := case.amount(name)) is not None]
        parts = [(case.parts or {})[name] for case in having]
        middle = [float(np.median(values)) if values else None for values in (voxels, parts)]
        yield [name, len(having), len(labelled) - len(having), middle[0], *_spread(known), middle[1]]


def _spread(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Least, median and most; Nones where there is nothing."""
    if not len(values):
        return [None] * 3
    return [float(f(values)) for f in (np.min, np.median, np.max)]
