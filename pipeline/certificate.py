"""A DICOM SEG counts as written once a second implementation has read it back and found what was to be written.

The writer is highdicom; the reader here is pydicom for the attributes and numpy for the bits.
Arrays are ``(X, Y, Z)`` and affines lead to mm in RAS, as in dicom.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from pipeline.atomic import atomic
from pipeline.dicom import odd_values_pass
from pipeline.errors import DataError, InputError
from pipeline.read_back import GRID_TOLERANCE, label_map, read_dataset

logger = logging.getLogger("pipeline.certificate")

CENTROID_TOLERANCE_MM = 0.01
"""How far a class may lie from its place: positions in headers are decimal strings of 16 characters."""

AS_INTENDED, DIFFERENT = "as intended", "different"
"""The verdicts of a certificate."""


def certificate_path(path: Path) -> Path:
    """Where the certificate of a file stands: `ct.dcm` has `ct.certificate.json`."""
    return path.with_name(f"{path.stem}.certificate.json")


@odd_values_pass()
def write_certified(
    segmentation: Dataset,
    path: Path,
    *,
    labels: NDArray[np.integer],
    affine: NDArray[np.floating] | None,
    names: Sequence[str],
) -> bool:
    """Write a SEG and, beside it, the certificate that it holds what it should.

    The file has its name only after it was read back and compared. A file that is there already, with the same
    SOPInstanceUID and the same content, is left as it is.

    Args:
        segmentation: of the label map, BINARY or LABELMAP.
        path: the file to write; its folder is made where it is missing.
        labels: ``(X, Y, Z)`` what is to be in it.
        affine: ``(4, 4)``, index to mm in RAS; None for a single image, ``(X, Y, 1)``, without a place in the patient.
        names: of the classes 1, 2, ...

    Returns:
        Whether the file was written; False if it was there.

    Raises:
        DataError: what was read back is not what was to be written; there is no new file then.
    """
    intended: dict[str, Any] = {"labels": labels, "affine": affine, "names": names}
    if _has_uid(path, str(segmentation.SOPInstanceUID)):
        if found := _unharmed(path, intended):
            _write(found, certificate_path(path))
            return False
        logger.warning("%s is there, but is not what its SOPInstanceUID stands for: it is written again", path)
    with atomic(path) as temporary:
        segmentation.save_as(temporary, enforce_file_format=True)
        found = examine(temporary, **intended)
        if found["verdict"] != AS_INTENDED:
            raise DataError(f"{path}: not written, for what was read back is not what was to be written: {_why(found)}")
    _write(found, certificate_path(path))
    return True


def _unharmed(path: Path, intended: Mapping[str, Any]) -> dict[str, Any] | None:
    """The certificate of a file that is there already; None where it cannot be read or holds something else."""
    try:
        found = examine(path, **intended)
    except InputError:
        return None
    return found if found["verdict"] == AS_INTENDED else None


def examine(
    path: Path,
    *,
    labels: NDArray[np.integer],
    affine: NDArray[np.floating] | None,
    names: Sequence[str],
) -> dict[str, Any]:
    """Read a SEG back and compare it with what was to be written.

    Args:
        path: the file to read.
        labels: as for `write_certified`.
        affine: as for `write_certified`.
        names: as for `write_certified`.

    Returns:
        The certificate: digest of the file, whose name may be a patient's; reader; per class voxels, volume and
        centroid, in the file and as intended.

    Raises:
        InputError: the file cannot be read back.
    """
    dataset = read_dataset(path)
    stored, place = label_map(dataset, path)
    intended_place = place if affine is None else affine
    classes = _compared(_moments(stored, len(names)), place, _moments(labels, len(names)), intended_place)
    differing = _differing(stored, place, labels, intended_place)
    unit = "px" if affine is None else "mm"
    voxel_ml = None if affine is None else abs(float(np.linalg.det(place[:3, :3]))) / 1000
    same = differing == 0 and all(c["voxels"] == c["voxels_intended"] and _near(c["difference"]) for c in classes)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "sha256": digest,
        "sop_instance_uid": str(dataset.SOPInstanceUID),
        "segmentation_type": str(dataset.SegmentationType),
        "reader": {library: version(library) for library in ("pydicom", "numpy")},
        "writer": {library: version(library) for library in ("highdicom", "overtile")},
        "unit": unit,
        "tolerance": CENTROID_TOLERANCE_MM,
        "voxels_that_differ": differing,
        "classes": [
            {
                "number": number,
                "name": label,
                **c,
                "volume_ml": None if voxel_ml is None else round(c["voxels"] * voxel_ml, 6),
            }
            for number, (label, c) in enumerate(zip(names, classes, strict=True), start=1)
        ],
        "verdict": AS_INTENDED if same else DIFFERENT,
    }


def _moments(labels: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """(classes, 4): of each class its voxels, and the sums of their indices along X, Y and Z."""
    moments = np.zeros((classes + 1, 4))
    for z in range(labels.shape[2]):
        plane = np.asarray(labels[:, :, z])
        x, y = np.nonzero(plane)
        values = plane[x, y]
        for column, weights in enumerate((None, x, y, np.full(len(x), z))):
            moments[:, column] += np.bincount(values, weights, minlength=classes + 1)[: classes + 1]
    return moments[1:]


def _compared(
    stored: NDArray[np.float64], place: NDArray[np.float64], intended: NDArray[np.float64], home: NDArray[np.floating]
) -> list[dict[str, Any]]:
    """Voxels and centroid of each class, in the file and as intended, and how far apart the centroids are."""
    rows = []
    for one, other in zip(stored, intended, strict=True):
        found, wanted = _centroid(one, place), _centroid(other, home)
        apart = None if found is None or wanted is None else float(np.linalg.norm(np.subtract(found, wanted)))
        rows.append(
            {
                "voxels": int(one[0]),
                "voxels_intended": int(other[0]),
                "centroid": found,
                "centroid_intended": wanted,
                "difference": apart,
            }
        )
    return rows


def _centroid(moments: NDArray[np.float64], affine: NDArray[np.floating]) -> list[float] | None:
    """Where the centre of a class lies; None for an empty class."""
    if not moments[0]:
        return None
    centre: list[float] = (affine[:3] @ [*moments[1:] / moments[0], 1]).tolist()
    return centre


def _near(difference: float | None) -> bool:
    return difference is None or difference <= CENTROID_TOLERANCE_MM


def _differing(
    stored: NDArray[np.integer], place: NDArray[np.float64], labels: NDArray[np.integer], home: NDArray[np.floating]
) -> int:
    """Voxels that differ where the file's slices lie on the intended grid, and those that the file leaves out."""
    shift = np.linalg.inv(home) @ place
    z0 = round(float(shift[2, 3]))
    expected = np.eye(4)
    expected[2, 3] = z0
    corners = np.array(
        [[x, y, z, 1] for x in (0, stored.shape[0]) for y in (0, stored.shape[1]) for z in (0, stored.shape[2])]
    ).T
    if stored.shape[:2] != labels.shape[:2] or np.abs((shift - expected) @ corners).max() > GRID_TOLERANCE:
        return max(int(np.count_nonzero(stored)), 1)  # another grid: no voxel of it is where it should be
    differing = 0
    for z in range(min(z0, 0), max(labels.shape[2], z0 + stored.shape[2])):
        inside = 0 <= z < labels.shape[2]
        has = 0 <= z - z0 < stored.shape[2]
        one = stored[:, :, z - z0] if has else 0
        other = labels[:, :, z] if inside else 0
        differing += int(np.count_nonzero(one != other)) if has or inside else 0
    return differing


def _has_uid(path: Path, uid: str) -> bool:
    """Whether a file is there that says to be this instance."""
    try:
        return path.is_file() and dcmread(path, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID") == uid
    except (InvalidDicomError, EOFError):
        return False


def _why(found: dict[str, Any]) -> str:
    """The first difference, in words."""
    for c in found["classes"]:
        if c["voxels"] != c["voxels_intended"]:
            return f"{c['name']} has {c['voxels']} voxels, not {c['voxels_intended']}"
        if not _near(c["difference"]):
            return f"{c['name']} lies {c['difference']:.3g} {found['unit']} from its place"
    return f"{found['voxels_that_differ']} voxels differ"


def _write(found: dict[str, Any], path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
