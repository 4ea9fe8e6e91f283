import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from pipeline import checkpoint
from pipeline import manifest as manifests
from pipeline.checkpoint import SaveBest, SaveLast, TrainingState, load_weights
from pipeline.errors import InputError, user_error
from tests.conftest import edited


def engine(scores):
    """An engine whose epoch n scores `scores[n - 1]`, and that keeps its best as MONAI's do."""
    runner = Engine(lambda *_: None)
    runner.state.best_metric, runner.state.best_metric_epoch = -1.0, -1

    @runner.on(Events.EPOCH_COMPLETED)
    def compare(e):
        if scores[e.state.epoch - 1] > e.state.best_metric:
            e.state.best_metric, e.state.best_metric_epoch = scores[e.state.epoch - 1], e.state.epoch

    return runner


def state_of(folder, manifest, network, *, resume=False, evaluator=None, **config):
    evaluator = evaluator or engine([])
    objects = {"network": network}
    path = str(folder / "last.pt")
    return TrainingState(path, objects, evaluator, manifest=str(manifest), resume=resume, config={"lr": 1} | config)


def train(state, network, epochs=3, every=None):
    """Epochs in each of which the weight becomes the number of the epoch."""
    runner = Engine(lambda *_: None)
    state.attach(runner)
    runner.add_event_handler(Events.EPOCH_STARTED, lambda e: network.weight.data.fill_(e.state.epoch))
    SaveLast(state, network, every).attach(runner)
    return runner.run([0], max_epochs=epochs)


def line():
    return torch.nn.Linear(1, 1, bias=False)


def test_the_best_epoch_is_kept_and_the_last_as_well(tmp_path, phantom_manifest):
    network = line()
    runner = engine([0.5, 0.9, 0.7])
    runner.add_event_handler(Events.EPOCH_STARTED, lambda e: network.weight.data.fill_(e.state.epoch))
    SaveBest(network, str(tmp_path / "model.pt"), manifest=str(phantom_manifest)).attach(runner)
    state = state_of(tmp_path, phantom_manifest, network, evaluator=runner)
    SaveLast(state, network).attach(runner)
    runner.run([0], max_epochs=3)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert load_weights(line(), tmp_path / "model.pt").weight.item() == 2
    assert (last["epoch"], last["network"]["weight"].item()) == (3, 3)
    assert (last["best_metric"], last["best_metric_epoch"]) == (0.9, 2)
    assert last["training"]["manifest_sha256"] == manifests.read(phantom_manifest).digest()


def test_weights_of_every_second_epoch_are_kept(tmp_path, phantom_manifest):
    network = line()
    train(state_of(tmp_path, phantom_manifest, network), network, epochs=5, every=2)
    kept = {path.name: load_weights(line(), path).weight.item() for path in tmp_path.glob("epoch_*.pt")}
    assert kept == {"epoch_0002.pt": 2, "epoch_0004.pt": 4}
    with pytest.raises(ValueError, match="`save_every` must be at least 1 epoch or null, got 0"):
        SaveLast(None, network, 0)


def test_a_resume_goes_on_where_it_stopped(tmp_path, phantom_manifest):
    first, second = line(), line()
    evaluator = engine([])
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = torch.tensor(0.5), 2
    state = state_of(tmp_path, phantom_manifest, first, evaluator=evaluator)
    state.run_id = "r1"
    train(state, first, epochs=3)
    resumed = state_of(tmp_path, phantom_manifest, second, resume=True)
    assert (resumed.run_id, second.weight.item()) == ("r1", 3)
    seen = []
    runner = Engine(lambda e, _: seen.append(e.state.epoch))
    resumed.attach(runner)
    runner.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "max_epochs", 5))
    runner.run([0], max_epochs=5)
    assert seen == [4, 5]
    assert (resumed.evaluator.state.best_metric, resumed.evaluator.state.best_metric_epoch) == (0.5, 2)


