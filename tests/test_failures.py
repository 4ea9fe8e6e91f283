"""What a run says of its failure names no file, no identifier and no value of a header."""

import pytest

from pipeline.failures import MAY_QUOTE, NAMES_A_FILE, without_paths
from pipeline.manifest import Case
from pipeline.regular import Refused

CASES = [
    Case(id="P-1", patient="P-1", image="Doe, Jane/mr", label="Doe, Jane/seg.dcm"),
    Case(id="P-2", patient="P-2", image="Roe, Richard/mr", label="Roe, Richard/seg.dcm"),
]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Refused("/d/Doe, Jane/mr: a.dcm is a copy", "slice twice", "a.dcm"), "Refused: P-1: slice twice"),
        (Refused("somewhere: a.dcm is a copy", "slice twice", "a.dcm"), "Refused: slice twice"),
        (ValueError("/d/Doe, Jane/mr: 4 pixels are NaN"), "ValueError: P-1: 4 pixels are NaN"),
        (ValueError("Doe, Jane/seg.dcm: cannot be decoded (Jane's)"), "ValueError: P-1: cannot be decoded"),
        (ValueError("Doe, Jane/seg.dcm: not as x.dcm says"), f"ValueError: {NAMES_A_FILE}"),
        (ValueError("series 1.2.826.0.1.3680043 is odd"), f"ValueError: {NAMES_A_FILE}"),
        (ValueError("Jane_Doe.tif is odd"), f"ValueError: {NAMES_A_FILE}"),
        (ValueError("the name Roe, Richard is odd"), f"ValueError: {NAMES_A_FILE}"),
        (ValueError("the last dimension is odd"), "ValueError: the last dimension is odd"),
    ],
)
def test_a_failure_is_told_by_case_and_rule(error, told):
    assert without_paths(error, CASES) == told


def test_names_that_are_public_may_be_told():
    cases = [Case(id=f"{name}_000", patient=name, image=f"{name}/image.tif") for name in ("patient-01", "patient-02")]
    assert without_paths(ValueError("patient-01/image.tif: 4 pixels are NaN"), cases).endswith(
        "patient-01_000: 4 pixels are NaN"
    )


def test_a_folder_of_one_letter_is_not_found_in_every_word():
    assert without_paths(ValueError("the loss is nan"), [Case(id="P-1", patient="P-1", image="a")]) == (
        "ValueError: the loss is nan"
    )


def test_what_a_library_says_of_a_file_is_not_repeated():
    from pydicom.valuerep import DA

    with pytest.raises(ValueError, match="Doe") as caught:
        DA("Doe, Jane")
    assert without_paths(caught.value).endswith(f"Error: {MAY_QUOTE}")
