"""What a model answered is never taken for a reference, and never overwrites what it was given."""

import json

import pytest

from pipeline import seg
from pipeline.certificate import certificate_path
from pipeline.dicom import read_series
from pipeline.errors import InputError
from pipeline.jobs import find_jobs
from pipeline.phantom import write_ct_patient


@pytest.fixture
def site(tmp_path):
    """One series without a reference, and a segmentation beside it under the name that an answer would have."""
    label = write_ct_patient(tmp_path / "ct", seed=1)
    seg.write_segmentation(
        label, read_series(tmp_path / "ct"), tmp_path / "ct.dcm", class_names=["lesion"], version="1"
    )
    return tmp_path


def test_a_reference_is_not_overwritten_by_an_answer(site):
    with pytest.raises(InputError, match=r"ct\.dcm: is among the input and no earlier answer.* another output folder"):
        find_jobs(site, site)
    certificate_path(site / "ct.dcm").write_text(json.dumps({}))
    assert [job.target for job in find_jobs(site, site).jobs] == [site / "ct.dcm"]


def test_an_answer_is_no_reference(site, overtile):
    words = ("index", site, "--name", "x", "--out", site / "out/m.json")
    assert "1 with a reference" in overtile(*words)[1]
    certificate_path(site / "ct.dcm").write_text(json.dumps({}))
    (site / "out/m.json").unlink()
    _, said = overtile(*words, "--class", "background=0", "--class", "lesion=1")
    assert "1 with a reference" not in said
    assert "answer of a model" in (site / "out/m_report.json").read_text()
