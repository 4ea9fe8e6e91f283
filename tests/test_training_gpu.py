"""A training on a GPU, where there is one: it trains in bfloat16 and compiled, resumes, and keeps what it began with."""

import pytest
import torch

from tests.test_training import same, stop_before, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


def test_a_training_on_a_gpu_computes_as_the_device_does_best(phantom_manifest, tmp_path):
    state = train(phantom_manifest, tmp_path, epochs=2)
    assert state["computing"]["amp"] == torch.cuda.is_bf16_supported(including_emulation=False)
    assert state["computing"]["fused"]
    assert all(torch.isfinite(weight).all() for weight in state["network"].values())


def test_bfloat16_and_float32_learn_the_same_to_its_precision(phantom_manifest, tmp_path):
    half, full = (
        train(phantom_manifest, tmp_path / str(amp), epochs=2, amp=amp, compile=False) for amp in (True, False)
    )
    losses = [state["history"]["loss"][-1][1] for state in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert not same(half, full)


def test_a_stopped_training_goes_on_with_what_it_began_with(phantom_manifest, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, save=2)
        train(phantom_manifest, tmp_path, epochs=3)
    begun = torch.load(tmp_path / "last.pt", weights_only=True)
    state = train(phantom_manifest, tmp_path, epochs=3, resume=True)
    assert (state["epoch"], state["computing"]) == (3, begun["computing"])


def test_what_began_on_a_gpu_goes_on_without_one(phantom_manifest, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, save=2)
        train(phantom_manifest, tmp_path, epochs=3, compile=False)
    assert train(phantom_manifest, tmp_path, epochs=3, compile=False, resume=True, device="cpu")["epoch"] == 3
