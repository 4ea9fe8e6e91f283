"""Laws of a training that can be believed: however it is run, stopped and resumed, its weights are the same bits."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch

from pipeline import bundle, checkpoint, precision
from tests.conftest import ROOT

EM = "neuron_em_segmentation"
SMALL = {"patch": 64, "patches_per_case": 2, "width": 4, "depth": 3, "learning_rate": 0.003, "epochs": 5}
SMALL |= {"dropout": 0.3, "workers": 0, "log_model": False}


def train(manifest, folder, overlays=(), **changes):
    """A training in this process; what it leaves in last.pt."""
    settings = SMALL | {"manifest": str(manifest), "output_dir": str(folder)} | changes
    bundle.run(bundle.find(EM), "training", settings, overlays)
    return torch.load(folder / "last.pt", weights_only=True)


def start(manifest, folder, **changes):
    """The same training in a process of its own, which may be killed."""
    settings = SMALL | {"manifest": str(manifest), "output_dir": str(folder), "workers": 1} | changes
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    line = [sys.executable, "-m", "pipeline", "run", EM, "training", *words]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_after(process, sign, seconds=0.0):
    """SIGKILL some seconds after a line that contains `sign`."""
    shown = []
    try:
        for line in process.stdout:
            shown.append(line)
            if sign in line:
                time.sleep(seconds)
                break
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert sign in "".join(shown), "".join(shown)


def same(first, second):
    """Whether two states hold the same bits; run ids, and where files lie, may differ."""
    return all(equal(first[key], second[key]) for key in first.keys() - {"run_id", "config", "config_sha256"})


def equal(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def points(folder):
    """Status of every run, and its points: (key, step, value) without speed and seconds, which no two runs share."""
    query = (
        "select key, step, value from metrics where key != 'images_per_second' and key not like '%seconds%' "
        "and key not like 'system/%' order by key, step"
    )
    with sqlite3.connect(folder / "mlflow.db") as store:
        statuses = [status for (status,) in store.execute("select status from runs")]
        speeds = store.execute("select step from metrics where key = 'images_per_second' order by step").fetchall()
        return statuses, store.execute(query).fetchall(), [step for (step,) in speeds]


@pytest.fixture(scope="module")
def whole(phantom_manifest, tmp_path_factory):
    """Five epochs without a stop: the folder and the state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(phantom_manifest, folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(whole, phantom_manifest, tmp_path, workers):
    assert same(train(phantom_manifest, tmp_path, workers=workers), whole[1])


def test_another_seed_changes_everything(whole, phantom_manifest, tmp_path):
    other = train(phantom_manifest, tmp_path, seed=1)
    assert not torch.equal(other["network"]["head.weight"], whole[1]["network"]["head.weight"])


def test_five_epochs_are_two_a_sigkill_and_three(whole, phantom_manifest, tmp_path, overtile, monkeypatch, empty_store):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    shutil.copy(empty_store, tmp_path / "mlflow.db")  # a new one would be made while it trains
    kill_after(start(phantom_manifest, tmp_path), "epoch 2/5")
    assert points(tmp_path)[0] == ["RUNNING"]  # nobody was left to say otherwise
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("update tags set value = value - 301 where key = 'heartbeat'")  # five minutes pass
    code, output = overtile("runs", tmp_path)
    assert (code, points(tmp_path)[0]) == (0, ["KILLED"])
    assert "the process ended without a word" in output
    assert same(train(phantom_manifest, tmp_path, resume=True, workers=2), whole[1])
    statuses, found, speeds = points(tmp_path)
    assert (statuses, found, speeds) == (["FINISHED"], points(whole[0])[1], [1, 2, 3, 4, 5])
    best = [torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, whole[0])]
    assert equal(*best)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        machine = store.execute("select step from metrics where key like 'system/cpu%' order by timestamp").fetchall()
    assert [step for (step,) in machine] == list(range(len(machine)))  # it was not counted from 0 again
    assert len(machine) > 1


def test_points_of_an_epoch_without_its_checkpoint_are_not_doubled(whole, phantom_manifest, tmp_path, monkeypatch):
    stop_before(monkeypatch, save=3)
    with pytest.raises(KeyboardInterrupt):
        train(phantom_manifest, tmp_path)
    assert [step for key, step, _ in points(tmp_path)[1] if key == "loss"] == [1, 2, 3]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2
    monkeypatch.undo()
    assert same(train(phantom_manifest, tmp_path, resume=True), whole[1])
    assert points(tmp_path)[0] == ["FINISHED"]
    assert points(tmp_path)[1] == points(whole[0])[1]


