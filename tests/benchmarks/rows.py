"""What one line of the benchmark holds, and what it says: medians, ratios of the turns' pairs, aims met or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

ABSOLUTE, LIMIT = "absolute", "limit"
"""Aims that are not against a peer: our own figure as it is, and the share of what the machine allows."""


class Scale(StrEnum):
    """How much is measured: `quick` shows in seconds that everything runs, `full` is what may be quoted."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True)
class Limit:
    """What the machine itself allows, in the row's unit, and how that was measured."""

    value: float
    unit: str
    how: str


@dataclass(frozen=True)
class Row:
    """One kind of work, ours beside others.

    Attributes:
        work: what is done, with its sizes.
        unit: of `ours` and of the peers, `images/s`, `s`, `ms`, `GB`.
        ours: one value per turn.
        peers: name -> one value per turn, paired with ours, or the sentence why it could not run.
        more_is_better: a rate; otherwise a time, a share or a size.
        aim: peer (or `limit`, `absolute`) -> the ratio (share, value) that is wanted.
        limit: what the machine allows.
        same: how equality with the peers was checked, the largest difference and the tolerance.
        note: what a reader has to know besides.
    """

    work: str
    unit: str
    ours: Sequence[float]
    peers: Mapping[str, Sequence[float] | str] = field(default_factory=dict)
    more_is_better: bool = False
    aim: Mapping[str, float] = field(default_factory=dict)
    limit: Limit | None = None
    same: str = ""
    note: str = ""


def told(row: Row) -> dict[str, Any]:
    """The row as it stands in the JSON file.

    Raises:
        ValueError: a peer took another number of turns than we did, or an aim names nobody in the row.
    """
    peers = {name: value if isinstance(value, str) else _beside(row, name, value) for name, value in row.peers.items()}
    ours = _spread(row.ours)
    limit = None
    if row.limit is not None:
        share = ours["median"] / row.limit.value
        limit = vars(row.limit) | {"share": share if row.more_is_better else 1 / share}
    aims = [_aim(name, asked, ours, peers, limit, more=row.more_is_better) for name, asked in row.aim.items()]
    plain = {"work": row.work, "unit": row.unit, "more_is_better": row.more_is_better}
    return plain | {"ours": ours, "peers": peers, "limit": limit, "aims": aims, "same": row.same, "note": row.note}


def _beside(row: Row, name: str, theirs: Sequence[float]) -> dict[str, Any]:
    """A peer's spread, and by how much we are better: the spread of the ratios of the turns' pairs."""
    if len(theirs) != len(row.ours):
        raise ValueError(f"{row.work}: {name} took {len(theirs)} turns and we took {len(row.ours)}; pair them")
    pairs = zip(row.ours, theirs, strict=True)
    return _spread(theirs) | {"ratio": _spread([a / b if row.more_is_better else b / a for a, b in pairs])}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and every value."""
    values = [float(value) for value in values]
    return {"median": median(values), "low": min(values), "high": max(values), "values": values}


def _aim(
    name: str, asked: float, ours: Mapping[str, Any], peers: Mapping[str, Any], limit: Any, *, more: bool
) -> dict[str, Any]:
    """What is wanted, what was reached, and whether that is enough; None where nothing could be measured."""
    if name == ABSOLUTE:
        reached = ours["median"]
        return {
            "against": name,
            "asked": asked,
            "reached": reached,
            "met": reached >= asked if more else reached <= asked,
        }
    if name == LIMIT:
        reached = limit and limit["share"]
    elif name in peers:
        reached = None if isinstance(peers[name], str) else peers[name]["ratio"]["median"]
    else:
        raise ValueError(f"an aim names {name}, which is no peer of the row: {', '.join(peers) or 'it has none'}")
    return {"against": name, "asked": asked, "reached": reached, "met": None if reached is None else reached >= asked}
