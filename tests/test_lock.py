"""requirements.lock pins every dependency exactly once for each Python that is supported."""

import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WANTED = [
    Requirement(text)
    for text in [
        *PROJECT["project"]["dependencies"],
        *(text for extra in PROJECT["project"]["optional-dependencies"].values() for text in extra),
        *PROJECT["build-system"]["requires"],
    ]
]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_one_version_each(python):
    linux = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins = {}
    for pin in LOCK:
        if pin.marker is None or pin.marker.evaluate(linux | {"platform_machine": "x86_64"}):
            assert pin.name not in pins, pin.name
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            pins[pin.name] = specifier.version
    missing = [str(r) for r in WANTED if r.name not in pins or pins[r.name] not in r.specifier]
    assert missing == []
