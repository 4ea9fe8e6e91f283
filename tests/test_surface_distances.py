import json

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from pipeline.errors import InputError
from pipeline.scoring import Scored
from pipeline.surface_distances import SurfaceDistances, joined, lines, surface_scores

SPACING = (1.0, 1.0, 3.0)


def cube(z=2):
    """8 x 8 x 8 voxels that begin at index 4, 4 and z."""
    volume = np.zeros((20, 20, 20), bool)
    volume[4:12, 4:12, z : z + 8] = True
    return volume


def blobs(seed, shape=(24, 20, 16)):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return noise > 0, gaussian_filter(noise, 1) > 0.01


@pytest.mark.parametrize(
    ("prediction", "reference", "scores"),
    [
        (cube() & False, cube() & False, (None, None)),
        (cube(), cube() & False, (None, 0.0)),
        (cube() & False, cube(), (None, 0.0)),
        (cube(), cube(), (0.0, 1.0)),
    ],
)
def test_empty_masks_come_first(prediction, reference, scores):
    assert surface_scores(prediction, reference, SPACING, 1.0) == scores


def test_cubes_two_slices_of_3_mm_apart():
    assert surface_scores(cube(4), cube(2), SPACING, 6.0) == (6.0, 1.0)
    assert surface_scores(cube(4), cube(2), (1.0, 1.0, 0.5), 1.0) == (1.0, 1.0)
    assert surface_scores(cube(4), cube(2), SPACING, 5.9)[1] < 0.95


def test_voxels_are_single_points_and_images_have_lines():
    voxel, pixel = np.zeros((9, 9, 9), bool), np.zeros((9, 9), bool)
    voxel[1, 4, 4] = pixel[1, 4] = True
    assert surface_scores(voxel, np.roll(voxel, 5, 0), (0.5, 1, 1), 1.9) == (2.5, 0.0)
    assert surface_scores(pixel, np.roll(pixel, 3, 1), (1.0, 2.0), 6.0) == (6.0, 1.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0)])
def test_hd95_is_that_of_distance_transforms(spacing):
    prediction, reference = blobs(1)
    edges = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
    to = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    directed = [np.percentile(to[1][edges[0]], 95), np.percentile(to[0][edges[1]], 95)]
    assert surface_scores(prediction, reference, spacing, 1.0)[0] == pytest.approx(max(directed), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0)])
def test_both_are_monais_on_whole_arrays(spacing):
    prediction, reference = blobs(2)
    batches = [torch.as_tensor(mask)[None, None] for mask in (prediction, reference)]
    how = {"include_background": True, "spacing": spacing}
    hd95 = compute_hausdorff_distance(*batches, percentile=95, **how)
    dice = compute_surface_dice(*batches, [1.5], use_subvoxels=True, **how)
    assert surface_scores(prediction, reference, spacing, 1.5) == pytest.approx((float(hd95), float(dice)), abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own imports
def test_the_surface_dice_is_deepminds():
    surface_distance = pytest.importorskip("surface_distance", reason="DeepMind's surface-distance is not installed")
    for spacing in ((1.0, 1.0, 1.0), (0.7, 0.9, 3.0)):
        prediction, reference = blobs(3)
        distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
        theirs = surface_distance.compute_surface_dice_at_tolerance(distances, 1.5)
        assert surface_scores(prediction, reference, spacing, 1.5)[1] == pytest.approx(theirs, abs=1e-6)


def test_the_noise_of_a_header_decides_nothing():
    noisy = surface_scores(cube(3), cube(2), (1.0000001, 1.0, 3.0000004), 3.0)
    assert noisy == pytest.approx((3.0, 1.0))


NAMES = ["background", "head", "tail"]


def scored(*cases, spacing=SPACING, unit="patient"):
    """Cases (patient, z of the head, z of the tail) against a head and a tail at 2 and 11; None: without."""
    scorer = SurfaceDistances(NAMES, 3.0)
    scorer.start({"unit": unit})
    for number, (patient, *places) in enumerate(cases):
        label, truth = np.zeros((2, 20, 20, 20), np.uint8)
        for index, (place, right) in enumerate(zip(places, (2, 11), strict=True), start=1):
            truth[cube(right)] = index
            if place is not None:
                label[cube(place)] = index
        scorer.add(Scored(f"{patient}_{number}", patient, truth[None] * 1.0, truth, label, spacing_mm=spacing))
    return scorer


def test_patients_are_averaged_over_their_cases_and_what_is_missed_is_told():
    table = json.loads(json.dumps(scored(("a", 2, 11), ("a", 0, 11), ("b", 2, 12), ("b", 1, None)).table()))
    assert [case["hd95"]["head"] for case in table["cases"]] == [0, 6, 0, 3]
    assert table["mean"]["hd95"] == {"head": (3 + 1.5) / 2, "tail": (0 + 3) / 2}
    assert table["cases"][3]["surface_dice"]["tail"] == 0
    assert table["cases"][3]["hd95"]["tail"] is None
    assert (table["missed"], table["added"]) == ({"head": 0, "tail": 1}, {"head": 0, "tail": 0})
    assert table["interval_95"]["hd95"]["head"] == [1.5, 3.0]
    assert table["worst"] == {"head": ["a_1", "b_3"], "tail": ["b_2"]}


def test_folds_join_to_the_table_of_all():
    cases = [("a", 2, 11), ("b", 0, None), ("c", None, 9)]
    assert joined([scored(cases[0]).table(), scored(*cases[1:]).table()])["mean"] == scored(*cases).table()["mean"]
    with pytest.raises(InputError, match="measured in different ways"):
        joined([scored(cases[0]).table(), scored(cases[0], spacing=None).table()])


def test_lines_say_unit_worst_cases_and_what_was_missed():
    assert lines(scored(("a", 2, 11), ("b", 0, None), unit="subject").table()) == [
        "Surfaces, distances in mm; surface Dice at a tolerance of 3 mm.",
        "head: HD95 3.00 (95 % interval 0.00 to 6.00, 2 subjects); surface Dice 0.942 (95 % interval 0.885 to 1.000, "
        "2 subjects); largest HD95 in b_1",
        "tail: HD95 0.00 (no interval, 1 subject); surface Dice 0.500 (95 % interval 0.000 to 1.000, 2 subjects)",
        "tail: missed in 1 case, where the prediction has none: no HD95, a surface Dice of 0.",
        "Means over subjects, each the mean of its cases; intervals by bootstrap over them.",
    ]


def test_without_a_spacing_distances_are_in_pixels_and_are_not_mixed():
    scorer = scored(("a", 0, 11), spacing=None)
    assert scorer.table()["mean"]["hd95"]["head"] == 2
    assert lines(scorer.table())[0] == (
        "Surfaces, distances in px, no spacing is known; surface Dice at a tolerance of 3 px."
    )
    case = scored().cases or Scored("x", "x", np.zeros((1, 4, 4)), *np.zeros((2, 4, 4), np.uint8), spacing_mm=(1, 1))
    with pytest.raises(InputError, match="x: its distances are in mm, those of the cases before in px"):
        scorer.add(case)


def test_the_worst_case_is_drawn_and_the_scores_are_recorded():
    scorer = scored(("a", 2, 11), ("b", 0, 11))
    assert scorer.scalars()["hd95_head"] == 3
    assert scorer.worst[0] == 6
    assert scorer.picture().shape[2] == 3
    assert scored(("a", 2, 11)).picture() is None


@pytest.mark.parametrize("tolerance", [0, -1, None, "1e-3"])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(InputError, match="`tolerance_mm` must be a positive number, say 1.0"):
        SurfaceDistances(NAMES, tolerance)
