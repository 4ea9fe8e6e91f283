import pytest
import torch
from ignite.engine import Engine, Events

from pipeline import checkpoint
from pipeline.checkpoint import SaveBest, SaveLast, load_weights
from pipeline.errors import InputError


def engine(scores):
    """An engine whose epoch n scores `scores[n - 1]`, and that keeps its best as MONAI's do."""
    runner = Engine(lambda *_: None)
    runner.state.best_metric, runner.state.best_metric_epoch = -1.0, -1

    @runner.on(Events.EPOCH_COMPLETED)
    def compare(e):
        if scores[e.state.epoch - 1] > e.state.best_metric:
            e.state.best_metric, e.state.best_metric_epoch = scores[e.state.epoch - 1], e.state.epoch

    return runner


def test_the_best_epoch_is_kept_and_the_last_as_well(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    runner = engine([0.5, 0.9, 0.7])
    runner.add_event_handler(Events.EPOCH_STARTED, lambda e: network.weight.data.fill_(e.state.epoch))
    SaveBest(network, str(tmp_path / "model.pt")).attach(runner)
    SaveLast({"network": network}, str(tmp_path / "last.pt")).attach(runner)
    runner.run([0], max_epochs=3)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert load_weights(torch.nn.Linear(1, 1, bias=False), tmp_path / "model.pt").weight.item() == 2
    assert (last["epoch"], last["network"]["weight"].item()) == (3, 3)


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    checkpoint.save({"weight": torch.ones(1)}, path)

    def fill_the_disk(_, target):
        target.write_bytes(b"half")
        raise OSError("full")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="full"):
        checkpoint.save({"weight": torch.zeros(1)}, path)
    assert torch.load(path, weights_only=True)["weight"].item() == 1
    assert list(tmp_path.iterdir()) == [path]


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
