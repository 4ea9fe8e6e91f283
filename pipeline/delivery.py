"""The thread that tells a store what stands in a run's journal, in order, however often the store does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import InputError
from pipeline.journal import ARTIFACT, Entry, Journal
from pipeline.senders import SENDERS, begin, only_one, refused, written_points
from pipeline.store import MlflowClient, NoAnswerError, answering, find_run, reason, shown

logger = logging.getLogger("pipeline.delivery")

PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Between two attempts; the last one again and again."""

LAST_REQUEST_SECONDS = 10.0
"""So long an end waits for a request that is on its way; MLflow gives one up then."""

SILENT_FAILURES = 1
"""A first failure in a row is told to nobody: a connection that was idle for long ends so."""

FAULTS = 5
"""An entry that fails so often while the store answers other questions is the entry's fault."""

BEGIN, END = "begin", "end"
"""The kinds of entry that a start and an end of a run are."""


class Delivery:
    """Sends a journal's entries, first those that an earlier process has left.

    Args:
        store: MLflow tracking URI.
        key: the run's own name.
        journal: closed when the thread ends.
        begun: called in the thread with the client and the store's id once the run exists.
        quiet: keep the reason of a failure instead of logging it.
    """

    def __init__(
        self,
        store: str,
        key: str,
        journal: Journal,
        *,
        begun: Callable[[MlflowClient, str], None] | None = None,
        quiet: bool = False,
    ) -> None:
        self.store = store
        self.key = key
        self.journal = journal
        self.begun = begun
        self.quiet = quiet
        self.run_id = journal.told.run_id
        self.reason = ""
        self.refused = 0
        self._queue = deque(journal.pending())
        self._client: MlflowClient | None = None
        self._written: set[tuple[str, int]] | None = None
        self._failures = 0
        self._warned = False
        self._mistake: InputError | None = None
        self._starting = False
        self._settled = threading.Event()
        self._hurry = threading.Event()
        self._closing = self._given_up = False
        self._progress = time.monotonic()
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)

    def add(self, entry: Entry) -> None:
        """Send this entry too."""
        with self._ready:
            self._queue.append(entry)
            self._ready.notify()

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def start_and_wait(self, seconds: float) -> None:
        """Begin to send, and wait until the store has the run, or does not answer.

        Raises:
            InputError: there is no such store, it has no such run, or somebody else is working on it.
        """
        self._starting = True
        self.start()
        if not self._settled.wait(seconds):
            self.trouble(TimeoutError(f"no answer in {seconds:g} s"), at_once=True)
        with self._ready:
            self._starting = False
        if self._mistake:
            self._thread.join()
            raise self._mistake

    def close(self, seconds: float) -> int:
        """Wait until everything is sent, or nothing got through for so long; the number of entries that are left."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._hurry.set()
        if self._thread.ident is None:
            self.journal.close()
        self._progress = time.monotonic()
        try:
            while self._thread.is_alive() and time.monotonic() - self._progress < seconds:
                self._thread.join(0.05)
        finally:
            self._given_up = True
        if self._thread.ident is not None:
            self._thread.join(LAST_REQUEST_SECONDS)
        return len(self._queue)

    def trouble(self, error: BaseException, at_once: bool = False) -> None:
        """A store does not answer: told once, from the second failure in a row on."""
        self._failures += 1
        self.reason = reason(error)
        if self._failures <= SILENT_FAILURES and not at_once:
            return
        self._settled.set()
        if not self._warned and not self.quiet:
            self._warned = True
            logger.warning(
                "%s does not answer (%s). The work goes on; what could not be sent is kept in %s and is sent when it "
                "answers again, on resume, or by `overtile sync %s`",
                shown(self.store),
                self.reason,
                self.journal.folder.parent,
                self.journal.folder.parents[1],
            )

    def answered(self) -> None:
        """The store answers."""
        if self._failures > SILENT_FAILURES and not self.quiet:
            logger.info("%s answers again; %d entries wait", shown(self.store), len(self._queue))
        self._failures = 0

    def _work(self) -> None:
        try:
            while (entry := self._next()) is not None:
                if not self._delivered(entry):
                    break
                with self._ready:
                    self._queue.popleft()
                self._progress = time.monotonic()
        finally:
            self._settled.set()
            self.journal.close()

    def _next(self) -> Entry | None:
        with self._ready:
            while not self._queue and not self._closing:
                self._ready.wait()
            return self._queue[0] if self._queue else None

    def _delivered(self, entry: Entry) -> bool:
        """Send until it is through or refused; False when there is no more time."""
        attempts = faults = 0
        while not self._given_up:
            try:
                self._send(entry)
            except Exception as error:  # MLflow, its drivers and the network each raise their own
                if self._is_mistake(entry, error):
                    return False
                faults += self._is_fault(error)
                if entry.kind != BEGIN and (refused(error, self.store) or faults == FAULTS):
                    self._set_aside(entry, error)
                    return True
                self.trouble(error)
            else:
                self.answered()
                self.journal.done(entry, self.run_id)
                return True
            self._hurry.wait(PAUSES_SECONDS[min(attempts, len(PAUSES_SECONDS) - 1)])
            self._hurry.clear()
            attempts += 1
        return False

    def _send(self, entry: Entry) -> None:
        client = self._client = self._client or answering(self.store)
        if entry.kind == BEGIN:
            self._begin(client, entry)
            return
        payload = entry.payload
        if entry.kind == "metrics":
            payload = payload | {"values": self._new_points(client, payload)}
        elif entry.kind == END:
            self.run_id = only_one(client, self.key) or self.run_id
        SENDERS[entry.kind](client, self._known_id(client), payload, entry.folder)

    def _begin(self, client: MlflowClient, entry: Entry) -> None:
        self.run_id, created = begin(client, self.store, self.key, entry.payload, strict=self._starting)
        self._written = set() if created else None
        self._settled.set()
        if self.begun and entry is self.journal.last(BEGIN):
            try:
                self.begun(client, self.run_id)
            except Exception as error:  # the run is there: that is what counts
                self.trouble(error)

    def _new_points(self, client: MlflowClient, payload: Mapping[str, Any]) -> dict[str, float]:
        """Those of steps that the run does not have: a resumed training says again what a killed one has said."""
        if self._written is None:
            self._written = written_points(client, self._known_id(client))
        return {
            name: value for name, value in payload["values"].items() if (name, payload["step"]) not in self._written
        }

    def _known_id(self, client: MlflowClient) -> str:
        if not self.run_id:
            run = find_run(client, self.key)
            if run is None:
                raise LookupError(f"{shown(self.store)} has no run of this key")
            self.run_id = run.info.run_id
        return self.run_id

    def _is_mistake(self, entry: Entry, error: Exception) -> bool:
        """At its start a run refuses what waiting would not mend; later it can only wait."""
        if not isinstance(error, InputError):
            if entry.kind != BEGIN or not refused(error, self.store):
                return False
            error = InputError(f"{shown(self.store)}: refuses the run ({reason(error)})")
        with self._ready:
            begin_entry = self.journal.last(BEGIN)
            if not self._starting or begin_entry is None:
                return False
            self._mistake = error
            self.journal.withdraw(begin_entry)
        return True

    def _is_fault(self, error: Exception) -> bool:
        """Whether the store answers another question; a full disk lets itself be read and is nobody's fault."""
        unavailable = getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
        if unavailable or isinstance(error, NoAnswerError) or self._client is None:
            return False
        try:
            self._client.search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def _set_aside(self, entry: Entry, error: Exception) -> None:
        """What a store does not take must not keep the rest from it."""
        self.refused += 1
        self.reason = reason(error)
        self.journal.done(entry, self.run_id, refusal=self.reason)
        if self.refused == 1 and not self.quiet:
            what = entry.payload.get(ARTIFACT) or entry.kind
            logger.warning("%s refuses %s (%s); kept in %s", shown(self.store), what, self.reason, self.journal.folder)
