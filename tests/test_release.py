"""A release: what is in it, that it runs, and what is refused."""

import hashlib
import json
import shutil
import subprocess
from zipfile import ZipFile

import pytest
import torch
from monai.bundle import load
from safetensors.torch import load_file

from pipeline import bundle, release_metadata, release_weights, signing
from pipeline.errors import InputError
from pipeline.release import release

EM = bundle.find("neuron_em_segmentation")


def make(trained, folder, **options):
    return release(options.pop("bundle", EM), trained, folder, key=folder / "site.key", **options)


def test_it_is_one_folder_with_a_digest_of_every_file_signed(released, unpacked):
    with ZipFile(released) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {EM.name}
    sums = (unpacked / "SHA256SUMS").read_bytes()
    told = dict(reversed(line.split("  ")) for line in sums.decode().splitlines())
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert told.keys() == files - {"SHA256SUMS", "SHA256SUMS.sig"}
    assert all(hashlib.sha256((unpacked / file).read_bytes()).hexdigest() == digest for file, digest in told.items())
    public = signing.public_key(released.parent / "site.pub")
    assert signing.is_signed(sums, (unpacked / "SHA256SUMS.sig").read_bytes(), public)


def test_sha256sum_and_openssl_agree(released, unpacked):
    if not (shutil.which("sha256sum") and shutil.which("openssl")):
        pytest.skip("sha256sum or openssl is not here")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=unpacked, check=True)
    check = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(released.parent / "site.pub")]
    subprocess.run([*check, "-sigfile", "SHA256SUMS.sig", "-in", "SHA256SUMS"], cwd=unpacked, check=True)


def test_the_weights_are_bare_and_equal_in_both_formats(trained, unpacked):
    ours = torch.load(trained / "model.pt", weights_only=True)["model"]
    state = torch.load(unpacked / "models/model.pt", weights_only=True)
    safe = load_file(unpacked / "models/model.safetensors")
    assert ours.keys() == state.keys() == safe.keys()
    assert all(torch.equal(ours[name], state[name]) and torch.equal(ours[name], safe[name]) for name in ours)
    assert release_weights.equal(unpacked)


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("workflow", ["train", "inference"])
def test_monai_loads_the_network_with_its_weights(trained, unpacked, workflow):
    network = load(EM.name, bundle_dir=unpacked.parent, workflow_type=workflow, source="github", device="cpu")
    ours = torch.load(trained / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, ours[name]) for name, tensor in network.state_dict().items())


def test_the_same_again_is_the_same_in_every_byte(trained, released, tmp_path):
    for file in released.parent.glob("site.*"):
        shutil.copy(file, tmp_path)
    again = make(trained, tmp_path, version="0.3.0")
    assert again.read_bytes() == released.read_bytes()


def test_the_version_is_raised_and_the_changelog_kept(trained, tmp_path):
    out = make(trained, tmp_path, changelog="more training data")
    old = json.loads((EM / "configs/metadata.json").read_text())
    assert (old["version"], out.name) == ("0.2.0", "neuron_em_segmentation-0.2.1.zip")
    with ZipFile(out) as archive:
        new = json.loads(archive.read(f"{EM.name}/configs/metadata.json"))
    assert new["version"] == "0.2.1"
    assert list(new["changelog"].items()) == [("0.2.1", "more training data"), *old["changelog"].items()]


def unfinished(run):
    state = torch.load(run / "last.pt", weights_only=True)
    torch.save(state | {"finished": False}, run / "last.pt")


def of_another_training(run):
    state = torch.load(run / "model.pt", weights_only=True)
    torch.save(state | {"training": {**state["training"], "key": "another"}}, run / "model.pt")


def of_an_older_bundle(run):
    state = torch.load(run / "last.pt", weights_only=True)
    torch.save(state | {"config": state["config"] | {"network": "$@network_def.to(@device)"}}, run / "last.pt")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (of_an_older_bundle, "do not go together: train.json: key 'frozen' is referenced nowhere"),
        (unfinished, "stopped after epoch 2; add --resume True"),
        (of_another_training, "model.pt and last.pt are of different trainings"),
        (lambda run: (run / "last.pt").unlink(), "no last.pt in it; give the output folder of a training"),
        (lambda run: (run / "model.pt").write_bytes(b"no weights"), "model.pt: not a readable checkpoint"),
        (lambda run: torch.save({"epoch": 1}, run / "last.pt"), "not the state of a training"),
    ],
)
def test_a_run_that_is_none_is_refused(trained, tmp_path, spoil, sentence):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.pt", "last.pt"):
        shutil.copy(trained / name, run)
    spoil(run)
    with pytest.raises(InputError, match=sentence):
        make(run, tmp_path)
    assert not list(tmp_path.glob("*.zip"))
    assert not list(tmp_path.glob("site.*"))


