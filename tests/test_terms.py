"""Codes of a bundle's metadata are checked without looking anything up, and never reach another class."""

import json

import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode

from pipeline import terms
from pipeline.errors import InputError
from pipeline.terms import TISSUE, Code, Segment
from tests.conftest import ROOT

LUNG = {"label": "Lung", "category": ["SCT", "91723000", "Anatomical Structure"], "type": ["SCT", "39607008", "Lung"]}


def described(*names, **segments):
    outputs = {"pred": {"channel_def": {str(n): name for n, name in enumerate(names)}}}
    return {"segments": segments, "network_data_format": {"outputs": outputs}}


def test_a_class_has_its_codes_and_another_is_tissue():
    found = terms.segments(
        described("background", "lung", "heart", **{"1": LUNG}), ["background", "lung", "heart"], "m"
    )
    assert found[0] == Segment("Lung", Code("SCT", "91723000", "Anatomical Structure"), Code("SCT", "39607008", "Lung"))
    assert found[1] == Segment("heart", TISSUE, TISSUE)
    assert PydicomCode(TISSUE.value, TISSUE.scheme, TISSUE.meaning) == codes.SCT.Tissue


def test_codes_do_not_reach_a_class_that_was_renamed(caplog):
    (found,) = terms.segments(described("background", "lung", **{"1": LUNG}), ["background", "nodule"], "m")
    assert found == Segment("nodule")
    assert "class 1 is called 'nodule' here, so its codes in the metadata are left out" in caplog.text


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        ([], "segments: must be class number -> entry"),
        ({"0": LUNG}, "segments: '0' is no class number"),
        ({"1": "Lung"}, "segments 1: must have label, category and type, got 'Lung'"),
        ({"1": LUNG | {"label": ""}}, "segments 1: label must be a text of 1 to 64 characters"),
        ({"1": LUNG | {"type": "39607008"}}, r"segments 1: type must be \[scheme, value, meaning\].*got '39607008'"),
        ({"1": LUNG | {"type": ["SCT", "39607008"]}}, "segments 1: type must be"),
        ({"1": LUNG | {"category": ["SCT", 91723000, "x"]}}, "segments 1: category must be"),
        (
            {"1": LUNG | {"type": ["SNOMED-CT-OF-2026", "39607008", "Lung"]}},
            "segments 1: type must be .*at most 16, 16 and 64 characters",
        ),
        ({"1": LUNG | {"colour": "red"}}, "segments 1: colour must be written as #rrggbb, got 'red'"),
        ({"1": LUNG | {"color": "#ff0000"}}, "segments 1: 'color' is unknown; there are label, category, type, colour"),
    ],
)
def test_a_wrong_entry_is_one_sentence(segments, sentence):
    with pytest.raises(InputError, match=f"m.json: {sentence}"):
        terms.segments({"segments": segments}, ["background", "lung"], "m.json")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bundles").glob("*/configs/metadata.json")), ids=lambda p: p.parents[1].name
)
def test_codes_of_the_bundles_mean_what_they_say(path):
    metadata = json.loads(path.read_text())
    assert list(terms.problems(metadata)) == []
    known = [codes.SCT, codes.DCM]
    for entry in metadata.get("segments", {}).values():
        for scheme, value, meaning in (entry["category"], entry["type"]):
            name = meaning.title().replace(" ", "").replace("Of", "Of")
            assert any(getattr(home, name, None) == PydicomCode(value, scheme, meaning) for home in known), meaning


def test_a_release_is_told_apart_by_its_weights(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    one, two = (terms.release({"name": "Lungs", "version": "1"}, tmp_path / name) for name in "ab")
    assert (one.name, one.version) == ("Lungs", "1")
    assert one.digest != two.digest
    assert terms.release({"name": "x" * 99}, None).name == "x" * 64
