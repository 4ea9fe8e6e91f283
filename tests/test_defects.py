"""Every defect is refused by its rule with a sentence that names the file at fault, and what is none is read."""

from importlib.util import find_spec

import numpy as np
import pytest

from pipeline.defects import DEFECTS
from pipeline.dicom import read_series
from pipeline.regular import Refused
from pipeline.synthetic_series import write_series

VALUES = np.arange(12 * 10 * 6).reshape(12, 10, 6)
BAD = [name for name, defect in DEFECTS.items() if defect.rule]


@pytest.fixture
def folder(tmp_path):
    write_series(VALUES, tmp_path / "series", spacing_mm=(2, 1.5, 3), patient_id="P")
    return tmp_path / "series"


@pytest.mark.parametrize("name", BAD)
def test_a_defect_is_refused_by_rule_and_file(folder, name):
    at_fault = DEFECTS[name].spoil(folder)
    with pytest.raises(Refused) as refusal:
        _ = read_series(folder).volume
    assert refusal.value.rule == DEFECTS[name].rule
    assert at_fault is None or at_fault.name in str(refusal.value)


@pytest.mark.parametrize("name", sorted(set(DEFECTS) - set(BAD)))
def test_what_lies_beside_a_good_series_is_passed_over(folder, name):
    assert DEFECTS[name].spoil(folder).is_file()
    np.testing.assert_array_equal(read_series(folder).volume, VALUES)


@pytest.mark.parametrize("name", DEFECTS)
def test_an_index_refuses_it_by_rule_and_file(folder, name):
    if find_spec("pipeline.studies") is None:
        pytest.skip("nothing groups studies yet")
    from pipeline import studies

    at_fault, rule = DEFECTS[name].spoil(folder), DEFECTS[name].indexed
    tree = studies.find(folder.parent)
    if rule is None:
        assert len(tree.cases) == (2 if name == "two series" else 1) and not tree.refused
    else:
        assert (tree.cases, [refusal.rule for refusal in tree.refused]) == ([], [rule])
        told = tree.refused[0]
        assert at_fault is None or at_fault.name in told.message + told.file


def test_an_mr_becomes_multi_frame_too(tmp_path):
    write_series(VALUES, tmp_path, spacing_mm=(2, 1.5, 3), patient_id="P", modality="MR")
    assert DEFECTS["enhanced multi-frame"].spoil(tmp_path) == tmp_path / "enhanced.dcm"
    assert [path.name for path in tmp_path.iterdir()] == ["enhanced.dcm"]
