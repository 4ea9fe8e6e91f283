import logging
import re

import pytest
import torch

from pipeline import bundle, device_defaults
from pipeline.device_defaults import (
    Facts,
    channels_last_in_inference,
    in_words,
    overridden,
    placed,
    training,
    training_defaults,
)
from pipeline.errors import InputError
from pipeline.networks import UNet

OLD_CPU, NEW_CPU = Facts("cpu", cores=2, compiler=True), Facts("cpu", True, True, 64)
GPU, BARE_GPU = Facts("cuda", True, True, 16), Facts("cuda", False, False, 2)

TABLE = [
    (OLD_CPU, 2, "cpu: float32, channels last, not compiled, fused optimizer, 1 worker"),
    (OLD_CPU, 3, "cpu: float32, channels last, not compiled, fused optimizer, 1 worker"),
    (NEW_CPU, 2, "cpu: bfloat16, not compiled, fused optimizer, 1 worker"),
    (Facts("cpu"), 2, "cpu: float32, channels last, not compiled, fused optimizer, 0 workers"),
    (GPU, 2, "cuda: bfloat16, channels last, compiled, fused optimizer, pinned batches, 8 workers"),
    (GPU, 3, "cuda: bfloat16, compiled, fused optimizer, pinned batches, 8 workers"),
    (BARE_GPU, 2, "cuda: float32, not compiled, fused optimizer, pinned batches, 1 worker"),
    (Facts("mps"), 2, "mps: float32, not compiled, 0 workers"),
]


@pytest.mark.parametrize(("found", "dims", "line"), TABLE)
def test_what_a_device_does_best(found, dims, line):
    assert in_words(training_defaults(found, dims), found) == line


def test_float32_wants_channels_last_on_a_processor_that_has_bfloat16_too():
    assert [training_defaults(NEW_CPU, 2, amp).channels_last for amp in (None, True, False)] == [False, False, True]


def test_where_a_prediction_keeps_channels_together():
    found = [[channels_last_in_inference(one, dims) for one in (OLD_CPU, NEW_CPU, GPU, BARE_GPU)] for dims in (2, 3)]
    assert found == [[True, True, True, False], [True, True, False, False]]


def test_what_is_given_comes_first():
    chosen = overridden(training_defaults(OLD_CPU, 2), {"channels_last": False, "workers": 3, "amp": None}, OLD_CPU)
    assert in_words(chosen, OLD_CPU) == "cpu: float32, not compiled, fused optimizer, 3 workers"


IMPOSSIBLE = [
    ("amp", True, OLD_CPU, "`amp` cannot be True: this cpu has no instructions for bfloat16"),
    ("compile", True, Facts("cpu"), "`compile` cannot be True: torch.compile needs a C++ compiler (g++ or clang++)"),
    ("compile", True, BARE_GPU, "torch.compile needs Triton and a C compiler, which is not installed"),
    ("pinned", True, OLD_CPU, "`pinned` cannot be True: page-locked memory speeds up the way to a GPU"),
    ("fused", True, Facts("mps"), "`fused` cannot be True: PyTorch has no fused optimizers for mps"),
    ("fused", 1, OLD_CPU, "`fused` must be True, False or null, got 1"),
    ("workers", True, OLD_CPU, "`workers` must be a whole number of at least 0, or null, got True"),
]


@pytest.mark.parametrize(("key", "value", "found", "sentence"), IMPOSSIBLE)
def test_what_cannot_work_gets_a_sentence(key, value, found, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        overridden(training_defaults(found, 2), {key: value}, found)


def test_a_resumed_training_keeps_what_it_began_with(tmp_path, monkeypatch, caplog):
    begun = {"amp": True, "channels_last": False, "compile": False, "fused": False, "pinned": True, "workers": 7}
    torch.save({"computing": begun}, tmp_path / "last.pt")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(device_defaults, "facts", lambda _: OLD_CPU)
    resumed = training("cpu", spatial_dims=2, resumed_from=tmp_path / "last.pt")
    assert (resumed.channels_last, resumed.fused, resumed.pinned, resumed.workers) == (False, False, False, 1)
    assert not resumed.amp
    assert "began with `amp`, but this cpu has no instructions for bfloat16" in caplog.messages[0]
    assert caplog.messages[1] == "training on cpu: float32, not compiled, 1 worker"
    assert training("cpu", spatial_dims=2, resumed_from=tmp_path / "last.pt", fused=True).fused
    assert training("cpu", spatial_dims=2, resumed_from=tmp_path / "none.pt").channels_last  # refused elsewhere


def test_compiled_code_survives_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    device_defaults.keep_compiled_code()
    assert device_defaults.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "overtile/compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    device_defaults.keep_compiled_code()
    assert device_defaults.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def steps(dims, *, channels_last=False, fused=False):
    """The losses and last weights of four steps in float64, whose rounding no optimizer can blow up."""
    torch.manual_seed(0)
    network = UNet(dims, 1, 2, width=4, depth=3, padding="zeros", norm="batch").double()
    network = placed(network, "cpu", channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused)
    losses = []
    for _ in range(4):
        image = torch.rand(2, 1, *[16] * dims, dtype=torch.float64)
        loss = torch.nn.functional.cross_entropy(network(image), (image[:, 0] > 0.5).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([weight.flatten() for weight in network.parameters()]), network


@pytest.mark.parametrize("dims", [2, 3])
def test_layout_and_fused_steps_change_no_result(dims):
    plain, changed = steps(dims), steps(dims, channels_last=True, fused=True)
    assert changed[0] == pytest.approx(plain[0], abs=1e-12)
    torch.testing.assert_close(changed[1], plain[1], rtol=0, atol=1e-9)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert changed[2].expanding[0][0].weight.is_contiguous(memory_format=layout)


def test_a_training_says_how_it_computes_and_keeps_it(trained):
    state = torch.load(trained / "last.pt", weights_only=True)
    assert state["computing"] == training("cpu", spatial_dims=2, workers=0).state_dict()
    weights = torch.load(trained / "model.pt", weights_only=True)["model"]
    assert all(weight.is_contiguous() for weight in weights.values())


def test_a_wrong_override_is_refused_by_the_command(overtile, phantom_manifest, tmp_path):
    words = ["run", "neuron_em_segmentation", "training", "--manifest", phantom_manifest, "--output_dir", tmp_path]
    code, output = overtile(*words, "--pinned", "True")
    assert (code, "`pinned` cannot be True: page-locked memory" in output) == (2, not torch.cuda.is_available())
    code, output = overtile(*words, "--fused", "3")
    assert (code, "--fused must be True, False or null, got 3" in output) == (2, True)


def test_no_bundle_chooses_for_itself():
    for folder in sorted(bundle.find("neuron_em_segmentation").parent.iterdir()):
        settings = bundle.settings(folder, "training")
        assert [settings[key] for key in ("amp", "channels_last", "compile", "fused", "pinned", "workers")] == [
            None
        ] * 6
