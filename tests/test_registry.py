import shutil
from datetime import datetime
from pathlib import Path
from urllib.parse import urlparse

import pytest
from mlflow import MlflowClient

from pipeline import registry
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.store import PARENT, artifact_location, sqlite_store
from pipeline.verdicts import NOTE, PARTITION, VERDICT, WEIGHTS

TRAINED = "trained 2 epochs; best validation Dice 0.790 after epoch 2; not tested"
TESTED = "test Dice 0.87 (0.85 to 0.90) on 40 patients"
ON = datetime(2026, 11, 21)


@pytest.fixture
def client(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    return MlflowClient(sqlite_store(tmp_path))


def run(client, weights, partition, verdict, status="FINISHED", **tags):
    """A run of a training or an evaluation as it stands when it has ended."""
    found = client.get_experiment_by_name("lung")
    experiment = (
        found.experiment_id if found else client.create_experiment("lung", artifact_location(client.tracking_uri))
    )
    tags |= {WEIGHTS: weights, PARTITION: partition, VERDICT: verdict, NOTE: f"# Lung\n\n**{verdict}**\n"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(run_id, status)
    return run_id


def train(client, weights, folder, name="lung"):
    """A training, and its model sent to the registry; twice, as after a lost answer."""
    run_id = run(client, weights, "training", TRAINED)
    payload = {"name": name, "task": "Find the lung", WEIGHTS: weights, "tags": {"bundle": "lung"}, VERDICT: TRAINED}
    for _ in range(2):
        model = folder / "model"
        model.mkdir(exist_ok=True)
        (model / "MLmodel").write_text("flavors: {}\nmodel_id: null\n")
        registry.send_model(client, run_id, payload, model)
    return run_id


def evaluate(client, weights, partition="test", verdict=TESTED, **tags):
    """An evaluation, which tells of itself just before it ends; twice, as after a lost answer."""
    run_id = run(client, weights, partition, verdict, status="RUNNING", **tags)
    for _ in range(2):
        registry.send_description(client, run_id, {WEIGHTS: weights}, None)
    client.set_terminated(run_id)
    return run_id


def test_every_training_is_a_version_and_the_newest_is_candidate(client, tmp_path):
    first, second = (train(client, weights, tmp_path) for weights in ("aa", "bb"))
    versions = {version.version: version for version in client.search_model_versions("name = 'lung'")}
    assert {number: (v.run_id, v.tags[WEIGHTS], v.description) for number, v in versions.items()} == {
        1: (first, "aa", TRAINED),
        2: (second, "bb", TRAINED),
    }
    assert client.get_model_version_by_alias("lung", "candidate").version == 2
    (model,) = client.search_logged_models([client.get_run(first).info.experiment_id], f"source_run_id = '{first}'")
    assert (model.name, str(model.status), model.tags[WEIGHTS]) == ("network", "READY", "aa")
    assert [output.model_id for output in client.get_run(first).outputs.model_outputs] == [model.model_id]
    registry.send_model(client, first, {"name": "lung", WEIGHTS: "aa", "tags": {}, VERDICT: TRAINED}, None)
    assert client.get_model_version_by_alias("lung", "candidate").version == 2


def test_a_models_files_say_whose_they_are(client, tmp_path):
    run_id = train(client, "aa", tmp_path)
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert f"model_id: {model.model_id}" in (Path(urlparse(model.artifact_location).path) / "MLmodel").read_text()


def test_a_test_is_told_wherever_its_weights_are_spoken_of(client, tmp_path):
    training = train(client, "aa", tmp_path)
    test = evaluate(client, "aa")
    told = TRAINED.replace("not tested", TESTED)
    tags = client.get_run(training).data.tags
    assert (tags[VERDICT], tags[NOTE]) == (told, f"# Lung\n\n**{told}**\n")
    assert client.get_model_version("lung", "1").description == told
    assert client.get_run(test).data.tags.items() >= {registry.TRAINING_RUN: training, PARENT: training}.items()


def test_an_evaluation_of_validation_or_of_other_weights_is_no_test(client, tmp_path):
    training = train(client, "aa", tmp_path)
    below = evaluate(client, "aa", "validation", "validation Dice 0.8 on 9 patients", **{PARENT: "comparison"})
    evaluate(client, "bb")
    assert client.get_run(training).data.tags[VERDICT] == TRAINED
    tags = client.get_run(below).data.tags
    assert (tags[PARENT], tags[registry.TRAINING_RUN]) == ("comparison", training)


def test_a_training_that_is_sent_late_finds_its_test(client, tmp_path):
    test = evaluate(client, "aa")
    training = train(client, "aa", tmp_path)
    assert client.get_run(training).data.tags[VERDICT].endswith(f"; {TESTED}")
    assert client.get_run(test).data.tags[PARENT] == training


def test_a_person_makes_a_tested_version_champion_and_says_why(client, tmp_path):
    for weights in ("aa", "bb"):
        train(client, weights, tmp_path)
        evaluate(client, weights)
    assert registry.promote(client, "aa", "the first one", ON) == {
        "name": "lung", "version": "1", "previous": "none", "test": TESTED,
    }  # fmt: skip
    assert registry.promote(client, "bb", "better on small lungs", ON)["previous"] == "version 1"
    assert client.get_model_version_by_alias("lung", "champion").version == 2
    now, before = (client.get_model_version("lung", number).tags for number in ("2", "1"))
    assert now.items() >= {
        "promoted_on": "2026-11-21", "promoted_because": "better on small lungs", "previous_champion": "version 1",
    }.items()  # fmt: skip
    assert before["followed_by"] == "version 2"
    with pytest.raises(InputError, match="version 2 of lung is the champion already"):
        registry.promote(client, "bb", "again", ON)


def test_what_cannot_be_promoted_gets_a_sentence(client, tmp_path):
    with pytest.raises(InputError, match="say why: --reason"):
        registry.promote(client, "aa", " ", ON)
    with pytest.raises(InputError, match="no version of these weights .aa. is registered"):
        registry.promote(client, "aa", "because", ON)
    train(client, "aa", tmp_path)
    run(client, "aa", "test", TESTED, status="FAILED")
    evaluate(client, "aa", "validation")
    with pytest.raises(InputError, match="version 1 of lung was never tested"):
        registry.promote(client, "aa", "because", ON)


def test_a_comparisons_weights_are_no_version(client, tmp_path):
    train(client, "aa", tmp_path, name="")
    assert client.search_model_versions("") == []


def test_the_command_takes_a_folder_or_a_run(client, tmp_path, overtile):
    (tmp_path / "model.pt").write_bytes(b"weights")
    weights = file_digest(tmp_path / "model.pt")
    training = train(client, weights, tmp_path)
    store = ("--tracking-uri", client.tracking_uri)
    code, output = overtile("promote", tmp_path, "--reason", "the first one")
    assert (code, "version 1 of lung was never tested" in output) == (2, True)
    evaluate(client, weights)
    code, output = overtile("promote", training, "--reason", "the first one", *store)
    assert (code, output) == (0, f"lung: version 1 is the champion; before: none. {TESTED}\n")
    code, output = overtile("promote", "nothing", "--reason", "the first one", *store)
    assert (code, output) == (2, "error: nothing: neither a folder with a model.pt nor a run of this store\n")
