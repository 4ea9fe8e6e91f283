import json

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.instance_scores import InstanceScores, lines
from pipeline.scoring import Scored

TRUE = np.zeros((10, 20), np.int32)
TRUE[2:6, 2:6], TRUE[2:6, 10:14] = 7, 3
MERGED = np.zeros((10, 20), np.uint8)
MERGED[2:6, 2:14] = 1
PERFECT = (TRUE > 0).astype(np.uint8)


def scored(*cases, unit="patient", **how):
    """Cases (patient, predicted classes) of two squares."""
    scores = InstanceScores(["background", "nucleus"], instances="nucleus", **how)
    scores.start({"unit": unit})
    for number, (patient, found) in enumerate(cases):
        scores.add(Scored(f"{patient}_{number}", patient, TRUE[None] * 1.0, PERFECT, found, instances=TRUE))
    return scores


def test_images_are_averaged_per_unit_and_units_over_all():
    table = json.loads(json.dumps(scored(("a", PERFECT), ("a", PERFECT), ("b", MERGED)).table()))
    assert [case["aji"] for case in table["cases"]] == [1, 1, pytest.approx(32 / 96)]
    assert table["mean"]["aji"] == pytest.approx((1 + 1 / 3) / 2)
    assert table["mean_over_images"]["aji"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert table["mean"]["ap_50"] == table["mean"]["ap_mean"] == 0.5
    assert table["interval_95"]["ap_50"] == [0, 1]
    assert table["objects"] == {"reference": 6, "predicted": 5, "matched": 4, "merged": 1, "split": 0}


def test_lines_name_the_unit_and_the_worst_image():
    assert lines(scored(("a", PERFECT), ("b", MERGED), unit="cluster").table()) == [
        "Objects of class nucleus: 4 in the reference, 3 predicted, 2 matched at IoU above 0.5; 1 merged, 0 split.",
        "AJI  0.667, 95 % interval 0.333 to 1.000, worst image 0.333",
        "AP at IoU 0.5  0.500, 95 % interval 0.000 to 1.000, worst image 0.000",
        "AP at IoU 0.75  0.500, 95 % interval 0.000 to 1.000, worst image 0.000",
        "AP, mean of 0.5 to 0.95  0.500, 95 % interval 0.000 to 1.000, worst image 0.000",
        "Mean over 2 clusters, each the mean of its images; interval by bootstrap over them.",
    ]


def test_small_objects_are_dropped_and_seams_are_closed():
    found = PERFECT.copy()
    found[8, 0], found[2:6, 3:5] = 1, 0
    for how, predicted in (({}, 4), ({"smallest": 2}, 3), ({"smallest": 5}, 1)):
        table = scored(("a", found), **how).table()
        assert (table["objects"]["predicted"], table["smallest_px"]) == (predicted, how.get("smallest", 0))
    halves = scored(("a", found), smallest=2, seam=1).table()
    assert halves["cases"][0]["aji"] == pytest.approx((8 + 16) / (16 + 16 + 8))


def test_the_picture_is_of_the_worst_image():
    assert scored().picture() is None
    picture = scored(("a", PERFECT), ("b", MERGED)).picture()
    assert picture.shape[1] == 4 * 20 + 3 * 4
    assert picture[-6, 3 * 24 + 8].any()  # the bridge between the two, in the panel of mistakes


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(InputError, match="`instances` must be one of nucleus, got 'background'"):
        InstanceScores(["background", "nucleus"], instances="background")
    with pytest.raises(InputError, match="a_1 has no `instances` .* LoadCased with keys"):
        scored().add(Scored("a_1", "a", TRUE[None], PERFECT, PERFECT))
