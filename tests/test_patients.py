import re
import unicodedata

import numpy as np
import pytest
import tifffile

from pipeline.errors import DataError, InputError
from pipeline.index import index
from pipeline.patients import identity, join, refuse_two_spellings
from pipeline.recipe import Columns, Recipe, read_recipe, recipe
from tests.conftest import ROOT, real

KAGGLE = r"(?P<patient>TCGA.(?P<institution>[A-Z]{2}).\w{4})_(?P<study>\d{8})"


def make(folder, *names, pages=(1, 2, 10)):
    for name in names:
        (folder / name).mkdir(parents=True)
        for page in pages:
            tifffile.imwrite(folder / name / f"{name}_{page}.tif", np.full((8, 8), page, np.uint8))
            tifffile.imwrite(folder / name / f"{name}_{page}_mask.tif", np.full((8, 8), 255, np.uint8))
    return folder


def slices(**more):
    fields = {"name": "x", "image": "{patient}/{patient}_{page}.tif", "label": "{patient}/{patient}_{page}_mask.tif"}
    return recipe(fields | {"classes": {"background": 0, "tumour": 255}} | more)


def test_two_dates_of_one_patient_are_one_patient_and_two_studies(tmp_path):
    make(tmp_path, "TCGA_CS_4941_19960909", "TCGA_CS_4941_19970101")
    cases = index(tmp_path, slices(patient_id=KAGGLE)).unassigned
    assert {case.patient for case in cases} == {"TCGA_CS_4941"}
    assert len({case.study for case in cases}) == 2
    assert not any("1996" in case.id + case.study for case in cases)
    assert {case.institution for case in cases} == {"CS"}


def test_slices_are_in_numeric_order(tmp_path):
    cases = index(make(tmp_path, "TCGA_CS_4941_19960909"), slices(patient_id=KAGGLE)).unassigned
    assert [case.image.rpartition("_")[2] for case in cases] == ["1.tif", "2.tif", "10.tif"]


def test_one_patient_under_two_spellings(tmp_path):
    make(tmp_path, "TCGA_CS_4941_19960909", "tcga-cs-4941_19970101")
    assert {case.patient for case in index(tmp_path, slices(patient_id=KAGGLE)).unassigned} == {"TCGA_CS_4941"}


def test_two_spellings_without_a_declared_pattern_are_refused(tmp_path):
    make(tmp_path, "case-007", "Case_7")
    with pytest.raises(DataError, match="the patients 'Case_7' and 'case-007' differ only in spelling"):
        index(tmp_path, slices())


@pytest.mark.parametrize(
    "names", [("case-007", "Case_7"), ("P-1", "P01"), ("P01", "p1"), ("Jane-Doe", "jane doe"), ("S1_11", "s01-11")]
)
def test_names_that_differ_in_spelling_alone(names):
    with pytest.raises(DataError, match="differ only in spelling"):
        refuse_two_spellings(set(names))


def test_punctuation_between_numbers_counts():
    assert refuse_two_spellings({"S1_11", "S11_1", "S111", "1.10", "11.0"}) is None


@pytest.mark.parametrize("names", [("case-007", "Case_7"), ("P-1", "p01"), ("Jane-Doe", "jane doe")])
def test_what_the_refusal_proposes_makes_them_one(names):
    with pytest.raises(DataError) as refusal:
        refuse_two_spellings(set(names))
    proposed = re.search(r"--patient-id '(\S+)'", str(refusal.value))[1]
    assert len({identity(name, proposed).patient for name in names}) == 1


@pytest.mark.parametrize("patient_id", [None, r"M\w+"])
def test_an_accented_letter_in_one_or_two_characters_is_one_patient(tmp_path, patient_id):
    one, two = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    (tmp_path / "data.csv").write_text(f"Patient,sex\n{two},2\n", encoding="utf-8")
    columns = {"file": "data.csv", "patient": "Patient", "take": {"sex": "sex"}}
    recipe = slices(patient_id=patient_id, columns=columns)
    for name, page in ((one, 1), (two, 2)):
        make(tmp_path, name, pages=[page])
    assert one != two
    assert {(case.patient.upper(), case.sex) for case in index(tmp_path, recipe).unassigned} == {(one.upper(), "2")}


