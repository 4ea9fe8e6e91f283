import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from mlflow import MlflowClient
from monai.engines import SupervisedTrainer
from PIL import Image

from pipeline import manifest as manifests
from pipeline import outbox
from pipeline.errors import DataError, InputError
from pipeline.failures import without_paths
from pipeline.manifest import Case
from pipeline.outbox import Outbox
from pipeline.store import sqlite_store
from pipeline.tracking import TrackingHandler
from tests.conftest import ROOT

SECONDS = [f"seconds_{what}" for what in ("loading", "augmenting", "waiting", "computing", "validating")]


def rows(folder, query):
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


def metric(folder, key):
    return rows(folder, f"select step, value from metrics where key = '{key}' order by step")


def trainer(manifest, folder, explode=None, store=None):
    """A training of one weight for two epochs of two steps; `explode` is called in step 3."""
    network = torch.nn.Conv2d(1, 2, 1)
    batch = {"image": torch.zeros(2, 1, 4, 4), "label": torch.zeros(2, 1, 4, 4)}
    config = {"a": {"b": [1, 2]}, "lr": 0.1}
    handler = TrackingHandler(str(folder), "test", str(manifest), config=config, store=store)
    engine = SupervisedTrainer(
        torch.device("cpu"), 2, [batch, batch], network, torch.optim.SGD(network.parameters(), 0.1),
        lambda prediction, _: prediction.mean(), train_handlers=[handler],
    )  # fmt: skip
    if explode:
        engine.add_event_handler(Events.ITERATION_STARTED(once=3), explode)
    return engine


def test_a_bundles_run_says_all_of_it(trained, phantom_manifest):
    ((status, experiment),) = rows(
        trained, "select status, experiments.name from runs join experiments using (experiment_id)"
    )
    assert (status, experiment) == ("FINISHED", "neuron_em_segmentation")
    for key in ("learning_rate", "images_per_second", "gradient_norm", *SECONDS):
        assert [step for step, _ in metric(trained, key)] == [1, 2], key
    assert metric(trained, "val_dice_membrane") == [(s, pytest.approx(v)) for s, v in metric(trained, "val_mean_dice")]
    assert [step for step, _ in metric(trained, "system/cpu_utilization_percentage")][:1] == [0]
    parts = zip(metric(trained, "loss_dice"), metric(trained, "loss_ce"), strict=True)
    assert [a + b for (_, a), (_, b) in parts] == pytest.approx([value for _, value in metric(trained, "loss")])
    assert 0 < metric(trained, "loss")[1][1] < metric(trained, "loss")[0][1]
    params = dict(rows(trained, "select key, value from params"))
    assert (params["epochs"], params["width"], params["network_def.depth"]) == ("2", "16", "@depth")
    manifest = manifests.read(phantom_manifest)
    tags = dict(rows(trained, "select key, value from tags"))
    assert tags.items() >= manifest.split_digests().items()
    assert tags["version.monai"] == "1.6.1"
    assert re.fullmatch("[0-9a-f]{40}|unknown", tags["code_commit"])


def test_artifacts_are_the_merged_config_and_pictures(trained):
    client = MlflowClient(sqlite_store(trained))
    run = client.search_runs([client.get_experiment_by_name("neuron_em_segmentation").experiment_id])[0]
    config = json.loads(Path(client.download_artifacts(run.info.run_id, "config.json")).read_text())
    assert config["epochs"] == 2
    assert config["network_def"]["_target_"] == "pipeline.networks.UNet"
    with Image.open(client.download_artifacts(run.info.run_id, "learning_curves.png")) as curves:
        assert curves.size == (990, 660)
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures == {f"pictures/{name}.png" for name in ("worst", "median", "best")}


