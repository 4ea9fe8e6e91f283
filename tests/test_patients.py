import numpy as np
import pytest
import tifffile

from pipeline.errors import DataError, InputError
from pipeline.index import index
from pipeline.patients import identity, join
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


@pytest.mark.parametrize("path", sorted((ROOT / "data_manifest").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_read(path):
    assert Recipe(**read_recipe(path)).name == path.stem


def test_the_real_collection_has_twenty_patients():
    folder = real("lgg_kaggle3m")
    manifest = index(folder, Recipe(**read_recipe(ROOT / "data_manifest" / "brain_mri.yaml")))
    assert len({case.patient for case in manifest.unassigned}) == 20
    assert len(manifest.unassigned) == 655
    assert all({"institution", "age_band", "sex", "subtype"} <= case.model_extra.keys() for case in manifest.unassigned)
