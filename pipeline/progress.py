"""How long work says how far it is: a function wrapped around what is iterated. Here only the silent one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""(items, how many, what is being done) -> the same items."""


def silent(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show nothing."""
    return items
