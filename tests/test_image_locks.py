"""The image's locks: every version is that of requirements.lock, and every file has its digest."""

import re
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.test_lock import LOCK as PINS
from tests.test_lock import PROJECT

LOCKS = ["cpu", "cuda"]
IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.2",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}
AGAIN = "run `make locks`"


def text_of(lock):
    return (ROOT / "docker" / f"requirements-{lock}.lock").read_text()


def entries(lock):
    """Name, version and digests of every entry, in the order of the file."""
    blocks = re.split(r"\n(?=\S)", text_of(lock).strip())
    for block in blocks:
        pin, *hashes = block.replace("\\\n", " ").split()
        name, version = pin.split("==")
        yield SimpleNamespace(name=name, version=version, hashes=hashes)


def pinned():
    pins = {pin.name: pin.specifier for pin in PINS if pin.marker is None or pin.marker.evaluate(IMAGE)}
    return {name: str(specifier).removeprefix("==") for name, specifier in pins.items()}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_has_a_digest(lock):
    assert len(list(entries(lock))) > 50
    for entry in entries(lock):
        assert entry.hashes, entry.name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in entry.hashes), entry.name


@pytest.mark.parametrize("lock", LOCKS)
def test_versions_are_those_of_the_development_lock(lock):
    found = {entry.name: entry.version.removesuffix("+cpu") for entry in entries(lock)}
    assert found.items() <= pinned().items(), f"{sorted(found.items() - pinned().items())}: {AGAIN}"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_there_and_no_development_tool(lock):
    found = {entry.name for entry in entries(lock)}
    wanted = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    assert wanted <= found, f"{sorted(wanted - found)}: {AGAIN}"
    assert "setuptools" in found, "it builds our own package"
    assert not found & {"pytest", "mypy", "ruff", "playwright", "hypothesis", "podman-compose"}


def test_one_lock_is_for_cpus_and_the_other_for_gpus():
    cpu, cuda = ({entry.name: entry for entry in entries(lock)} for lock in LOCKS)
    assert cpu["torch"].version == cuda["torch"].version + "+cpu"
    assert len(cpu["torch"].hashes) == 1
    assert "nvidia-cudnn-cu13" in cuda.keys() - cpu.keys()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place(lock):
    assert "://" not in text_of(lock)
    assert not re.search(r"^\s*--(?!hash)", text_of(lock), re.MULTILINE)
