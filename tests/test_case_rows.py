import numpy as np

from pipeline.case_rows import rows
from pipeline.logged_table import as_logged_table
from pipeline.patient_table import tabulate

CLASSES = ["background", "lung"]


def table(*counts, **row):
    cases = [
        {"id": f"c{n}", "patient": f"p{n}", "counts": {"network": np.array([[100, 0, 0], its])}} | row
        for n, its in enumerate(counts)
    ]
    return tabulate(cases, CLASSES)


def test_the_worst_case_comes_first():
    found = rows(table([10, 0, 0], [5, 5, 5], [1, 9, 9]))
    assert [(row["rank"], row["case"], row["patient"]) for row in found] == [
        (1, "c2", "p2"),
        (2, "c1", "p1"),
        (3, "c0", "p0"),
    ]
    assert found[1] == {
        "rank": 2, "case": "c1", "patient": "p1", "Dice lung": 0.5, "IoU lung": 1 / 3, "wrong pixels (%)": 100 * 5 / 110
    }  # fmt: skip


def test_a_false_positive_on_an_empty_case_is_flagged_and_comes_first():
    found = rows(table([1, 9, 0], [0, 7, 0], [0, 0, 0]))
    assert found[0] | {"wrong pixels (%)": 0.0} == {
        "rank": 1, "case": "c1", "patient": "p1", "Dice lung": None, "Dice lung, empty as 1 or 0": 0.0, "IoU lung": None,
        "false positive": "lung", "wrong pixels (%)": 0.0,
    }  # fmt: skip
    assert [row["false positive"] for row in found] == ["lung", "", ""]


def test_volumes_surfaces_objects_groups_and_pictures_have_columns_where_there_are_any():
    found = table([10, 0, 0], [1, 9, 9], spacing_mm=(1.0, 1.0, 5.0))
    found["surface_distances"] = {"distances_in": "mm", "cases": [
        {"id": name, "patient": name, "hd95": {"lung": far}, "surface_dice": {"lung": 0.9}} for name, far in (("c0", 1.5), ("c1", None))
    ]}  # fmt: skip
    found["instances"] = {
        "cases": [{"id": f"c{n}", "aji": 0.5, "ap_50": 1.0, "ap_75": 0.5, "ap_mean": 0.25} for n in (0, 1)]
    }
    found["subgroups_about"] = {"groups": {"sex": {"p0": "F", "p1": "M"}, "case": {"p0": "x", "p1": "x"}}}
    found["pictures"] = [{"file": "pictures/worst_1.png", "case": "c1"}, {"file": "pictures/best.png", "case": "c1"}]
    worst, best = rows(found)
    assert worst["lung ml reference"] == 0.05
    assert (worst["HD95 lung (mm)"], best["HD95 lung (mm)"], best["surface Dice lung"]) == (None, 1.5, 0.9)
    assert (worst["AJI"], worst["sex"], worst["case"], worst["case (group)"]) == (0.5, "M", "c1", "x")
    assert (worst["picture"], best["picture"]) == ("pictures/worst_1.png", "")
    assert len(set(map(len, as_logged_table([worst, best])["data"]))) == 1


def test_an_image_is_called_what_the_manifest_divides_by():
    assert "image" in rows(table([10, 0, 0]) | {"unit": "image"})[0]
