"""How a volume lies in the patient: to the axes nearest to RAS and back, and whether two grids are one.

Arrays are ``(..., X, Y, Z)``; an affine maps an index ``(x, y, z, 1)`` to mm in RAS: X grows to the patient's right, Y
to the front (anterior), Z to the head (superior). Nothing here resamples: axes are swapped and reversed.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SAME_GRID = 0.01
"""Voxels: grids whose corners are nearer than this differ by the rounding of numbers in their headers."""


class Grid(NamedTuple):
    """Where a volume lies, and what to call it in a sentence."""

    name: str
    shape: tuple[int, ...]
    """Voxels along X, Y and Z."""
    affine: NDArray[np.floating]
    """(4, 4), index to mm in RAS."""


def to_ras(array: np.ndarray, affine: NDArray[np.floating]) -> tuple[np.ndarray, NDArray[np.float64]]:
    """Swap and reverse axes so that they point, as nearly as they can, to the right, the front and the head.

    Args:
        array: (..., X, Y, Z).
        affine: (4, 4) of the array.

    Returns:
        A view of the array, and its affine. An oblique volume stays oblique.

    Raises:
        ValueError: the affine is singular, so the axes point nowhere.
    """
    turn = _axes(affine)
    return _turned(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape[-3:])


def as_stored(array: np.ndarray, affine: NDArray[np.floating], stored_affine: NDArray[np.floating]) -> np.ndarray:
    """Undo `to_ras`: the view of an array whose axes point as those of a file do.

    Args:
        array: (..., X, Y, Z).
        affine: (4, 4) of the array.
        stored_affine: (4, 4) of the file that it came from.
    """
    return _turned(array, nib.orientations.ornt_transform(_axes(affine), _axes(stored_affine)))


def corners_mm(shape: tuple[int, ...], affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """The centres of the eight corner voxels, (8, 3) mm."""
    ends = [(0, n - 1) for n in shape]
    return nib.affines.apply_affine(affine, np.array(list(product(*ends)), dtype=float))


def voxels_apart(one: Grid, other: Grid) -> float:
    """How far two grids lie apart at their corners, in units of the smallest side of a voxel; inf if sizes differ.

    Both are turned to RAS first, so files that store one volume along other axes are one grid.
    """
    (shape, affine), (other_shape, other_affine) = _ras_grid(one), _ras_grid(other)
    if shape != other_shape:
        return float("inf")
    distance = np.linalg.norm(corners_mm(shape, affine) - corners_mm(shape, other_affine), axis=1).max()
    return float(distance / spacing_mm(affine).min())


def different_grids(one: Grid, other: Grid) -> str | None:
    """What is wrong with two volumes that should lie on one grid; None if at most rounding in their headers differs."""
    apart = voxels_apart(one, other)
    if apart < SAME_GRID:
        return None
    sizes = f"{_by(one.shape)} against {_by(other.shape)} voxels"
    return (
        f"{one.name} and {other.name} lie on different grids "
        f"({sizes if np.isinf(apart) else f'corners {apart:.3g} voxels apart'}; "
        f"affines [{shown(one.affine)}] and [{shown(other.affine)}])"
    )


def spacing_mm(affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """The sides of a voxel along X, Y and Z, mm."""
    return np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)


def shown(affine: NDArray[np.floating]) -> str:
    """An affine on one line, for a sentence."""
    return "; ".join(" ".join(f"{value:.4g}" for value in row) for row in np.asarray(affine)[:3])


def _ras_grid(grid: Grid) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    turn = _axes(grid.affine)
    sizes = [0, 0, 0]
    for axis, (to, _) in enumerate(turn):
        sizes[int(to)] = grid.shape[axis]
    return tuple(sizes), grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape)


def _axes(affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """(3, 2): to which axis of the patient each of the array goes, and whether along or against it."""
    turn = _axes_of(np.asarray(affine, dtype=float)[:3, :3].tobytes())
    if np.isnan(turn).any():
        raise ValueError(f"the affine {shown(affine)} is singular: its axes do not span a volume")
    return turn


@lru_cache(maxsize=256)
def _axes_of(turned: bytes) -> NDArray[np.float64]:
    """`_axes` of a (3, 3) float64 matrix: most volumes of a dataset lie alike, and nibabel takes its time."""
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(turned).reshape(3, 3)
    turn: NDArray[np.float64] = nib.orientations.io_orientation(affine)
    turn.setflags(write=False)
    return turn


def _turned(array: np.ndarray, turn: NDArray[np.float64]) -> np.ndarray:
    """Nibabel turns the first axes of an array, ours are the last."""
    moved: np.ndarray = nib.orientations.apply_orientation(np.moveaxis(array, (-3, -2, -1), (0, 1, 2)), turn)
    return np.moveaxis(moved, (0, 1, 2), (-3, -2, -1))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