def test_a_finished_training_is_not_trained_further(tmp_path, phantom_manifest):
    network = line()
    train(state_of(tmp_path, phantom_manifest, network), network)
    network.weight.data.fill_(7)
    assert train(state_of(tmp_path, phantom_manifest, network, resume=True), network).epoch == 3
    assert network.weight.item() == 3


def test_a_new_training_sets_the_old_checkpoints_aside(tmp_path, phantom_manifest):
    network = line()
    (tmp_path / "mine.pt").write_bytes(b"of somebody else")
    for _ in range(2):
        train(state_of(tmp_path, phantom_manifest, network), network, every=3)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pt", "epoch_0003.pt", "previous_last.pt", "previous_epoch_0003.pt", "mine.pt"}


def test_the_same_training_without_resume_is_refused_while_it_is_unfinished(tmp_path, phantom_manifest):
    network = line()
    state = state_of(tmp_path, phantom_manifest, network)
    SaveLast(state, network).attach(runner := Engine(lambda e, _: 1 / (3 - e.state.epoch)))
    with pytest.raises(ZeroDivisionError):
        runner.run([0], max_epochs=5)
    assert state.how_to_resume().startswith(f"epoch 2 is saved in {tmp_path / 'last.pt'}; to go on from there")
    with pytest.raises(InputError, match="epoch 2 of 5 of this training is saved here; add --resume True to go on"):
        state_of(tmp_path, phantom_manifest, network)
    state_of(tmp_path, phantom_manifest, network, lr=2)  # another training


@pytest.mark.parametrize("early", [False, True])
def test_a_finished_training_may_be_started_again(tmp_path, phantom_manifest, early):
    network = line()
    runner = Engine(lambda *_: None)
    if early:
        runner.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda e: e.terminate())
    SaveLast(state_of(tmp_path, phantom_manifest, network), network).attach(runner)
    assert runner.run([0], max_epochs=3).epoch == (2 if early else 3)
    assert state_of(tmp_path, phantom_manifest, network).saved == {}


def test_two_processes_do_not_train_in_one_folder(tmp_path, phantom_manifest):
    state = state_of(tmp_path, phantom_manifest, line())
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(600)"
    )
    lock = [sys.executable, "-c", code, str(tmp_path / ".last.pt.lock")]
    with subprocess.Popen(lock, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="another process is training there; wait for its end"):
            state.lock()
        other.kill()
    state.lock()  # a killed process keeps nobody out
    state.unlock()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_is_an_error_of_the_site():
    with pytest.raises(OSError, match="No space left") as caught, Path("/dev/full").open("wb") as file:
        torch.save({"weight": torch.ones(100_000)}, file)
    assert "make room, or choose another folder" in str(user_error(caught.value))


def test_a_stop_in_the_first_epoch_can_be_resumed(tmp_path, phantom_manifest):
    network = line()
    state = state_of(tmp_path, phantom_manifest, network)
    SaveLast(state, network).attach(runner := Engine(lambda *_: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        runner.run([0])
    assert state.how_to_resume().startswith("it stopped before the end of its first epoch; the same command starts")
    assert state_of(tmp_path, phantom_manifest, network, resume=True).saved["epoch"] == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": 2}, r"from a training with other settings \(lr was 1, is 2\); give the same ones"),
        ({"new": 2}, "new was not set, is 2"),
        ({"workers": 4, "device": "cuda", "output_dir": "elsewhere"}, None),
    ],
)
def test_a_resume_with_other_settings_is_refused(tmp_path, phantom_manifest, changes, sentence):
    network = line()
    train(state_of(tmp_path, phantom_manifest, network), network)
    if sentence is None:
        state_of(tmp_path, phantom_manifest, network, resume=True, **changes)
        return
    with pytest.raises(InputError, match=sentence):
        state_of(tmp_path, phantom_manifest, network, resume=True, **changes)


