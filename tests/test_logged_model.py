import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import checkpoint, logged_model
from pipeline.networks import UNet, network
from tests.conftest import ROOT

SMALL = {"width": 4, "depth": 2}
NETWORKS = {
    "2D": lambda: UNet(2, 3, 2, padding="zeros", norm="batch", **SMALL),
    "3D": lambda: UNet(3, 1, 3, padding="zeros", norm="instance", **SMALL),
    "valid": lambda: UNet(2, 1, 2, **SMALL),
    "ResNet": lambda: network("resnet18", spatial_dims=2, in_channels=1, out_channels=2),
}

LOADER = """
import sys, mlflow, mlflow.pytorch, numpy as np, torch
for number in range(int(sys.argv[1])):
    folder = f"{sys.argv[2]}/{number}"
    model = mlflow.pytorch.load_model(f"{folder}/model")
    with torch.inference_mode():
        images = np.load(f"{folder}/images.npz")
        answers = {name: model(torch.from_numpy(images[name])).numpy() for name in images}
    if number == 0:
        answers["served"] = mlflow.pyfunc.load_model(f"{folder}/model").predict(images["first"])
    np.savez(f"{folder}/answers.npz", **answers)
assert "pipeline" not in sys.modules
"""


def saved(net, folder):
    """A network's weights as a training leaves them, and the model beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_weights(net, {}, folder / "model.pt")
    logged_model.export(net, folder / "model.pt", folder / "model", metadata={"classes": ["a", "b"]})
    return folder / "model"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every network as a model, and images of several sizes to ask it."""
    folder = tmp_path_factory.mktemp("models")
    nets = []
    for number, (name, build) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        nets.append(build().eval())
        saved(nets[-1], folder / str(number))
        batch, channels, *sides = logged_model.example(nets[-1]).shape
        step = 32 if name == "ResNet" else 4
        shapes = {
            "first": (batch, channels, *sides),
            "larger": (1, channels, *(s + step * n for n, s in enumerate(sides))),
        }
        np.savez(
            folder / str(number) / "images",
            **{n: np.random.default_rng(1).random(s, np.float32) for n, s in shapes.items()},
        )
    return folder, nets


def test_it_loads_without_running_pickled_code_and_answers_as_the_network_does(exported, tmp_path):
    folder, nets = exported
    safe = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": ""}
    words = [sys.executable, "-c", LOADER, str(len(nets)), str(folder)]
    done = subprocess.run(words, cwd=tmp_path, env=safe, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for number, net in enumerate(nets):
        images, answers = (np.load(folder / str(number) / f"{name}.npz") for name in ("images", "answers"))
        with torch.inference_mode():
            for name in images:
                np.testing.assert_allclose(answers[name], net(torch.from_numpy(images[name])), rtol=0, atol=1e-5)
        if number == 0:
            np.testing.assert_allclose(answers["served"], answers["first"], rtol=0, atol=1e-5)


def test_its_files_name_no_place_and_no_machine(exported):
    folder, nets = exported
    places = [str(ROOT), sys.prefix, str(Path.home()), "site-packages", str(folder), f"'{platform.node()}'"]
    for number in range(len(nets)):
        texts = {path.name: path.read_bytes() for path in (folder / str(number) / "model").rglob("*") if path.is_file()}
        archive = zipfile.ZipFile(folder / str(number) / "model" / "data" / "model.pt2")
        texts |= {name: archive.read(name) for name in archive.namelist()}
        assert "MLmodel" in texts
        assert not [(name, place) for name, text in texts.items() for place in places if place.encode() in text]


def test_its_signature_and_example_say_what_it_takes(exported):
    from mlflow.models import Model

    folder, nets = exported
    model = Model.load(str(folder / "1" / "model"))
    assert [spec.shape for spec in model.signature.inputs.inputs] == [(-1, 1, -1, -1, -1)]
    assert [spec.shape for spec in model.signature.outputs.inputs] == [(-1, 3, -1, -1, -1)]
    assert model.metadata == {"classes": ["a", "b"]}
    example = np.array(json.loads((folder / "1" / "model" / "input_example.json").read_text()), np.float32)
    np.testing.assert_array_equal(example, logged_model.example(nets[1]))
    assert example.shape == (2, 1, 6, 8, 10)
    assert (folder / "1" / "model" / "requirements.txt").read_text().splitlines()[-1] == "torch==2.13.0"


def test_an_export_leaves_network_and_chance_as_they_were(tmp_path):
    net = NETWORKS["2D"]().train()
    chance, before = torch.get_rng_state(), {key: value.clone() for key, value in net.state_dict().items()}
    np.random.seed(0)
    saved(net, tmp_path)
    assert net.training
    assert torch.equal(chance, torch.get_rng_state())
    assert np.random.randint(10**9) == np.random.RandomState(0).randint(10**9)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_files_weights_are_exported_not_the_networks(tmp_path):
    best, last = NETWORKS["2D"](), NETWORKS["2D"]()
    checkpoint.save_weights(best, {}, tmp_path / "model.pt")
    logged_model.export(last, tmp_path / "model.pt", tmp_path / "model")
    program = torch.export.load(tmp_path / "model" / "data" / "model.pt2")
    assert torch.equal(program.state_dict["head.weight"], best.head.weight)
