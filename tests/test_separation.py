import json

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.scoring import Scored
from pipeline.separation import (
    BY_HAND,
    HERE,
    NOT_TUNED,
    THRESHOLDS,
    VALIDATION,
    Separation,
    Threshold,
    lines,
    scores,
    threshold_of,
)

HERE_AND_NOW = {"checkpoint_sha256": "c1", "patients_sha256": "s1", "pixels_sha256": "x1"}
REFERENCE = np.zeros((12, 21), np.uint8)
REFERENCE[:, 10] = 1
IMAGE = np.arange(12 * 21, dtype=np.float32).reshape(1, 12, 21)


def probabilities(*, membrane, spurious):
    """A true membrane in column 10 and a false one in column 15, as sure as said."""
    found = np.zeros(REFERENCE.shape)
    found[:, 10], found[:, 15] = membrane, spurious
    return np.stack([1 - found, found])


def scored(found, **changes):
    case = {"id": "1", "patient": "p", "image": IMAGE, "reference": REFERENCE, "prediction": REFERENCE}
    return Scored(**(case | {"probabilities": found} | changes))


def separated(threshold, *sections):
    """Sections of (patient, probabilities) scored."""
    separation = Separation(["cell", "membrane"], membrane="membrane")
    separation.threshold = threshold
    for number, (patient, section) in enumerate(sections):
        separation.add(scored(section, id=f"{patient}_{number}", patient=patient))
    return separation


SURE = ("p", probabilities(membrane=0.83, spurious=0.68))
UNSURE = ("p", probabilities(membrane=0.43, spurious=0.18))


def test_validation_chooses_the_threshold_nearest_to_one_half_that_separates_best():
    table = separated(Threshold(None, HERE), SURE).table()
    assert (table["threshold"], table["threshold_from"]) == (0.7, HERE)
    assert table["mean"]["v_rand"] == table["mean"]["v_info"] == pytest.approx(1)
    assert separated(Threshold(None, HERE), UNSURE).table()["threshold"] == 0.4


def test_the_challenge_convention_looks_the_threshold_up_and_the_score_does_not():
    table = separated(Threshold(0.5, NOT_TUNED), UNSURE).table()
    joined = (120**2 * 2) / 240**2
    assert table["mean"]["v_rand"] == pytest.approx(2 * joined / (1 + joined))
    assert table["cases"][0]["v_rand_merge"] == pytest.approx(joined)
    convention = table["challenge_convention"]
    assert (convention["v_rand"], convention["v_rand_threshold"]) == (pytest.approx(1), 0.2)
    assert [point["threshold"] for point in table["thresholds"]] == list(THRESHOLDS)


def test_a_threshold_beside_the_grid():
    table = separated(Threshold(0.437, BY_HAND), ("p", probabilities(membrane=0.44, spurious=0.436))).table()
    assert table["mean"]["v_rand"] == pytest.approx(1)
    assert table["challenge_convention"]["v_rand"] < 1