TABLE = {"partition": "test", "checkpoint_sha256": "", "summary": {}, "patients": [], "unit": "patient"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"version": "0.2.0"}, "version 0.2.0 is not higher than the bundle's, 0.2.0"),
        ({"version": "new"}, "'new' is no version; write one such as 0.2.1"),
        ({"evaluation": TABLE}, "the evaluation: is the evaluation of other weights than"),
        ({"evaluation": TABLE | {"partition": "validation"}}, "is of the validation partition, which shaped"),
    ],
)
def test_what_does_not_go_together_is_refused(trained, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        make(trained, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_file_is_called_after_bundle_and_version(trained, released, tmp_path):
    with pytest.raises(InputError, match=r"call it neuron_em_segmentation-0.2.1.zip, after bundle and version"):
        release(EM, trained, tmp_path / "model.zip", key=tmp_path / "site.key")
    with pytest.raises(InputError, match=r"0.3.0.zip: is there already; a release is never replaced"):
        release(EM, trained, released, key=tmp_path / "site.key", version="0.3.0")


def test_the_command_makes_a_key_where_there_is_none_and_says_so(trained, tmp_path, overtile):
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("artifacts", "mlflow*"))
    code, said = overtile("release", run, "--out", tmp_path, "--changelog", "first release of the site")
    assert code == 0, said
    assert (tmp_path / "overtile_release.key").stat().st_mode & 0o777 == 0o600
    assert "A new key:" in said
    assert f"Release: {tmp_path / 'neuron_em_segmentation-0.2.1.zip'}" in said
    public = signing.public_key(tmp_path / "overtile_release.pub")
    assert f"fingerprint {signing.fingerprint(public)}" in said
    code, said = overtile("release", run, "--out", tmp_path, "--version", "0.2.2")
    assert (code, "A new key" in said) == (0, False)


def test_the_command_refuses_in_a_sentence(trained, tmp_path, overtile):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "model.pt", run)
    state = torch.load(trained / "last.pt", weights_only=True)
    torch.save(state | {"config": state["config"] | {"experiment": "hearts"}}, run / "last.pt")
    code, said = overtile("release", run, "--out", tmp_path)
    assert (code, said) == (
        2,
        "error: the run does not say which bundle was trained ('hearts' is none); give --bundle\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_recipe_goes_along_without_what_belongs_to_one_dataset(trained, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    fields = {"name": "cells", "image": "{patient}/image.tif", "patient": "Quirina", "downloads": [{"url": "x"}]}
    recipe.write_text(json.dumps(fields))
    with ZipFile(make(trained, tmp_path, recipe=recipe)) as archive:
        held = archive.read(f"{EM.name}/recipe.yaml").decode()
    assert held.splitlines()[1:] == ["name: cells", "image: '{patient}/image.tif'"]
    recipe.write_text("image: 5")
    with pytest.raises(InputError, match=r"recipe.yaml"):
        make(trained, tmp_path, recipe=recipe, version="0.5.0")
    assert not (tmp_path / "neuron_em_segmentation-0.5.0.zip").exists()


@pytest.mark.parametrize(
    ("changes", "shape", "channels"),
    [({}, "16*n", 2), ({"depth": 3}, "4*n", 2), ({"encoder": "resnet18"}, "32*n", 2), ({"head": "sigmoid"}, "16*n", 1)],
)
def test_the_network_s_format_is_as_it_was_configured(changes, shape, channels):
    bundled = release_metadata.read(EM)
    config = {"class_names": ["cell", "membrane"], "in_channels": 3, "depth": 5, "head": "softmax"} | changes
    found = release_metadata.metadata(bundled, version="1.0.0", changelog="x", config=config, tested=None)
    image, pred = (
        found["network_data_format"][side][name] for side, name in (("inputs", "image"), ("outputs", "pred"))
    )
    assert (image["spatial_shape"], image["num_channels"]) == ([shape, shape], 3)
    assert (pred["spatial_shape"], pred["num_channels"], len(pred["channel_def"])) == (
        [shape, shape],
        channels,
        channels,
    )
