"""Checks of an unpacked release that evaluate nothing: digests, signature, metadata, versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import restricted, signing, terms
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.release_files import METADATA, SIGNATURE, SUMS

LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
"""Of SHA256SUMS, as `sha256sum` writes it."""

SIGNATURE_BYTES = 64
"""Of Ed25519."""

OURS = "overtile"

AT_LEAST = {"monai": "monai_version", "torch": "pytorch_version"}
"""Packages whose results a release depends on, and the key of the metadata that says with which it was made. The same
major version, and no older minor one, runs its configs; whether the answer is the same, the reference case shows."""


class Tensor(BaseModel):
    """What goes into a network or comes out, as MONAI's schema asks for it."""

    model_config = ConfigDict(extra="allow")
    type: str
    format: str
    num_channels: int = Field(gt=0)
    spatial_shape: list[int | str]
    dtype: str
    value_range: list[float]


class Format(BaseModel):
    """`network_data_format` of MONAI's schema."""

    inputs: dict[str, Tensor] = Field(min_length=1)
    outputs: dict[str, Tensor] = Field(min_length=1)


class Metadata(BaseModel):
    """What MONAI's schema and the model zoo's own check require of metadata.json; the schema itself is downloaded."""

    model_config = ConfigDict(extra="allow")
    version: str
    changelog: dict[str, str] = Field(min_length=1)
    monai_version: str
    pytorch_version: str
    numpy_version: str
    required_packages_version: dict[str, str]
    task: str
    description: str
    authors: str | list[str]
    copyright: str
    network_data_format: Format


def digests(folder: Path) -> str:
    """Every file is there with the bytes that SHA256SUMS says, and no other file.

    Raises:
        InputError: a file is changed, missing or not listed.
    """
    sums = _sums(folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(sums.keys() - files):
        raise InputError(f"{name} is missing")
    for name in sorted(files - sums.keys() - {SUMS, SIGNATURE}):
        raise InputError(f"{name} is not in {SUMS}")
    for name, digest in sums.items():
        if file_digest(folder / name) != digest:
            raise InputError(f"{name} has been changed: its SHA-256 is not the one in {SUMS}")
    return f"{len(sums)} files are as {SUMS} says"


def signature(folder: Path, key: Path | None) -> str:
    """SHA256SUMS is signed by the owner of a key that came by another way than the release.

    Raises:
        InputError: there is no signature or no key, or they do not belong together.
    """
    if key is None:
        raise InputError(
            "no key was given: add --key with the public key of who made the release, which must reach you by another "
            "way than the release itself"
        )
    public = signing.public_key(key)
    if not (folder / SIGNATURE).is_file():
        raise InputError(f"{SIGNATURE} is missing: the release is not signed")
    signed = (folder / SIGNATURE).read_bytes()
    if len(signed) != SIGNATURE_BYTES or not signing.is_signed((folder / SUMS).read_bytes(), signed, public):
        raise InputError(
            f"the signature is not of the owner of {key}: the release was changed, or signed with another key "
            f"(this one's fingerprint is {signing.fingerprint(public)})"
        )
    return f"signed by the owner of {key.name}, fingerprint {signing.fingerprint(public)}"


def metadata(folder: Path) -> str:
    """metadata.json has what MONAI's schema and the model zoo require.

    Raises:
        InputError: something is missing or of another kind.
    """
    found = read_metadata(folder)
    try:
        known = Metadata.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{METADATA}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if known.version not in known.changelog:
        raise InputError(f"{METADATA}: the changelog says nothing of version {known.version}")
    for problem in terms.problems(found):
        raise InputError(f"{METADATA}: {problem}")
    return f"version {known.version}, {known.task}"


def versions(folder: Path) -> str:
    """The packages here can run the release.

    Raises:
        InputError: one is missing or does not fit.
    """
    found = read_metadata(folder)
    required = found.get("required_packages_version")
    required = required if isinstance(required, Mapping) else {}
    wanted, here = _version(required.get(OURS), OURS), _version(_installed(OURS), OURS)
    if wanted.release[:2] != here.release[:2]:
        raise InputError(
            f"was made with {OURS} {wanted}, here is {here}: install that version; the wheel of it is in the release"
        )
    for package, key in AT_LEAST.items():
        wanted, here = _version(found.get(key), package), _version(_installed(package), package)
        if wanted.major != here.major or here.release[:2] < wanted.release[:2]:
            raise InputError(
                f"was made with {package} {wanted}, here is {here}: install that one or a later {wanted.major}.x"
            )
    for package in required:
        _installed(str(package))
    return f"{OURS} {here_version(OURS)}, " + ", ".join(f"{package} {here_version(package)}" for package in AT_LEAST)


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json, strictly read.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return restricted.read(folder / METADATA)
    except InputError as error:
        raise InputError(f"{METADATA} {error}") from None


def here_version(package: str) -> str:
    """The version that is installed, without the word for its build."""
    return version(package).partition("+")[0]


def _sums(folder: Path) -> dict[str, str]:
    """Name -> digest."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        raise InputError(f"{SUMS} is missing or no text") from None
    found: dict[str, str] = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise InputError(f"{SUMS} has a line that is none of `sha256sum`, or a file twice")
        found[match[2]] = match[1]
    return found


def _installed(package: str) -> str:
    try:
        return here_version(package)
    except PackageNotFoundError:
        raise InputError(f"needs {package}, which is not installed here") from None


def _version(text: object, package: str) -> Version:
    try:
        return Version(str(text))
    except InvalidVersion:
        raise InputError(f"{METADATA} does not say which version of {package} the release was made with") from None
