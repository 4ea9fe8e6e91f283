"""A good release passes every check; what may be overridden, and what is told of it."""

import json
import logging

import pytest
import torch

from pipeline import signing, verify
from pipeline.errors import InputError


@pytest.fixture
def key(released):
    return released.parent / "site.pub"


CHECKS = ["unpacking", "digests", "signature", "metadata", "versions", "configs", "weights", "reference case"]


def test_a_good_release(released, key, tmp_path):
    found = verify.verify(released, key=key, into=tmp_path / "into")
    assert [check.name for check in found.checks if check.passed] == CHECKS
    assert (found.folder, found.version, found.trust) == (tmp_path / "into" / "neuron_em_segmentation", "0.3.0", "")
    assert found.signer == signing.fingerprint(signing.public_key(key))
    assert [path.name for path in found.folder.parent.iterdir()] == [found.name]
    assert sorted(p.name for p in (found.folder / "models").iterdir()) == ["model.pt", "model.safetensors"]


def test_a_folder_that_is_there_stays(released, key, tmp_path):
    (tmp_path / "neuron_em_segmentation").mkdir()
    with pytest.raises(InputError, match="is there already"):
        verify.verify(released, key=key, into=tmp_path)


def test_without_a_key(released, tmp_path):
    with pytest.raises(verify.RefusalError, match="by another way than the release itself") as refused:
        verify.verify(released, key=None, into=tmp_path / "into")
    assert [check.name for check in refused.value.checks] == CHECKS[:3]
    assert not (tmp_path / "into").exists()


def test_trust_is_logged_and_kept(released, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "pipeline.verify"):
        found = verify.verify(released, key=None, into=tmp_path, trust="made here this morning")
    assert found.trust == "made here this morning"
    assert [check.name for check in found.checks if not check.passed] == ["signature"]
    assert "although its check of signature failed" in caplog.text
    assert "made here this morning" in caplog.text


def test_trust_is_nothing_where_nothing_fails(released, key, tmp_path):
    assert verify.verify(released, key=key, into=tmp_path, trust="to be safe").trust == ""


def test_trust_does_not_mend_a_zip_or_a_key(released, tmp_path):
    (tmp_path / "bad.zip").write_bytes(released.read_bytes()[:-9])
    with pytest.raises(InputError, match="does not end as a zip"):
        verify.verify(tmp_path / "bad.zip", key=None, into=tmp_path / "into", trust="why not")
    with pytest.raises(InputError, match="no such key"):
        verify.verify(released, key=tmp_path / "none.pub", into=tmp_path / "into", trust="why not")
    assert not (tmp_path / "into").exists()


def test_the_command(released, key, overtile):
    code, output = overtile("verify", released, "--key", key)
    lines = output.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[:8]] == ["ok"] * 8
    assert lines[-1].startswith("may be used; signed by ")
    code, output = overtile("verify", released)
    assert code == 2
    assert [line.split()[0] for line in output.splitlines()] == ["ok", "ok", "refused", "error:"]


@pytest.fixture
def image(phantom_dir):
    return sorted(phantom_dir.glob("*/image.tif"))[0]


def test_predict_straight_from_the_zip(released, key, image, overtile, tmp_path, unpacked):
    code, output = overtile("predict", "--bundle", released, "--key", key, "--input", image, "--output", tmp_path / "a")
    assert code == 0, output
    record = json.loads((tmp_path / "a" / "release.json").read_text())
    assert (record["name"], record["version"], record["trust"]) == ("neuron_em_segmentation", "0.3.0", "")
    code, output = overtile("predict", "--bundle", unpacked, "--input", image, "--output", tmp_path / "b")
    assert code == 0, output
    [one], [other] = (list((tmp_path / name).glob("*.tif")) for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_predict_refuses_and_trusts(released, image, overtile, tmp_path):
    words = ("predict", "--bundle", released, "--input", image, "--output", tmp_path / "out")
    code, output = overtile(*words)
    assert code == 2
    assert "no key was given: add --key" in output
    assert not (tmp_path / "out").exists()
    code, output = overtile(*words, "--trust", "a test")
    assert code == 0, output
    assert "trusted although signature failed: a test" in output
    assert json.loads((tmp_path / "out" / "release.json").read_text())["trust"] == "a test"


def test_the_random_generator_is_left_alone(released, key, tmp_path):
    before = torch.random.get_rng_state()
    verify.verify(released, key=key, into=tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
