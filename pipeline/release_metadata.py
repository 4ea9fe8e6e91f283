"""The metadata.json of a release: the bundle's, with a higher version, and what is true of the run and of this code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from pipeline.encoders import PERIOD
from pipeline.errors import InputError
from pipeline.release_figures import Figures
from pipeline.release_files import METADATA

KEPT = (
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
    "optional_packages_version", "supported_apps", "name", "task", "description", "authors", "copyright", "data_source",
    "data_type", "image_classes", "label_classes", "pred_classes", "segments", "eval_metrics", "intended_use",
    "references", "network_data_format",
)  # fmt: skip
"""Keys that a release takes over, those of MONAI's schema and our codes: a site may have added others for itself."""

VERSIONS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
"""Keys that say which version of a package the release was made with."""

OURS = "overtile"

MULTIPLE = re.compile(r"\d+\*n")
"""How metadata say that a side is a multiple of something."""

ELSEWHERE = "the weights of this release may be of other data, see docs/README.md"
"""What a bundle's `data_source` does not say."""


def read(bundle: Path) -> dict[str, Any]:
    """A bundle's metadata.

    Raises:
        InputError: it is missing or no JSON, or has no version.
    """
    file = bundle / METADATA
    try:
        metadata = dict(json.loads(file.read_text(encoding="utf-8")))
        parsed(metadata["version"])
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{file}: no metadata with a version; every MONAI bundle has one") from None
    return metadata


def next_version(now: str, wanted: str | None) -> str:
    """The version of the release: the wanted one, or the bundle's with its last number raised.

    Raises:
        InputError: it is no version, or not higher than the bundle's.
    """
    if wanted is None:
        major, minor, patch = (*parsed(now).release, 0, 0)[:3]
        return f"{major}.{minor}.{patch + 1}"
    if parsed(wanted) <= parsed(now):
        raise InputError(f"version {wanted} is not higher than the bundle's, {now}; give a higher one or leave it out")
    return wanted


def parsed(text: str) -> Version:
    """A version such as 0.2.1, to be compared.

    Raises:
        InputError: it is none.
    """
    try:
        return Version(str(text))
    except InvalidVersion:
        raise InputError(f"{text!r} is no version; write one such as 0.2.1") from None


def metadata(
    bundle: Mapping[str, Any], *, version: str, changelog: str, config: Mapping[str, Any], tested: Figures | None
) -> dict[str, Any]:
    """The metadata of a release.

    Args:
        bundle: the bundle's own; its changelog is kept, and stands below the new entry.
        version: of the release.
        changelog: one sentence.
        config: of the deployed model: its classes and channels are written down.
        tested: aggregates; None where nothing was tested.
    """
    found = {key: value for key, value in bundle.items() if key in KEPT}
    found |= {"version": version, "changelog": {version: changelog, **bundle.get("changelog", {})}}
    found |= {key: installed(package) for key, package in VERSIONS.items()}
    packages = {OURS, "safetensors", *bundle.get("required_packages_version", {})}
    found["required_packages_version"] = {name: installed(name) for name in sorted(packages)}
    found["eval_metrics"] = _metrics(tested)
    if "network_data_format" in found:
        found["network_data_format"] = _format(found["network_data_format"], config)
    found["data_source"] = _source(str(bundle.get("data_source", "")))
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(config["class_names"]))
    found |= {key: classes for key in ("label_classes", "pred_classes") if _names(bundle) != config["class_names"]}
    return found


def installed(package: str) -> str:
    """The version of a package here, without the word for its build: 2.13.0, not 2.13.0+cpu.

    Raises:
        InputError: it is not installed.
    """
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        raise InputError(f"{package} is not installed here, so a release cannot say which version it needs") from None


def _metrics(tested: Figures | None) -> dict[str, Any]:
    """Figures that may leave; empty where there are none."""
    if tested is None or tested.patients is None:
        return {}
    means = {f"mean_dice_{name}": round(mean, 4) for name, (mean, _) in tested.dice.items()}
    return means | {f"{tested.unit}s": tested.patients} if means else {}


def _source(declared: str) -> str:
    """The bundle's own data, which the weights need not be of."""
    return declared if ELSEWHERE in declared else "; ".join(filter(None, (declared, ELSEWHERE)))


def _names(bundle: Mapping[str, Any]) -> list[str] | None:
    """The classes of the bundle's own output."""
    try:
        channels = bundle["network_data_format"]["outputs"]["pred"]["channel_def"]
        return [channels[str(number)] for number in range(len(channels))]
    except (KeyError, TypeError):
        return None


def _format(network: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The network's channels and the sides that it takes, as they are configured."""
    found: dict[str, Any] = json.loads(json.dumps(network))
    outputs = len(config["class_names"]) if config.get("head", "softmax") == "softmax" else 1
    names = config["class_names"] if outputs > 1 else config["class_names"][1:]
    found["inputs"]["image"]["num_channels"] = config["in_channels"]
    found["outputs"]["pred"] |= {
        "num_channels": outputs,
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }
    for tensor in (found["inputs"]["image"], found["outputs"]["pred"]):
        tensor["spatial_shape"] = [_side(side, config) for side in tensor["spatial_shape"]]
    return found


def _side(declared: Any, config: Mapping[str, Any]) -> Any:
    """`16*n`: a multiple of what the levels of the network halve, where the bundle declares a multiple."""
    if not MULTIPLE.fullmatch(str(declared)):
        return declared
    return f"{PERIOD if config.get('encoder') else 2 ** (config['depth'] - 1)}*n"
