"""Twenty-four orientations, slices numbered up and down: a DICOM series comes out at the same place in mm."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from pipeline.loading import LoadCased
from pipeline.synthetic_series import write_series

SPACING_MM, PLACE_MM = (1.0, 1.5, 2.0), (10.0, -20.0, 30.0)
SIZE = (5, 6, 7)
CORNERS = list(product(*((0, n - 1) for n in SIZE)))
VOLUME = np.zeros(SIZE, np.int16)
VOLUME[tuple(zip(*CORNERS, strict=True))] = range(101, 109)  # every corner another number

DIRECTIONS = [
    np.eye(3)[list(order)].T * signs
    for order in permutations(range(3))
    for signs in product((-1, 1), repeat=3)
    if np.linalg.det(np.eye(3)[list(order)].T * signs) > 0
]


def name(direction):
    return "".join(nib.aff2axcodes(nib.affines.from_matvec(direction)))


def test_there_are_24_proper_orientations():
    assert len({name(direction) for direction in DIRECTIONS}) == 24


@pytest.mark.parametrize("numbered", ["up", "down"])
@pytest.mark.parametrize("direction", DIRECTIONS, ids=name)
def test_every_corner_lies_where_it_was_written(tmp_path, direction, numbered):
    along = direction if numbered == "up" else direction * [1, 1, -1]  # slices follow each other against the normal
    write_series(VOLUME, tmp_path / "ct", spacing_mm=SPACING_MM, position_mm=PLACE_MM, direction=along, patient_id="P")
    image = LoadCased(keys=["image"])({"image": str(tmp_path / "ct")})["image"]
    written = nib.affines.from_matvec(along * SPACING_MM, PLACE_MM)
    assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
    for corner, value in zip(CORNERS, range(101, 109), strict=True):
        found = np.argwhere(image[0].numpy() == value)
        assert len(found) == 1
        place = nib.affines.apply_affine(image.affine.numpy(), found[0])
        np.testing.assert_allclose(place, nib.affines.apply_affine(written, corner), atol=1e-6)