def test_an_exception_says_failed_and_why(phantom_manifest, tmp_path):
    def explode(_):
        raise ZeroDivisionError("loss of nothing")

    with pytest.raises(ZeroDivisionError):
        trainer(phantom_manifest, tmp_path, explode).run()
    assert rows(tmp_path, "select status from runs") == [("FAILED",)]
    assert rows(tmp_path, "select value from tags where key = 'failure'") == [("ZeroDivisionError: loss of nothing",)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_says_killed(phantom_manifest, tmp_path, how):
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(phantom_manifest, tmp_path, lambda _: os.kill(os.getpid(), how)).run()
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert rows(tmp_path, "select status from runs") == [("KILLED",)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_while_it_waits_for_the_store_says_killed(phantom_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(Outbox, "send", stopped_after(Outbox.send))
    with pytest.raises(KeyboardInterrupt):
        trainer(phantom_manifest, tmp_path).run()
    assert rows(tmp_path, "select status from runs") == [("KILLED",)]
    assert ("lr", "0.1") in rows(tmp_path, "select key, value from params")


def stopped_after(method):
    """The same method, and then Ctrl-C."""

    def stopped(*arguments):
        method(*arguments)
        raise KeyboardInterrupt

    return stopped


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_swallows_stops_it_all_the_same(phantom_manifest, tmp_path):
    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)  # what is raised here is ignored, as it is while a process is forked

    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        trainer(phantom_manifest, tmp_path, lambda _: Deleted() and None).run()
    assert rows(tmp_path, "select status from runs") == [("KILLED",)]


def test_two_runs_never_mix(phantom_manifest, tmp_path):
    def explode(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(phantom_manifest, tmp_path, explode).run()
    trainer(phantom_manifest, tmp_path).run()
    points = rows(
        tmp_path, "select status, count(*) from runs join metrics using (run_uuid) where key = 'loss' group by run_uuid"
    )
    assert sorted(points) == [("FAILED", 1), ("FINISHED", 2)]


@pytest.mark.parametrize("store", ["mlruns_typo", "htp://server:5000", "sqlite:////proc/none/mlflow.db"])
def test_a_store_that_is_none_gets_a_sentence(phantom_manifest, tmp_path, store):
    engine = trainer(phantom_manifest, tmp_path, store=store)
    with pytest.raises(InputError, match="no MLflow store answers there .*give `tracking_uri` as sqlite:///FILE"):
        engine.run()


def test_what_the_store_refuses_ends_no_training(phantom_manifest, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise PermissionError("no room for artifacts")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    trainer(phantom_manifest, tmp_path).run()
    assert rows(tmp_path, "select status from runs") == [("FINISHED",)]
    assert [step for step, _ in metric(tmp_path, "loss")] == [1, 2]
    assert len([text for text in caplog.messages if "refuses config.json (no room for artifacts)" in text]) == 1
    assert len(list(tmp_path.glob("unsent/*/files/*/config.json"))) == 1


def test_a_store_that_dies_hides_no_error(phantom_manifest, tmp_path, monkeypatch, caplog):
    def explode(_):
        monkeypatch.setattr(MlflowClient, "set_tag", gone)
        raise ZeroDivisionError("loss of nothing")

    def gone(*_):
        raise OSError("database is gone")

    monkeypatch.setattr(outbox, "END_SECONDS", 1)
    with pytest.raises(ZeroDivisionError):
        trainer(phantom_manifest, tmp_path, explode).run()
    assert len([text for text in caplog.messages if "does not answer (database is gone)" in text]) == 1


def test_a_real_training_stopped_by_sigterm(phantom_manifest, tmp_path):
    words = [
        "--manifest",
        phantom_manifest,
        "--output_dir",
        tmp_path,
        "--epochs",
        "1000",
        "--patch",
        "64",
        "--workers",
        "1",
    ]
    line = [sys.executable, "-m", "pipeline", "run", "neuron_em_segmentation", "training", *map(str, words)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (tmp_path / "last.pt").exists(), "no epoch in 240 s"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert rows(tmp_path, "select status from runs") == [("KILLED",)]


def test_paths_of_patients_do_not_reach_the_store(trained, phantom_dir):
    found = [path for path in trained.rglob("*") if path.is_file() and b"patient-01/image.tif" in path.read_bytes()]
    assert found == []


def test_a_failure_is_told_without_the_paths_of_patients():
    def wrapped():
        try:
            raise DataError("/data/Mary Jane Doe/scan 1.tif, page 3: 4 pixels are NaN")
        except DataError as error:
            raise RuntimeError("applying transform") from error

    with pytest.raises(RuntimeError) as caught:
        wrapped()
    assert without_paths(caught.value) == f"DataError: {HIDDEN}"


HIDDEN = "what it says names a file, so it was told on the terminal alone"
CASE = Case(id="P-1_003", patient="P-1", image="Doe, Jane/O'Brien: a.tif", label="Doe, Jane/label.tif")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/data/Doe, Jane/O'Brien: a.tif, page 3: 4 pixels are NaN", "P-1_003, page 3: 4 pixels are NaN"),
        ("Doe, Jane/label.tif: raw value 7", "P-1_003: raw value 7"),
        ("/data/Meier, Hans.tif: raw value 7", HIDDEN),
        ("Doe, Jane/label.tif is not Doe, Jane/other.tif", HIDDEN),
        ("the loss is nan: lower it", "the loss is nan: lower it"),
    ],
)
def test_files_are_told_by_their_case_or_not_at_all(text, told):
    assert without_paths(ValueError(text), [CASE]) == f"ValueError: {told}"


def test_a_full_disk_is_told_without_its_file():
    assert (
        without_paths(OSError(28, "No space left on device", "/d/Meier, Hans.pt")) == "OSError: No space left on device"
    )
