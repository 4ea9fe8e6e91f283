"""An archive is answered once: by however many processes, and however often it is begun again."""

import os
import shutil

import numpy as np
import pytest
import tifffile

from pipeline import bundle, predict, processes
from pipeline.errors import DataError, user_error
from tests.several import in_processes

EM = "neuron_em_segmentation"


@pytest.fixture
def archive(phantom_dir, tmp_path):
    """Four stacks of three images."""
    for stack in sorted(phantom_dir.glob("*/image.tif")):
        shutil.copy(stack, tmp_path / f"{stack.parent.name}.tif")
    return tmp_path


@pytest.fixture
def answer(trained, archive, tmp_path_factory, monkeypatch):
    """Predict the archive and give which stacks were predicted; `answer.folder` has the label maps."""
    predicted = []
    once = predict.Predictor._predict
    monkeypatch.setattr(
        predict.Predictor, "_predict", lambda self, job: predicted.append(job.source.stem) or once(self, job)
    )

    def call(folder=None, **changes):
        predicted.clear()
        folder = folder or call.folder
        settings = {"source": str(archive), "output_dir": str(folder), "checkpoint": str(trained / "model.pt")}
        bundle.run(bundle.find(EM), "predicting", settings | {"device": "cpu", "resume": True} | changes)
        return list(predicted)

    call.folder = tmp_path_factory.mktemp("answers")
    return call


EVERY = [f"patient-0{n}" for n in (1, 2, 3, 4)]


def test_what_is_answered_is_passed_over_until_something_changes(answer, archive, capfd):
    assert answer() == EVERY
    assert answer() == []
    assert capfd.readouterr().out.count("(already there)") == 4
    (answer.folder / "patient-01.tif").unlink()
    (answer.folder / "patient-02.tif").write_bytes(b"half")
    os.utime(archive / "patient-03.tif", ns=(0, 1))
    assert answer() == EVERY[:3]
    assert tifffile.imread(answer.folder / "patient-02.tif").shape == (3, 64, 64)
    assert answer() == []


def test_other_weights_and_settings_answer_anew(answer, trained, tmp_path_factory):
    import torch

    assert answer() == EVERY
    state = torch.load(trained / "model.pt", weights_only=True)
    state["model"]["head.bias"] += 1e-3
    other = tmp_path_factory.mktemp("other") / "model.pt"
    torch.save(state, other)
    assert answer(checkpoint=str(other)) == EVERY
    assert answer(checkpoint=str(other), tile=64) == EVERY
    assert answer(checkpoint=str(other), tile=64) == []
    assert answer(checkpoint=str(other), tile=64, resume=False) == EVERY


def test_a_journal_that_was_cut_off_answers_its_last_line_anew(answer):
    answer()
    journal = answer.folder / ".answers.0.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert answer() == EVERY[-1:]
    assert answer() == []


def test_two_processes_share_an_archive_and_answer_as_one_does(answer, tmp_path_factory):
    answer()
    folder = tmp_path_factory.mktemp("two")
    first, second = in_processes(2, lambda: answer(folder))
    assert sorted(first + second) == EVERY
    assert first
    assert second
    for name in EVERY:
        np.testing.assert_array_equal(*(tifffile.imread(home / f"{name}.tif") for home in (answer.folder, folder)))
    assert in_processes(2, lambda: answer(folder)) == [[], []]


def test_the_first_process_tells_what_another_could_not_predict(answer, archive, tmp_path_factory):
    for name in EVERY[1:]:
        (archive / f"{name}.tif").write_bytes(b"broken")
    folder = tmp_path_factory.mktemp("broken")

    def work():
        try:
            return answer(folder)
        except RuntimeError as error:
            return processes.rank(), user_error(error)

    answers = in_processes(2, work)
    (rank, mistake), other = answers
    assert (rank, type(mistake)) == (0, DataError)
    assert str(mistake).startswith("3 of 4 inputs could not be predicted:\n")
    assert isinstance(other, list)
    assert [path.name for path in folder.glob("*.tif")] == ["patient-01.tif"]