def test_a_resume_with_another_manifest_is_refused(tmp_path, phantom_manifest):
    network = line()
    train(state_of(tmp_path, phantom_manifest, network), network)
    other = edited(phantom_manifest, tmp_path / "other.json", lambda fields: fields["training"].pop())
    with pytest.raises(InputError, match="the manifest has changed since this training began"):
        state_of(tmp_path, other, network, resume=True)


def test_nothing_to_resume_gets_a_sentence(tmp_path, phantom_manifest):
    with pytest.raises(InputError, match="no training to resume here; leave `resume` out to start one"):
        state_of(tmp_path, phantom_manifest, line(), resume=True)
    checkpoint.save(line().state_dict(), tmp_path / "last.pt")
    with pytest.raises(InputError, match="not the state of a training that can be resumed"):
        state_of(tmp_path, phantom_manifest, line(), resume=True)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        state_of(tmp_path, phantom_manifest, line(), resume=True)


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    checkpoint.save({"weight": torch.ones(1)}, path)

    def fill_the_disk(_, file):
        file.write(b"half")
        raise OSError("full")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="full"):
        checkpoint.save({"weight": torch.zeros(1)}, path)
    assert torch.load(path, weights_only=True)["weight"].item() == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_goes_with_the_next_write(tmp_path):
    (tmp_path / f".last.pt.{2**22 + 1}.tmp").write_bytes(b"half")
    checkpoint.save({"weight": torch.ones(1)}, tmp_path / "last.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_pickled_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("code of a stranger",))

    torch.save({"weight": Payload()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt")


def test_other_weights_are_refused_by_name(tmp_path):
    checkpoint.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="weights of another network than the one configured"):
        load_weights(torch.nn.Linear(3, 3), tmp_path / "model.pt")
    with pytest.raises(InputError, match="no such checkpoint; train first, or set `checkpoint`"):
        load_weights(torch.nn.Linear(3, 3), tmp_path / "none.pt")


def trained_with(folder, manifest, **settings):
    network = line()
    SaveBest(network, str(folder / "model.pt"), manifest=str(manifest), config=settings).attach(runner := engine([1]))
    runner.run([0], max_epochs=1)
    return folder / "model.pt"


@pytest.mark.parametrize(
    ("trained", "now", "sentence"),
    [
        ({"size": 512}, {"size": 256}, r"\(`size` was 512, is 256\); give --size 512$"),
        ({"size": None}, {"size": 256}, r"`size` was null, is 256\); give --size null$"),
        (
            {"up": "linear", "padding": "reflect"},
            {"up": "nearest", "padding": "zeros"},
            "--padding reflect --up linear$",
        ),
        ({"act": ["leakyrelu", {"negative_slope": 0.1}]}, {"act": "relu"}, r"--act '\['\"'\"'leakyrelu"),
        ({"act": ["leakyrelu", {"negative_slope": 0.1}]}, {"act": ("leakyrelu", {"negative_slope": 0.1})}, None),
        ({"norm": None, "dropout": 0.5}, {"norm": "$None", "dropout": 0.0}, None),
        ({"size": 512}, {}, None),  # outside of a bundle
        ({}, {"size": 512}, None),  # weights that do not say
        ({"size": "$2 ** 9"}, {"size": 256}, None),  # an expression has no value yet
    ],
)
def test_weights_are_used_with_the_settings_of_their_training(tmp_path, phantom_manifest, trained, now, sentence):
    path = trained_with(tmp_path, phantom_manifest, **trained)
    if sentence is None:
        load_weights(line(), path, now)
        return
    with pytest.raises(InputError, match=sentence):
        load_weights(line(), path, now)


def test_another_shape_is_told_with_what_to_type(tmp_path, phantom_manifest):
    path = trained_with(tmp_path, phantom_manifest, width=16)
    with pytest.raises(InputError, match=r"another network than the one configured .*; give --width 16$"):
        load_weights(torch.nn.Linear(3, 3), path, {"width": 8})
