"""What a run says to MLflow: kept on disk at once, sent by a thread; no training waits for a server."""

from __future__ import annotations

import logging
import posixpath
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.delivery import BEGIN, END, Delivery
from pipeline.errors import InputError
from pipeline.heartbeat import Heart, first_beat, reconcile
from pipeline.journal import ARTIFACT, UNSENT, Journal, keep_file, now_ms
from pipeline.senders import PIXELS, SENDERS, as_json
from pipeline.store import SQLITE, MlflowClient, reason, shown, sqlite_store

__all__ = ["SENDERS", "Outbox"]

logger = logging.getLogger("pipeline.outbox")

START_SECONDS = 15.0
"""So long a run waits at its start for a store's first answer, which may be that the address is wrong."""

END_SECONDS = 15.0
"""So long it waits at its end without anything getting through."""


class Outbox:
    """What one run says to a store. No method waits for the store or raises because of it, but `begin` and `close`.

    Args:
        store: MLflow tracking URI; empty for the one that the run was begun with.
        folder: of the results; the journal lies in `unsent` in it.
        key: the run's own name, by which it is taken up again; empty for a new run.
        begun: called in the sending thread with the client and the store's id once the run exists.
        quiet: keep the reason of a failure instead of logging it.

    Raises:
        InputError: another process is working on this run, or no store is known.
    """

    def __init__(
        self,
        store: str,
        folder: Path,
        *,
        key: str = "",
        begun: Callable[[MlflowClient, str], None] | None = None,
        quiet: bool = False,
    ) -> None:
        self.folder = folder
        self.key = key or uuid.uuid4().hex
        self.journal = Journal(folder / UNSENT / self.key)
        self.store = store or self._store_of_old()
        self.delivery = Delivery(self.store, self.key, self.journal, begun=self._begun, quiet=quiet)
        self.begun = begun
        self.heart: Heart | None = None
        self._new_file = self._ended = False

    @property
    def run_id(self) -> str:
        """The store's id of the run, empty until it is known."""
        return self.delivery.run_id

    def begin(
        self,
        experiment: str,
        name: str,
        *,
        tags: Mapping[str, str],
        environment: Mapping[str, str],
        parent: str = "",
        resumed: bool = False,
        what: str = "training",
        option: str = "`tracking_uri`",
        describe: Callable[[], None] | None = None,
    ) -> None:
        """Write down that the run begins, or is taken up again; no store hears of it before `send`.

        Args:
            experiment: made if it does not exist.
            name: of a new run.
            tags: of it; those of its first heartbeat are added.
            environment: tags that are compared when it is taken up again.
            parent: id or key of the run that this one is shown under.
            resumed: the run must be there already.
            what: the run is, for a reader.
            option: that says where the store is, for a reader.
            describe: says what there is to know of the run. What it raises, Ctrl-C too, leaves no trace of the run;
                one that the store knows has its description at least on disk.
        """
        unheard_of = self.journal.last(BEGIN) is not None and not self.run_id
        payload: dict[str, Any] = {
            "experiment": experiment,
            "name": name,
            "tags": {**tags, **first_beat()},
            "environment": dict(environment),
        }
        payload |= {"parent": parent, "resumed": resumed and not unheard_of, "what": what, "option": option}
        payload |= {"id": uuid.uuid4().hex, "at": now_ms()}
        payload |= {"store": self.store if shown(self.store) == self.store else ""}  # no password on the disk
        self._new_file = not resumed and _is_to_be_made(self.store, self.folder)
        self.put(BEGIN, payload)
        try:
            if describe:
                describe()
        except BaseException:
            self._withdraw()
            raise

    def send(self) -> None:
        """Begin to send, and wait a moment for the store; for one that has yet to be made, not.

        Raises:
            InputError: there is no such store, it has no such run, or somebody else is working on it; then nothing
                of what has been said since `begin` is kept.
        """
        if self._new_file:  # MLflow is busy for seconds; the folder can be written to, for the journal is in it
            self.delivery.start()
        else:
            self.delivery.start_and_wait(START_SECONDS)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.put("tags", dict(values))

    def params(self, values: Mapping[str, Any]) -> None:
        """Set parameters; those that the run has keep their value."""
        self.put("params", dict(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point of each metric; a point of a step that the run has already is not written again."""
        self.put("metrics", {"values": dict(values), "step": step, "at": now_ms()})

    def file(self, path: Path, artifact_path: str = "") -> None:
        """Keep a file as it is now, in this folder of the run's."""
        self._put_file(posixpath.join(artifact_path, path.name), lambda target: keep_file(path, target))

    def json(self, content: Any, artifact: str) -> None:
        """Keep plain values as a JSON file of this name."""
        self._put_file(artifact, lambda target: target.write_text(as_json(content)))

    def text(self, content: str, artifact: str) -> None:
        """Keep a text as a file of this name."""
        self._put_file(artifact, lambda target: target.write_text(content))

    def picture(self, pixels: np.ndarray, artifact: str) -> None:
        """Keep (H, W) or (H, W, 3) uint8 as a PNG of this name."""
        self.put("picture", {ARTIFACT: artifact}, lambda folder: np.save(folder / PIXELS, pixels))

    def put(self, kind: str, payload: dict[str, Any], files: Path | Callable[[Path], Any] | None = None) -> None:
        """Say something of a kind that `SENDERS` knows.

        Args:
            kind: its name.
            payload: plain values.
            files: a folder whose files belong to it, copied at once; or what puts them into one.
        """
        try:
            entry = self.journal.append(kind, payload, _copied(files) if isinstance(files, Path) else files)
        except OSError as error:  # say a full disk: no training ends for want of a picture
            logger.warning("MLflow run: a %s could not be kept: %s", kind, reason(error))
            return
        self.delivery.add(entry)

    def end(self, status: str, failure: str = "") -> None:
        """Say how the run ended: FINISHED, FAILED or KILLED, and why."""
        self._ended = True
        if self.heart is not None:
            self.heart.stop()
        self.put(END, {"status": status, "failure": failure, "at": now_ms()})

    def close(self, seconds: float | None = None) -> int:
        """Wait until everything is sent; what is not stays in the journal.

        Args:
            seconds: without anything getting through, after which it is left; None: `END_SECONDS`, and the time
                that a store may take to be made.

        Returns:
            How many entries that is.
        """
        making = START_SECONDS if self._new_file and not self.run_id else 0.0
        return self.delivery.close(END_SECONDS + making if seconds is None else seconds)

    def _begun(self, client: MlflowClient, run_id: str) -> None:
        """The store has the run, which lives in this process: in the sending thread."""
        logger.info("MLflow run %s in %s", run_id, shown(self.store))
        if not self.delivery.quiet and not self._ended:
            self.heart = Heart(client, run_id, failed=self.delivery.trouble)
            self.heart.start()
            reconcile(client)
        if self.begun:
            self.begun(client, run_id)

    def _withdraw(self) -> None:
        begun = self.journal.last(BEGIN)
        if begun is not None:
            self.journal.withdraw(begun)
        self.journal.close()

    def _put_file(self, artifact: str, keep: Callable[[Path], Any]) -> None:
        self.put("file", {ARTIFACT: artifact}, lambda folder: keep(folder / posixpath.basename(artifact)))

    def _store_of_old(self) -> str:
        begun = self.journal.last(BEGIN)
        if begun is None or not begun.payload["store"]:
            self.journal.close()
            raise InputError(f"{self.journal.folder}: does not say where to send it; give --tracking-uri")
        return str(begun.payload["store"])


def _is_to_be_made(store: str, folder: Path) -> bool:
    """Whether the store is the results' own file and not there yet."""
    return store == sqlite_store(folder) and not Path(store.removeprefix(SQLITE)).exists()


def _copied(source: Path) -> Callable[[Path], Any]:
    return lambda folder: shutil.copytree(source, folder, copy_function=keep_file, dirs_exist_ok=True)
