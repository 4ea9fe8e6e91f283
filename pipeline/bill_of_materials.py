"""What a release is made of and needs to run: every installed package by name, version and licence, as CycloneDX."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.digests import file_digest

NAMESPACE = uuid.UUID("6f3c4f7e-6a7e-5c0f-9c5e-0f5a6a7b9f10")
"""Of the serial numbers, each derived from what its bill lists: equal releases have equal bills."""

OURS = "overtile"

UNKNOWN = "not stated"
"""The licence of a package that names none."""

LONGEST_NAME = 80
"""Characters of a licence's name; some packages put the whole text there."""

CLASSIFIER = "License :: "


def write(path: Path, *, name: str, version: str, wheel: Path, weights: Path) -> None:
    """Write the bill of a release.

    Args:
        path: of the file.
        name: of the bundle.
        version: of the release.
        wheel: our package in the release, which stands for the installed one.
        weights: of the network.
    """
    packages = closure(OURS)
    components = {key: _component(found) for key, found in packages.items()}
    components[OURS].hashes.add(_sha256(wheel))
    components[OURS].properties.add(Property(name="overtile:file", value=f"wheels/{wheel.name}"))
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=weights.name, version=version, bom_ref="weights",
        hashes=[_sha256(weights)],
    )  # fmt: skip
    bundle = Component(type=ComponentType.APPLICATION, name=name, version=version, bom_ref="release")
    everything = [*components.values(), model]
    bom = Bom(
        components=everything, serial_number=_serial(bundle, everything), dependencies=_edges(packages, components)
    )
    bom.metadata.component = bundle
    bom.register_dependency(bundle, [model, components[OURS]])
    bill = json.loads(JsonV1Dot6(bom).output_as_string())
    del bill["metadata"]["timestamp"]  # of this moment
    path.write_text(json.dumps(bill, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def closure(root: str) -> dict[str, Distribution]:
    """A package and all that it needs here, directly or not: normalised name -> what is installed, in order of names.

    What a package needs on other systems, or for extras that nobody asked for, is not installed on its account.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(root, "")]
    while queue:
        name, extra = queue.pop()
        key = str(canonicalize_name(name))
        if (key, extra) in seen:
            continue
        seen.add((key, extra))
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:  # an optional one, or of another system
            continue
        for needed in _needs(found[key], extra):
            queue += [(needed.name, extra) for extra in ("", *needed.extras)]
    return dict(sorted(found.items()))


def _needs(package: Distribution, extra: str = "") -> Iterable[Requirement]:
    """What a package needs on this system."""
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _component(package: Distribution) -> Component:
    name, version = str(canonicalize_name(package.metadata["Name"])), package.version
    licence = LicenseFactory().make_from_string(_licence(package))
    url = PackageURL("pypi", name=name, version=version)
    return Component(
        type=ComponentType.LIBRARY, name=name, version=version, purl=url, licenses=[licence], bom_ref=str(url)
    )


def _licence(package: Distribution) -> str:
    """An SPDX expression where the package has one, else the name in its classifiers, else its own words."""
    about: Any = package.metadata
    names = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith(CLASSIFIER)]
    classified = [name for name in names if name != "OSI Approved"]
    own = str(about.get("License") or "").strip()
    short = own if len(own) <= LONGEST_NAME and "\n" not in own else ""
    return str(about.get("License-Expression") or " and ".join(classified) or short or UNKNOWN)


def _edges(packages: Mapping[str, Distribution], components: Mapping[str, Component]) -> list[Dependency]:
    """Which package needs which, by their references."""
    refs = {key: component.bom_ref for key, component in components.items()}
    return [
        Dependency(
            refs[key],
            [
                Dependency(refs[needed])
                for needed in sorted({str(canonicalize_name(one.name)) for one in _needs(package)} & refs.keys())
            ],
        )
        for key, package in packages.items()
    ]


def _sha256(path: Path) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=file_digest(path))


def _serial(bundle: Component, components: Iterable[Component]) -> uuid.UUID:
    parts: list[Any] = [bundle.name, bundle.version]
    for component in components:
        parts += [component.name, component.version, *(found.content for found in component.hashes)]
    return uuid.uuid5(NAMESPACE, json.dumps(parts))
