"""The wheel that a release carries is one: others read it, install it, and find the whole package in it."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from wheel.wheelfile import WheelFile

from pipeline import wheel_file
from pipeline.errors import InputError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return wheel_file.write(tmp_path_factory.mktemp("wheels"))


def test_pypa_reads_it_and_finds_every_digest_right(wheel):
    with WheelFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    ours = {name: content for name, content in held.items() if name.startswith("pipeline/")}
    assert ours == {f"pipeline/{p.name}": p.read_bytes() for p in (ROOT / "pipeline").iterdir() if p.is_file()}
    about = f"overtile-{version('overtile')}.dist-info"
    assert b"overtile = pipeline.cli:main" in held[f"{about}/entry_points.txt"]
    assert b"Name: overtile" in held[f"{about}/METADATA"]
    assert b"Apache License" in held[f"{about}/licenses/LICENSE"]


def test_the_same_package_makes_the_same_bytes(wheel, tmp_path):
    assert wheel_file.write(tmp_path).read_bytes() == wheel.read_bytes()


def test_pip_installs_it_without_a_network(wheel, tmp_path):
    if find_spec("pip") is None:
        pytest.skip("pip is not here")
    target = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, wheel], check=True)
    say = "import pipeline.errors, sys; sys.stdout.write(pipeline.errors.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", say], env=os.environ | {"PYTHONPATH": str(target)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == str(target / "pipeline/errors.py")
    assert "from pipeline.cli import main" in (target / "bin/overtile").read_text()


def test_what_was_never_installed_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel_file, "DISTRIBUTION", "nobody-ever-installed-this")
    with pytest.raises(InputError, match="is not installed, so a release cannot take it along"):
        wheel_file.write(tmp_path)
