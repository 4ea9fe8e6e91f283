"""Whether a release may be used: a chain of checks, each of which protects the next one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import release_checks, release_contents, restricted, signing
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.progress import Progress, silent
from pipeline.unpacking import temporary_folder, unpack

logger = logging.getLogger("pipeline.verify")


@dataclass(frozen=True)
class Check:
    """One check of a release, and what it found."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Verified:
    """A release that may be used.

    Attributes:
        folder: the unpacked bundle.
        name: of the bundle.
        version: of the release.
        sha256: of the zip.
        checks: in order; one that failed is there only where `trust` overrode it.
        trust: why failed checks were overridden; empty where none failed.
        signer: fingerprint of the key; empty where the signature was not checked.
    """

    folder: Path
    name: str
    version: str
    sha256: str
    checks: list[Check] = field(default_factory=list)
    trust: str = ""
    signer: str = ""


class RefusalError(InputError):
    """A release that may not be used: the sentence of the first failed check; `checks` has those before it too."""

    def __init__(self, sentence: str, checks: list[Check]) -> None:
        super().__init__(sentence)
        self.checks = checks


def verify(
    release: Path,
    *,
    key: Path | None,
    into: Path,
    trust: str = "",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Verified:
    """Unpack a release and check it; what does not pass leaves nothing behind.

    In this order: safe unpacking, digests, signature, metadata, versions, configs (from their text alone), weights,
    reference case. Only the last two evaluate anything of the release.

    Args:
        release: the zip.
        key: public key of who made it, in PEM; it must have come by another way than the release.
        into: folder for the unpacked bundle, `into` / its name, which must not be there.
        trust: why to use the release whatever fails, except the unpacking; it is logged.
        device: to reproduce the reference case on.
        progress: around the checks.

    Raises:
        RefusalError: a check failed.
        InputError: the key cannot be read, or the folder is there already.
    """
    trust = trust.strip()
    if key is not None:
        signing.public_key(key)  # a mistake in the path is no defect of the release, and --trust does not cure it
    with temporary_folder(into) as temporary:
        try:
            folder = unpack(release, temporary)
        except InputError as error:
            raise RefusalError(str(error), [Check("unpacking", False, str(error))]) from None
        target = into / folder.name
        if target.exists() or target.is_symlink():
            raise InputError(f"{target}: is there already; remove it, or choose another folder")
        checks = [Check("unpacking", True, f"{folder.name}, nothing in it leads out of its folder")]
        chain = _chain(folder, key, device)
        for name, look in (progress or silent)(chain, len(chain), "checks"):
            checks.append(_checked(name, look))
            if not checks[-1].passed and not trust:
                raise RefusalError(f"{release}: {checks[-1].sentence}", checks)
        version = str(release_checks.read_metadata(folder).get("version", "")) if _passed(checks, "metadata") else ""
        folder.rename(target)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        logger.warning(
            "%s is trusted although its check of %s failed (%s): %s", release.name, check.name, check.sentence, trust
        )
    signer = signing.fingerprint(signing.public_key(key)) if key is not None and _passed(checks, "signature") else ""
    return Verified(target, target.name, version, file_digest(release), checks, trust if failed else "", signer)


def _chain(folder: Path, key: Path | None, device: str) -> list[tuple[str, Callable[[], str]]]:
    """Name of each check, and what looks: it returns a sentence, or raises one."""
    return [
        ("digests", lambda: release_checks.digests(folder)),
        ("signature", lambda: release_checks.signature(folder, key)),
        ("metadata", lambda: release_checks.metadata(folder)),
        ("versions", lambda: release_checks.versions(folder)),
        ("configs", lambda: _configs(folder)),
        ("weights", lambda: release_contents.weights(folder)),
        ("reference case", lambda: release_contents.reference(folder, device)),
    ]


def _configs(folder: Path) -> str:
    """Nothing in the configs is code that our own bundles do not use."""
    found = list(restricted.problems(folder))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(f"{found[0]}{more}; configs are code, so this one is not run")
    return "nothing in them is code that our own bundles do not use"


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except InputError as error:
        return Check(name, False, str(error))


def _passed(checks: list[Check], name: str) -> bool:
    return any(check.passed for check in checks if check.name == name)
