"""Send what runs could not send while they lived, and say of those that died that they did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.delivery import BEGIN, END
from pipeline.heartbeat import KILLED_OUTRIGHT, PROCESS
from pipeline.outbox import Outbox
from pipeline.store import shown


@dataclass(frozen=True)
class Synced:
    """What became of one run's journal: entries sent, left and refused; `reason` says why, where some are left."""

    folder: Path
    store: str
    sent: int
    left: int
    refused: int
    reason: str


def sync(journal: Path, store: str | None = None, *, seconds: float | None = None) -> Synced:
    """Send a journal; a run that says no end is KILLED, since its process has let go of the journal.

    Args:
        journal: its folder, from `pipeline.journal.journals`.
        store: MLflow tracking URI; None for the one that the run was begun with.
        seconds: to wait without anything getting through; None: as long as a run waits at its end.

    Raises:
        InputError: a process is working on that run, or the journal does not say where to send it.
    """
    outbox = Outbox(store or "", journal.parents[1], key=journal.name, quiet=True)
    delivery = outbox.delivery
    begun, ended = outbox.journal.last(BEGIN), outbox.journal.last(END)
    if begun and (ended is None or ended.number < begun.number):
        process = begun.payload["tags"].get(PROCESS, "")
        at = max(entry.payload.get("at", 0) for entry in outbox.journal.entries.values())
        outbox.put(END, {"status": "KILLED", "failure": KILLED_OUTRIGHT, "at": at, "process": process})
    waiting = len(outbox.journal.pending())
    delivery.start()
    left = outbox.close(seconds)
    sent = waiting - left - delivery.refused
    return Synced(outbox.folder, shown(outbox.store), sent, left, delivery.refused, delivery.reason)
