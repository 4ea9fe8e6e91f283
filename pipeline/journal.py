"""What a run says, on disk before anybody is told: lines of JSON, and the files that go with them.

`FOLDER/unsent/KEY/` holds `journal.jsonl` (append-only), `files/NUMBER/` (the files of an entry), `state.json` (how
far the store has been told) and `lock`. It outlives the process that writes it, and goes when everything is told.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.atomic import make_folder
from pipeline.errors import InputError

UNSENT = "unsent"
"""Folder of the journals, beside the checkpoint."""

LINES, STATE, FILES, LOCK = "journal.jsonl", "state.json", "files", "lock"
"""What a journal's folder holds."""

LINKED_FROM_BYTES = 16 * 2**20
"""Files as large as this are linked, not copied: models, which nobody writes in place."""

WITHDRAWN = "withdrawn"
"""The kind of a line that takes back the entry of its number."""

ARTIFACT = "artifact"
"""Key of a payload: the name in the run of a file that takes the place of an earlier one of this name."""


HELD: set[Path] = set()
"""Journals that this process writes: a file's lock keeps out other processes only."""


@dataclass(frozen=True)
class Entry:
    """One thing that a run says: `kind`, what there is to say of it, and the folder of its files, if it has some."""

    number: int
    kind: str
    payload: dict[str, Any]
    folder: Path | None = None


@dataclass
class Told:
    """How far a store has been told: the last entry's number, its id for the run, and what it refused, with why."""

    number: int = 0
    run_id: str = ""
    refused: dict[int, str] = field(default_factory=dict)


class Journal:
    """A run's journal, for one process at a time; any thread may append.

    A line that a killed process or a full disk left unfinished is passed over. Where nothing can be written, an entry
    lives in memory alone.

    Args:
        folder: made if it does not exist.

    Raises:
        InputError: another process is writing it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder / FILES)
        self._lock = self._locked()
        self.told = self._read_state()
        self.entries = self._read()
        self._number = max([0, self.told.number, *self.entries])
        self._files = {e.payload[ARTIFACT]: e.folder for e in self.pending() if e.folder and ARTIFACT in e.payload}
        self._broken = self._unfinished()
        self._writing = threading.Lock()
        self._out = (folder / LINES).open("ab", buffering=0)

    def append(self, kind: str, payload: dict[str, Any], keep: Callable[[Path], None] | None = None) -> Entry:
        """Write an entry down.

        Args:
            kind: of the entry.
            payload: plain values.
            keep: puts the entry's files into a folder.

        Raises:
            OSError: its files could not be kept.
        """
        with self._writing:
            number = self._number = self._number + 1
            folder = self.folder / FILES / str(number) if keep else None
            if folder and keep:
                folder.mkdir(parents=True, exist_ok=True)
                keep(folder)
                self._replace(payload.get(ARTIFACT), folder)
            entry = self.entries[number] = Entry(number, kind, payload, folder)
            self._write({"n": number, "kind": kind, "payload": payload, "files": folder is not None})
            return entry

    def pending(self) -> list[Entry]:
        """What the store has not been told, oldest first; what it once refused is tried again."""
        return [
            entry for number, entry in sorted(self.entries.items())
            if number > self.told.number or number in self.told.refused
        ]  # fmt: skip

    def done(self, entry: Entry, run_id: str, refusal: str = "") -> None:
        """Remember that the store has been told, or that it does not want to know."""
        self.told.number = max(self.told.number, entry.number)
        self.told.run_id = run_id
        self.told.refused.pop(entry.number, None)
        if refusal:
            self.told.refused[entry.number] = refusal
        elif entry.folder:
            shutil.rmtree(entry.folder, ignore_errors=True)
        temporary = self.folder / f"{STATE}.tmp"
        with contextlib.suppress(OSError):  # then it is told twice, which does no harm
            temporary.write_text(json.dumps({**vars(self.told)}))
            temporary.replace(self.folder / STATE)

    def withdraw(self, first: Entry) -> None:
        """Take back what should not have been said: an entry and all that came after it."""
        with self._writing:
            for number in [number for number in self.entries if number >= first.number]:
                folder = self.entries.pop(number).folder
                self._write({"n": number, "kind": WITHDRAWN, "payload": {}, "files": False})
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)

    def last(self, *kinds: str) -> Entry | None:
        """The last entry of some kinds."""
        return max((e for e in list(self.entries.values()) if e.kind in kinds), key=lambda e: e.number, default=None)

    def close(self) -> None:
        """Let others in; a journal of which everything is told is removed."""
        self._out.close()
        if not self.pending():
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()  # unless it holds another run's
        self._lock.close()
        HELD.discard(self.folder.absolute())

    def _locked(self) -> Any:
        if self.folder.absolute() in HELD:
            raise InputError(f"{self.folder.parents[1]}: this process is at work there already")
        file = (self.folder / LOCK).open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by a loader's workers
        except (BlockingIOError, PermissionError):
            file.close()
            raise InputError(f"{self.folder.parents[1]}: a process is at work there; wait for its end") from None
        HELD.add(self.folder.absolute())
        return file

    def _read_state(self) -> Told:
        try:
            saved = json.loads((self.folder / STATE).read_text())
            refused = {int(number): str(why) for number, why in saved["refused"].items()}
            return Told(int(saved["number"]), str(saved["run_id"]), refused)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Told()

    def _read(self) -> dict[int, Entry]:
        entries: dict[int, Entry] = {}
        for line in self._lines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(line)
                number, kind = int(said["n"]), str(said["kind"])
                folder = self.folder / FILES / str(number) if said["files"] else None
                if kind == WITHDRAWN:
                    entries.pop(number, None)
                else:
                    entries[number] = Entry(number, kind, dict(said["payload"]), folder)
        return entries

    def _lines(self) -> list[bytes]:
        try:
            return (self.folder / LINES).read_bytes().splitlines()
        except FileNotFoundError:
            return []

    def _unfinished(self) -> bool:
        try:
            return not (self.folder / LINES).read_bytes().endswith(b"\n")
        except FileNotFoundError:
            return False

    def _write(self, said: dict[str, Any]) -> None:
        line = json.dumps(said, default=str).encode() + b"\n"
        line = b"\n" + line if self._broken else line
        try:
            self._broken = True
            self._broken = self._out.write(line) != len(line)
        except OSError:
            pass  # a full disk: it is told while this process lives

    def _replace(self, artifact: str | None, folder: Path) -> None:
        """Drop an untold file that has been replaced."""
        if artifact is not None:
            old = self._files.pop(artifact, None)
            self._files[artifact] = folder
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)


def journals(folder: Path) -> list[Path]:
    """The folders of all journals below a folder."""
    return sorted(path.parent for path in folder.rglob(f"{UNSENT}/*/{LINES}"))


def keep_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file, or link it where it is large."""
    if Path(source).stat().st_size >= LINKED_FROM_BYTES:
        with contextlib.suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def now_ms() -> int:
    """The time in ms since 1970 (UTC), as MLflow counts it."""
    return int(1000 * time.time())
