"""What the commands print with: one console, lines as they are, progress of long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_SECONDS = 10
"""Where there is no terminal, long work prints a plain line this often."""

PLAIN_WIDTH = 160
"""Columns of a table where there is no terminal."""


@cache
def console() -> Console:
    """The one console; rich is loaded when something is first printed, not for `--help`."""
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def say(text: str) -> None:
    """Print as it is: brackets in a path are no markup."""
    console().print(text, markup=False, highlight=False)


def progress(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """A bar on a terminal, a plain line every few seconds otherwise."""
    if console().is_terminal:
        from rich.progress import track

        yield from track(items, description=description, total=total, console=console())
        return
    last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if number == total or time.monotonic() - last > LINE_EVERY_SECONDS:
            last = time.monotonic()
            say(f"{description} {number}/{total}")
