"""What a reviewer finds in the store after a training: words, datasets, and a model that is registered."""

import json
import re
import sqlite3
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from mlflow import MlflowClient

from pipeline import data_inputs, logged_model
from pipeline import manifest as manifests
from pipeline.digests import file_digest
from pipeline.manifest import PARTITIONS
from pipeline.store import environment, sqlite_store
from pipeline.tracking import TrackingHandler
from pipeline.verdicts import NOTE, VERDICT, WEIGHTS
from tests.conftest import edited
from tests.test_tracking import trainer


@pytest.fixture(scope="module")
def run(trained):
    """The training of the shared fixture, as the store has it."""
    client = MlflowClient(sqlite_store(trained))
    (found,) = client.search_runs([client.get_experiment_by_name("neuron_em_segmentation").experiment_id])
    return client, found


def test_a_trainings_words(run, trained):
    _, found = run
    tags = found.data.tags
    assert re.fullmatch(
        r"neuron_em_segmentation \| UNet width 16 depth 5 \| phantom_em \| \d{4}-\d\d-\d\d \d\d:\d\d",
        found.info.run_name,
    )
    assert (tags["bundle"], tags["bundle_version"], tags["partition"]) == (
        "neuron_em_segmentation",
        "0.2.0",
        "training",
    )
    best = max(value for (value,) in sqlite3.connect(trained / "mlflow.db").execute(
        "select value from metrics where key = 'val_mean_dice'"
    ))  # fmt: skip
    assert re.fullmatch(
        rf"trained 2 epochs; best validation Dice {best:.3f} after epoch [12]; not tested", tags[VERDICT]
    )
    assert f"**{tags[VERDICT]}**" in tags[NOTE]
    assert tags[WEIGHTS] == file_digest(trained / "model.pt")


def test_it_can_be_repeated_from_its_files(run):
    client, found = run
    text = Path(client.download_artifacts(found.info.run_id, "environment.txt")).read_text()
    assert {f"torch=={version('torch')}", f"monai=={version('monai')}"} <= set(text.splitlines())
    flow = json.loads(Path(client.download_artifacts(found.info.run_id, "data.json")).read_text())
    assert flow["partitions"]["training"] == {"patients": 2, "cases": 6}


def test_its_datasets_say_what_it_read(run, phantom_manifest):
    _, found = run
    shown = {given.tags[0].value: given.dataset for given in found.inputs.dataset_inputs}
    assert {context: json.loads(dataset.profile) for context, dataset in shown.items()} == {
        "training": {"patients": 2, "cases": 6},
        "validation": {"patients": 1, "cases": 3},
    }
    manifest = manifests.read(phantom_manifest)
    source = json.loads(shown["training"].source)
    assert source == {"manifest_sha256": manifest.digest()} | manifest.split_digests()
    columns = json.loads(shown["training"].schema)["mlflow_colspec"]
    assert {"name": "membrane", "type": "class 1 of the reference"} in columns


def test_a_datasets_digest_is_that_of_its_pixels_alone(phantom_manifest, tmp_path):
    def digests(path):
        return [one["dataset"]["digest"] for one in data_inputs.dataset_inputs(manifests.read(path), PARTITIONS)]

    def another(fields):
        fields["name"] = "renamed"
        fields["training"].reverse()
        fields["test"][0]["pixels"] = "0" * 64

    before = digests(phantom_manifest)
    after = digests(edited(phantom_manifest, tmp_path / "manifest.json", another))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    assert len(set(before)) == 3


def test_its_best_weights_are_a_registered_model(run, trained):
    client, found = run
    version_ = client.get_model_version_by_alias("neuron_em_segmentation", "candidate")
    assert (version_.run_id, version_.tags[WEIGHTS]) == (found.info.run_id, file_digest(trained / "model.pt"))
    assert version_.description == found.data.tags[VERDICT]
    (output,) = found.outputs.model_outputs
    files = trained / "artifacts" / "models" / output.model_id / "artifacts"
    program = torch.export.load(files / "data" / "model.pt2")
    best = torch.load(trained / "model.pt", weights_only=True)["model"]
    assert torch.equal(program.state_dict["head.weight"], best["head.weight"])
    assert not list(trained.glob(".model-*"))


def test_a_network_that_cannot_be_exported_ends_no_training(tmp_path, caplog):
    class Fickle(torch.nn.Conv2d):
        def forward(self, image):
            return super().forward(image) if image.sum() > 0 else image

    network = Fickle(1, 1, 1)
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")
    logged_model.put(None, network, tmp_path / "model.pt", {"metadata": {}, "name": "x"})
    assert "MLflow gets no model of this run, the network cannot be exported" in caplog.text


@pytest.mark.parametrize(
    ("log_model", "parent", "made"), [(True, None, True), (False, None, False), (True, "p", False)]
)
def test_a_run_below_a_comparison_makes_no_model(phantom_manifest, tmp_path, log_model, parent, made):
    network = torch.nn.Conv2d(1, 1, 1)
    state = SimpleNamespace(path=tmp_path / "last.pt", objects={"network": network}, history={})
    handler = TrackingHandler(
        str(tmp_path), "e", str(phantom_manifest), state=state, parent=parent, log_model=log_model
    )
    assert (handler.network is network) == made


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("loss of nothing"), "failed after epoch 1 of 2: ZeroDivisionError: loss of nothing"),
        (KeyboardInterrupt(), "stopped after epoch 1 of 2; not tested"),
    ],
)
def test_an_interrupted_training_says_how_far_it_came(phantom_manifest, tmp_path, error, said):
    def explode(_):
        raise error

    engine = trainer(phantom_manifest, tmp_path)
    engine.add_event_handler(Events.ITERATION_STARTED(once=3), explode)
    with pytest.raises(type(error)):
        engine.run()
    tags = dict(sqlite3.connect(tmp_path / "mlflow.db").execute("select key, value from tags"))
    assert tags[VERDICT] == said
    assert f"**{said}**" in tags[NOTE]


def test_the_commit_is_that_of_the_image_where_there_is_one(monkeypatch):
    monkeypatch.setenv("OVERTILE_COMMIT", "c0ffee")
    assert environment()["code_commit"] == "c0ffee"