def test_a_name_that_the_pattern_does_not_match_is_said():
    with pytest.raises(InputError, match="the patient 'DOE_JANE' does not match `patient_id`"):
        identity("DOE_JANE", KAGGLE)


def test_a_table_joins_columns_and_bands_ages(tmp_path):
    make(tmp_path, "TCGA_CS_4941_19960909", "TCGA_DU_5851_19950428")
    (tmp_path / "data.csv").write_text("Patient,age,gender\nTCGA_CS_4941,67,2\nTCGA_DU_5851,40,NA\n")
    columns = {"file": "data.csv", "patient": "Patient", "take": {"age_band": "age/20", "sex": "gender"}}
    cases = index(tmp_path, slices(patient_id=KAGGLE, columns=columns)).unassigned
    assert {(c.patient, c.age_band, c.sex) for c in cases} == {
        ("TCGA_CS_4941", "60-79", "2"),
        ("TCGA_DU_5851", "40-59", None),
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Patient,age\nA,67\nA,27\n", "two lines of patient A that differ"),
        ("Name,age\nA,67\n", "no column 'Patient'; there is Name, age"),
        ("Patient,age\nA,old\n", "'old' cannot be put into bands of 20"),
        ("", "no column 'Patient'; there is none"),
        ("Patient,age\nA,67\nB\n", r"data\.csv, line 3: fewer columns than the header has; correct the line"),
        ("Patient,age\nA,67,\n", r"data\.csv, line 2: more columns than the header has"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, sentence):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        join(Columns(file="data.csv", patient="Patient", take={"age_band": "age/20"}), tmp_path, None)


def test_a_patient_without_a_line_is_named(tmp_path):
    make(tmp_path, "TCGA_CS_4941_19960909")
    (tmp_path / "data.csv").write_text("Patient,age\nTCGA_XX_0000,67\n")
    columns = {"file": "data.csv", "patient": "Patient", "take": {"age_band": "age/20"}}
    with pytest.raises(InputError, match="patient TCGA_CS_4941 has no line in the table"):
        index(tmp_path, slices(patient_id=KAGGLE, columns=columns))


def test_a_recipe_with_a_misspelt_field_is_refused():
    with pytest.raises(InputError, match=r"r\.yaml: field `lable`: Extra inputs are not permitted; there is name"):
        recipe({"name": "x", "image": "{patient}.tif", "lable": "y"}, "r.yaml")
    with pytest.raises(InputError, match="`name`: is needed; say --name, or write it into a recipe"):
        recipe({"image": "{patient}.tif"})


@pytest.mark.parametrize("name", ["id", "patient", "page", "label", "pixels", "fold"])
def test_no_column_overwrites_what_a_case_says(name):
    sentence = f"a column may not be called '{name}', which is a field of every case; choose another name"
    with pytest.raises(InputError, match=sentence):
        slices(columns={"file": "data.csv", "patient": "Patient", "take": {name: "Patient"}})
    if name != "patient":
        with pytest.raises(InputError, match=sentence):
            slices(patient_id=rf"(?P<{name}>\d+)")


@pytest.mark.parametrize("classes", [None, 5, [0, 255], ["background", "lung"], "background"])
def test_classes_are_a_mapping(classes):
    with pytest.raises(InputError, match="field `classes`: write classes as a mapping .* as in `background: 0`"):
        slices(classes=classes)


@pytest.mark.parametrize("spacing_mm", [[], [1.0], [0.5, 0.5, 0.5], [0.5, 0], [0.5, -1], [0.5, float("nan")]])
def test_a_spacing_is_two_numbers(spacing_mm):
    with pytest.raises(InputError, match="field `spacing_mm`: write height and width of a pixel in millimetres"):
        slices(spacing_mm=spacing_mm)


@pytest.mark.parametrize("path", sorted((ROOT / "data_manifest").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_read(path):
    assert Recipe(**read_recipe(path)).name == path.stem


def test_the_real_collection_has_twenty_patients():
    folder = real("lgg_kaggle3m")
    manifest = index(folder, Recipe(**read_recipe(ROOT / "data_manifest" / "brain_mri.yaml")))
    assert len({case.patient for case in manifest.unassigned}) == 20
    assert len(manifest.unassigned) == 655
    assert all({"institution", "age_band", "sex", "subtype"} <= case.model_extra.keys() for case in manifest.unassigned)
