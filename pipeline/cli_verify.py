"""`overtile verify`: whether a release may be used."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.processes import speaks
from pipeline.terminal import say

if TYPE_CHECKING:
    from pipeline.verify import Check, Verified

Release = Annotated[Path, typer.Argument(help="NAME-VERSION.zip, as overtile release writes it.")]
Key = Annotated[
    Path | None,
    typer.Option(help="Public key of who made it (PEM); it must reach you by another way than the release."),
]
Trust = Annotated[str, typer.Option(help="Use it whatever fails except the unpacking, for this reason; it is logged.")]
Device = Annotated[str, typer.Option(help="To reproduce the reference case on, cpu or cuda.")]
OpenKey = Annotated[Path | None, typer.Option("--key", help="For a release's zip: public key of who made it (PEM).")]
OpenTrust = Annotated[str, typer.Option("--trust", help="For a release's zip: use it whatever fails, for this reason.")]


def verify(release: Release, key: Key = None, trust: Trust = "", device: Device = "cpu") -> None:
    """Check a release before it is used: unpacking, digests, signature, configs, weights, reference case."""
    from pipeline.verify import RefusalError
    from pipeline.verify import verify as verified

    with tempfile.TemporaryDirectory(prefix="overtile-verify-") as temporary:
        try:
            found = verified(release, key=key, into=Path(temporary), trust=trust, device=device)
        except RefusalError as refusal:
            say_checks(refusal.checks)
            raise
        say_checks(found.checks)
    say_opened(found)


@contextmanager
def opened(
    bundle: str, key: Path | None, trust: str, device: str | None, output: Path
) -> Iterator[tuple[Path, Verified | None]]:
    """A bundle's folder, and what was found of a release, which is told and written down beside its answers."""
    from pipeline import opened_release

    with opened_release.opened(bundle, key=key, trust=trust, device=device) as (folder, found):
        if found is not None:
            if speaks():
                say_opened(found)
            opened_release.write_record(found, output)
        yield folder, found


def say_opened(found: Verified) -> None:
    """Which release it is, and why it is used."""
    say(f"{found.name} {found.version}  sha256 {found.sha256}")
    failed = ", ".join(check.name for check in found.checks if not check.passed)
    say(f"trusted although {failed} failed: {found.trust}" if failed else f"may be used; signed by {found.signer}")


def say_checks(checks: list[Check]) -> None:
    """One line each."""
    for check in checks:
        say(f"{'ok     ' if check.passed else 'refused'}  {check.name:<15} {check.sentence}")