def stop_before(monkeypatch, save):
    """Interrupt the training just before it writes the state of epoch `save`."""
    written = checkpoint.save

    def stop(state, path):
        if path.name == "last.pt" and state["epoch"] == save:
            raise KeyboardInterrupt
        written(state, path)

    monkeypatch.setattr(checkpoint, "save", stop)


SETTINGS = {
    "plateau": {"lr_schedule": "plateau", "lr_patience": 0, "lr_factor": 0.1, "learning_rate": 0.05},
    "clipped and accumulated": {"clip_norm": 0.1, "accumulate": 2},
    "bfloat16": {"amp": True},
    "sigmoid": {"head": "sigmoid"},
    "early": {"patience": 1, "epochs": 8, "learning_rate": 1e-9, "save_every": 2},
    "valid": {"padding": "valid", "patch": 92},
    "paper": {"overlays": ["paper"], "patch": 92, "width": 4, "depth": 3, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_way_to_train_survives_a_stop(phantom_manifest, tmp_path, monkeypatch, name):
    if name == "bfloat16":
        monkeypatch.setattr(precision, "computes_in_bfloat16", lambda _: True)
    settings = {"epochs": 4} | SETTINGS[name]
    uninterrupted = train(phantom_manifest, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, save=2)
        train(phantom_manifest, tmp_path / "stopped", **settings)
    assert same(train(phantom_manifest, tmp_path / "stopped", resume=True, **settings), uninterrupted)
    assert points(tmp_path / "stopped")[:2] == points(tmp_path / "whole")[:2]


def test_the_keys_do_what_they_say(whole, phantom_manifest, tmp_path, monkeypatch):
    rates = {step: value for key, step, value in points(whole[0])[1] if key == "learning_rate"}
    assert rates[1] == 0.003
    assert rates[5] < 0.0003
    early = train(phantom_manifest, tmp_path / "early", **SETTINGS["early"])
    assert early["epoch"] == early["best_metric_epoch"] + 1 < 8
    kept = sorted(path.name for path in (tmp_path / "early").glob("epoch_*.pt"))
    assert kept == [f"epoch_{epoch:04d}.pt" for epoch in range(2, early["epoch"] + 1, 2)]
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda _: True)
    half = train(phantom_manifest, tmp_path / "half")
    assert not torch.equal(half["network"]["head.weight"], whole[1]["network"]["head.weight"])
    full = train(phantom_manifest, tmp_path / "full", amp=False)
    assert same(full, whole[1])


def test_a_resume_with_other_settings_is_refused_by_the_command(whole, phantom_manifest, overtile):
    words = [word for key, value in (SMALL | {"epochs": 9}).items() for word in (f"--{key}", value)]
    folder = ["--manifest", phantom_manifest, "--output_dir", whole[0]]
    code, output = overtile("run", EM, "training", *words, *folder, "--resume", "True")
    assert code == 2
    assert "is from a training with other settings (epochs was 5, is 9); give the same ones to resume it" in output


def test_a_diverging_training_stops_with_a_diagnosis_that_the_run_keeps(phantom_manifest, tmp_path, overtile):
    words = [word for key, value in (SMALL | {"learning_rate": 1e20}).items() for word in (f"--{key}", value)]
    code, output = overtile("run", EM, "training", *words, "--manifest", phantom_manifest, "--output_dir", tmp_path)
    assert code == 1
    assert "error: the loss is " in output
    assert "lower `learning_rate` (now 1e+20)" in output
    code, output = overtile("runs", tmp_path)
    assert code == 0
    assert "FAILED" in output
    assert "the loss is " in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_kills_at_random_moments(phantom_manifest, tmp_path):
    settings = {"epochs": 12, "patches_per_case": 8}
    expected = train(phantom_manifest, tmp_path / "whole", **settings)
    moments = [random.Random(f"kill {number}").uniform(0, 3) for number in range(3)]
    for number, seconds in enumerate(moments):
        process = start(phantom_manifest, tmp_path / "killed", resume=number > 0, **settings)
        kill_after(process, "MLflow run", seconds)
    assert same(train(phantom_manifest, tmp_path / "killed", resume=True, **settings), expected)
    statuses, found, speeds = points(tmp_path / "killed")
    assert statuses == ["FINISHED"]
    assert found == points(tmp_path / "whole")[1]
    assert speeds == list(range(1, 13))
