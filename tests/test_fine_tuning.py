"""Fine-tuning: the weights that a training starts from, and the parts of the network that it does not touch."""

import copy
import shutil

import pytest
import torch
from ignite.engine import Engine

from pipeline import checkpoint, fine_tuning, provenance
from pipeline.errors import DataError, InputError
from pipeline.manifest import read
from pipeline.networks import UNet, network
from tests.test_training import EM, SMALL, equal, same, stop_before, train


def net(**keywords):
    return UNet(2, 1, 2, **({"width": 4, "depth": 3, "padding": "zeros", "norm": "batch"} | keywords))


@pytest.fixture(scope="module")
def deployed(phantom_manifest, tmp_path_factory):
    """A model.pt that says it was trained on the phantom patients."""
    path = tmp_path_factory.mktemp("deployed") / "model.pt"
    checkpoint.save_weights(net(), provenance.training_record(read(phantom_manifest)), path)
    return path


def test_without_a_start_and_with_nothing_frozen_a_network_stays_as_it_is():
    there = net()
    before, state = copy.deepcopy(there.state_dict()), torch.get_rng_state()
    assert fine_tuning.with_frozen(fine_tuning.with_start(there, None), []) is there
    assert equal(there.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in there.parameters())


@pytest.mark.parametrize("kind", ["model.pt", "state_dict.pt", "weights.safetensors"])
def test_every_kind_of_file_is_a_start(tmp_path, kind):
    from_where, path = net(), tmp_path / kind
    if kind == "model.pt":
        checkpoint.save_weights(from_where, {}, path)
    elif kind == "state_dict.pt":
        torch.save(from_where.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(from_where.state_dict(), path)
    assert equal(fine_tuning.with_start(net(), str(path), {}).state_dict(), from_where.state_dict())


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(InputError, match="w.pt: no such file; `start_from` is the weights to start from, or null"):
        fine_tuning.with_start(net(), str(path))
    torch.save(net(width=8).state_dict(), path)
    with pytest.raises(InputError, match="holds the weights of another network than the one configured"):
        fine_tuning.with_start(net(), str(path), {})


def test_a_frozen_part_neither_learns_nor_counts():
    there = fine_tuning.with_frozen(net(), ["encoder"])
    before = copy.deepcopy(there.state_dict())
    optimizer = torch.optim.AdamW(there.parameters(), lr=0.1, weight_decay=0.1)
    there.train()  # as a trainer says before every step
    there(torch.randn(2, 1, 16, 16)).square().mean().backward()
    optimizer.step()
    moved = {name.partition(".")[0] for name, value in there.state_dict().items() if not equal(value, before[name])}
    assert moved == {"ups", "expanding", "head"}
    twin = copy.deepcopy(there).train()
    assert not twin.contracting[0].training
    assert twin.expanding[0].training
    assert twin.contracting.train() is twin.contracting  # the copy's own, not the original's


def test_parts_have_readable_names_and_their_own():
    resnet = network("resnet18", spatial_dims=2, in_channels=1, out_channels=2)
    assert list(fine_tuning.parts(resnet)) == ["encoder", "decoder", "head", "segmentation_head"]
    assert fine_tuning.with_frozen(resnet, "encoder").encoder.conv1.weight.requires_grad is False
    with pytest.raises(InputError, match="no part 'neck'; it has encoder, decoder, head, contracting.0, contracting.1"):
        fine_tuning.with_frozen(net(), ["neck"])
    with pytest.raises(InputError, match="encoder, decoder, head is the whole network, nothing is left to learn"):
        fine_tuning.with_frozen(net(), ["encoder", "decoder", "head"])


def test_a_fine_tuning_survives_a_stop(deployed, phantom_manifest, tmp_path, monkeypatch, empty_store):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        shutil.copy(empty_store, tmp_path / name / "mlflow.db")
    how = {"start_from": str(deployed), "frozen": ["encoder"], "epochs": 2, "dropout": 0.0}
    whole = train(phantom_manifest, tmp_path / "whole", **how)
    began = torch.load(deployed, weights_only=True)["model"]
    still = {name for name, value in whole["network"].items() if torch.equal(value, began[name])}
    assert {name.partition(".")[0] for name in still} == {"contracting"}
    assert still == {name for name in began if name.startswith("contracting")}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, save=2)
        train(phantom_manifest, tmp_path / "stopped", **how)
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(deployed.read_bytes())
    again = how | {"start_from": str(moved)}
    assert same(train(phantom_manifest, tmp_path / "stopped", resume=True, **again), whole)


def test_a_resume_from_other_weights_is_refused(deployed, phantom_manifest, tmp_path):
    def state(start, **more):
        about = {"manifest": str(phantom_manifest), "start_from": str(start), "config": {"start_from": str(start)}}
        return checkpoint.TrainingState(str(tmp_path / "last.pt"), {}, evaluator, **about, **more)

    evaluator, other = Engine(lambda *_: None), tmp_path / "other.pt"
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = 0.5, 1
    checkpoint.save(state(deployed).gather(evaluator), tmp_path / "last.pt")
    other.write_bytes(deployed.read_bytes())
    assert state(other, resume=True).saved["best_metric"] == 0.5  # the same weights elsewhere
    checkpoint.save_weights(net(), {}, other)
    with pytest.raises(InputError, match="the weights that this training began from have changed"):
        state(other, resume=True)


def test_patients_whom_the_starting_weights_have_seen_are_not_scored(deployed, phantom_manifest):
    record = checkpoint._trained_on(str(phantom_manifest), str(deployed))
    assert record[provenance.STARTED_FROM].keys() > {"sha256", "training", "validation"}
    fields = read(phantom_manifest)
    swapped = fields.model_copy(update={"training": fields.test, "test": fields.training})
    record |= provenance.training_record(swapped)  # a fine-tuning on one patient, from weights that saw two others
    with pytest.raises(DataError, match="6 of 6 cases to score were in the training partition of this checkpoint"):
        provenance.refuse_overlap(record, swapped, "test")
    said = provenance.refuse_overlap(record | {provenance.STARTED_FROM: {"sha256": "0"}}, swapped, "test")
    assert said["overlap_with_training_pixels"] == provenance.STARTED_UNSAID


def test_the_command_takes_both_keys(deployed, phantom_manifest, tmp_path, overtile):
    words = [word for key, value in (SMALL | {"epochs": 1}).items() for word in (f"--{key}", value)]
    words += ["--manifest", phantom_manifest, "--output_dir", tmp_path, "--start_from", deployed]
    code, output = overtile("run", EM, "training", *words, "--frozen", "encodr")
    assert code == 2
    assert "the network has no part 'encodr'; it has encoder, decoder, head" in output