def test_units_are_patients_where_there_are_several():
    good, bad = probabilities(membrane=1, spurious=0), probabilities(membrane=0, spurious=0)
    one = separated(Threshold(0.5, NOT_TUNED), ("p", good), ("p", good), ("p", bad)).table()
    assert one["mean"]["v_rand"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert one["interval_note"].startswith("bootstrap of the mean over 3 sections of one patient")
    two = separated(Threshold(0.5, NOT_TUNED), ("p", good), ("p", good), ("q", bad)).table()
    assert (one["unit"], two["unit"]) == ("section", "patient")
    assert two["mean"]["v_rand"] == pytest.approx((1 + 2 / 3) / 2)
    assert two["interval_95"]["v_rand"] == pytest.approx((2 / 3, 1))
    assert two["interval_note"].startswith("bootstrap of the mean over 2 patients")


def test_one_section_has_no_interval_and_a_section_without_cells_no_score():
    table = separated(Threshold(0.5, NOT_TUNED), SURE).table()
    assert table["interval_95"] == {"v_rand": None, "v_info": None}
    separation = separated(Threshold(None, HERE))
    separation.add(scored(SURE[1], reference=np.ones_like(REFERENCE)))
    table = separation.table()
    assert (table["threshold"], table["cases"][0]["v_rand"], table["mean"]["v_rand"]) == (0.5, None, None)
    assert separation.picture() is None
    assert "V_Rand  no section has a true cell" in lines(table)


def test_one_channel_is_the_probability_of_class_1():
    _, section = SURE
    for membrane, reference in (("b", REFERENCE), ("a", 1 - REFERENCE)):
        at = []
        for channels in (
            section if membrane == "b" else section[::-1],
            section[1:] if membrane == "b" else section[:1],
        ):
            separation = Separation(["a", "b"], membrane=membrane)
            separation.threshold = Threshold(0.7, BY_HAND)
            separation.add(scored(channels, reference=reference))
            at.append(separation.table()["mean"])
        assert at[0] == at[1]
        assert at[0]["v_rand"] == pytest.approx(1)


def test_a_pixel_at_the_threshold_is_no_membrane_as_the_larger_probability_has_it():
    truth = np.pad(np.ones((4, 1), int), ((0, 0), (0, 1)))
    assert scores(np.full((4, 2), 0.5), truth, 0.5)["v_rand_split"] == 1
    assert scores(np.full((4, 2), 0.51), truth, 0.5)["v_rand_split"] == pytest.approx(1 / 4)


def test_the_picture_is_of_the_worst_section_at_the_threshold():
    good, bad = probabilities(membrane=1, spurious=0), probabilities(membrane=0, spurious=0)
    picture = separated(Threshold(0.5, NOT_TUNED), ("p", good), ("q", bad)).picture()
    assert picture.shape == (12 + 18, 4 * (21 + 4) - 4, 3)
    assert len(np.unique(picture[18:, 50:71].reshape(-1, 3).argmax(1))) == 1
    joined = picture[18:, 75:].astype(int)
    assert (joined[..., 0] > joined[..., 2]).mean() == pytest.approx(10 / 21)


def test_lines_say_where_the_threshold_is_from():
    table = separated(Threshold(0.5, NOT_TUNED), UNSURE, UNSURE).table()
    first, rand, *_, note, convention = lines(table)
    assert first == "Cells separated where the probability of membrane is above 0.5 (default, not tuned):"
    assert rand == (
        "V_Rand  0.667, 95 % interval 0.667 to 0.667, worst section 0.667; challenge convention 1.000 at 0.2"
    )
    assert "2 sections of one patient" in note
    assert "looked up on these sections" in convention


def test_volumes_and_unknown_classes_are_refused():
    with pytest.raises(InputError, match="`membrane` must be one of a, b or null, got 'wall'"):
        Separation(["a", "b"], membrane="wall")
    separation = Separation(["a", "b"], membrane="b")
    with pytest.raises(InputError, match="set `membrane` to null"):
        separation.add(scored(np.zeros((2, 2, 2, 2)), reference=np.zeros((2, 2, 2))))
    with pytest.raises(InputError, match="`membrane` needs `probabilities`"):
        separation.add(scored(None))


@pytest.fixture
def validation(tmp_path):
    """Writes the evaluation.json of a validation, with changes."""

    def write(**changes):
        table = {"partition": "validation", "separation": {"threshold": 0.35, "threshold_from": HERE}} | HERE_AND_NOW
        path = tmp_path / "evaluation.json"
        path.write_text(json.dumps(table | changes))
        return str(path)

    return write


def test_a_threshold_and_where_it_is_from(validation):
    assert threshold_of(None, "validation", HERE_AND_NOW) == (None, HERE)
    assert threshold_of(None, "test", HERE_AND_NOW) == (0.5, NOT_TUNED)
    assert threshold_of(0.4, "test", HERE_AND_NOW) == threshold_of("0.4", "test", HERE_AND_NOW) == (0.4, BY_HAND)
    assert threshold_of(validation(), "test", HERE_AND_NOW) == (0.35, VALIDATION)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"partition": "test"}, "chosen on the validation partition, this is the test partition"),
        ({"checkpoint_sha256": "c2"}, "is of another checkpoint"),
        ({"patients_sha256": "s2"}, "is of another split of the manifest"),
        ({"pixels_sha256": "x2"}, "is of another split of the manifest"),
        ({"separation": {"threshold": 0.5, "threshold_from": BY_HAND}}, "chose no threshold"),
        ({"separation": None}, "chose no threshold"),
    ],
)
def test_a_threshold_of_something_else_is_refused(validation, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        threshold_of(validation(**changes), "test", HERE_AND_NOW)


@pytest.mark.parametrize("given", [0, 1.0, -1, "2", float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(given):
    with pytest.raises(InputError, match="a number between 0 and 1"):
        threshold_of(given, "test", HERE_AND_NOW)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"partition": "validation", "separation": 5}'])
def test_what_is_no_evaluation_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json: "):
        threshold_of(str(tmp_path / "x.json"), "test", HERE_AND_NOW)
