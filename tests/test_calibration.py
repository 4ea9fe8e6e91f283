import json

import numpy as np
import pytest

from pipeline.calibration import Calibration, joined, lines
from pipeline.errors import DataError, InputError
from pipeline.scoring import Scored

CLASSES = ["background", "lung"]


def case(patient, probability, right, pixels=10, **changes):
    """(1, pixels) that all say foreground with `probability`, of which `right` are."""
    reference = (np.arange(pixels)[None] < right).astype(np.uint8)
    foreground = np.full((1, pixels), probability, np.float32)
    fields = {
        "id": f"{patient}_{probability}", "patient": patient, "image": foreground[None], "reference": reference,
        "prediction": np.ones((1, pixels), np.uint8), "probabilities": np.stack([1 - foreground, foreground]),
    }  # fmt: skip
    return Scored(**(fields | changes))


def scored(*cases):
    scorer = Calibration(CLASSES)
    scorer.start({"unit": "patient"})
    for one in cases:
        scorer.add(one)
    return scorer


def test_cases_are_pooled_per_patient_and_patients_averaged():
    """p: 10 of 20 right where 0.5 is said; q: 9 of 10 where 0.8 is said. Pooled they are still two bins."""
    scorer = scored(case("p", 0.5, 3), case("p", 0.5, 7), case("q", 0.8, 9))
    lung = scorer.table()["everywhere"]["lung"]
    assert lung["ece"] == pytest.approx((0 + 0.1) / 2, abs=1e-4)
    assert lung["pooled"] == pytest.approx((20 * 0 + 10 * 0.1) / 30, abs=1e-4)
    assert lung["interval_95"] == pytest.approx((0.0, 0.1), abs=1e-4)
    assert (lung["patients"], lung["pixels"], lung["excess"]) == (2, 30, pytest.approx(-1 / 30, abs=1e-4))
    assert scorer.scalars()["ece_lung"] == lung["ece"]
    assert set(scorer.scalars()) == {"ece", "ece_lung", "ece_near_foreground", "ece_near_foreground_lung"}


def test_a_patient_without_foreground_counts_everywhere_but_not_near_it():
    nothing = np.zeros((1, 10), np.uint8)
    table = scored(case("p", 0.6, 6), case("q", 0.2, 0, reference=nothing, prediction=nothing)).table()
    assert table["everywhere"]["lung"]["patients"] == 2
    assert table["near_foreground"]["lung"]["patients"] == 1
    assert table["patients"][1]["near_foreground"] == {"confidence": None, "lung": None}
    assert "no pixel" not in "".join(lines(table))


def test_folds_join_to_the_table_of_all():
    cases = [case("p", 0.5, 3), case("q", 0.8, 9), case("r", 0.3, 2)]
    tables = [json.loads(json.dumps(scored(*part).table())) for part in (cases[:1], cases[1:])]
    whole, both = scored(*cases).table(), joined(tables)
    assert both["patients"] == whole["patients"]
    for region in ("everywhere", "near_foreground"):
        for row in ("confidence", "lung"):
            for key in ("ece", "pooled", "excess", "pixels"):
                assert both[region][row][key] == pytest.approx(whole[region][row][key])
    with pytest.raises(InputError, match="different classes"):
        joined([tables[0], tables[1] | {"rows": ["confidence", "heart"]}])


def test_what_cannot_be_scored_is_said():
    with pytest.raises(InputError, match="postprocessing must copy"):
        scored(case("p", 0.5, 3, probabilities=None))
    with pytest.raises(DataError, match="p_0.5: probabilities must be within 0 and 1, got -3 to 4"):
        scored(case("p", 0.5, 3, probabilities=np.stack([np.full((1, 10), -3.0), np.full((1, 10), 4.0)])))


def test_the_picture_has_a_diagram_per_row_and_region():
    scorer = scored(case("p", 0.5, 3), case("q", 0.8, 9))
    picture = scorer.picture()
    assert picture.dtype == np.uint8
    assert picture.shape[0] > picture.shape[1] > 900
    assert Calibration(CLASSES).picture() is None
    assert Calibration(CLASSES).table()["everywhere"]["lung"]["ece"] is None
