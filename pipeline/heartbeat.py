"""The heart of a run: a tag that a living training keeps fresh, and the truth about runs whose heart has stopped.

After SIGKILL or a power cut nobody is left to say that a run has ended; MLflow would call it RUNNING for ever.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from pipeline.verdicts import VERDICT

logger = logging.getLogger("pipeline.heartbeat")

HEARTBEAT = "heartbeat"
"""Tag with the time of the last beat, in seconds since 1970 (UTC)."""

PROCESS = "process"
"""Tag with the process that beats: host, process id and the time at which the process began."""

FAILURE = "failure"
"""Tag with the reason why a run ended before its time."""

KILLED_OUTRIGHT = "the process ended without a word (killed, or power lost)"
"""The failure of a run whose process can say nothing any more."""

BEAT_EVERY_SECONDS = 30.0
LAST_BEAT_SECONDS = 2.0
"""So long an end waits for a beat that is on its way."""

SILENCE_SECONDS = 300.0
"""After so long without a beat, and without its process, a run is dead: ten beats missed."""

ELSEWHERE_SECONDS = 90.0
"""A run on another host may be resumed after so long without a beat: three beats missed."""


class Heart:
    """Beats for one run in a thread of its own, until it is stopped.

    A run that was taken for dead while it was cut off (a suspended machine, a stalled server) is RUNNING again at
    its next beat.

    Args:
        client: MlflowClient of the run's store.
        run_id: of the run.
        failed: told of a beat that could not be written; None logs it.
    """

    def __init__(self, client: Any, run_id: str, failed: Callable[[Exception], None] | None = None) -> None:
        self.client = client
        self.run_id = run_id
        self.failed = failed or _log_failure
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Say which process it is, beat once, and go on beating."""
        try:
            for tag, value in first_beat().items():
                self.client.set_tag(self.run_id, tag, value)
        except Exception as error:  # the next beat may get through
            self.failed(error)
        self._thread.start()

    def stop(self) -> None:
        """Stop; returns when the last beat is through, or soon if its store does not answer."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=LAST_BEAT_SECONDS)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_EVERY_SECONDS):
            try:
                run = self.client.get_run(self.run_id)
                if run.data.tags.get(PROCESS) != this_process():
                    return  # somebody has resumed it: it is theirs
                self.client.set_tag(self.run_id, HEARTBEAT, f"{time.time():.0f}")
                if run.info.status != "RUNNING" and not self._stopped.is_set():
                    self.client.update_run(self.run_id, status="RUNNING")
                    self.client.delete_tag(self.run_id, FAILURE)
            except Exception as error:  # whatever a store can throw: a training does not end for want of a beat
                self.failed(error)


def _log_failure(error: Exception) -> None:
    logger.warning("no heartbeat could be written: %s", error)


def first_beat() -> dict[str, str]:
    """The tags of a run whose heart begins to beat in this process."""
    return {PROCESS: this_process(), HEARTBEAT: f"{time.time():.0f}"}


def this_process() -> str:
    """`host:process id:start time` of this process; the start time tells a process from a later one of its number."""
    return f"{platform.node()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_alive(tags: Mapping[str, str], silence: float = SILENCE_SECONDS) -> bool:
    """Whether a run that says RUNNING is being worked on: its process lives, or its heart was heard lately.

    Args:
        tags: of the run.
        silence: seconds without a beat that are let pass.
    """
    return _process(tags) == "lives" or time.time() - float(tags.get(HEARTBEAT, 0)) < silence


def may_be_resumed(tags: Mapping[str, str]) -> bool:
    """Whether nobody is training a run any more, so that another process may go on with it.

    A process of this host can be looked for. Of one elsewhere (another machine, or a container that is gone) only
    the heart can be heard.
    """
    return _process(tags) == "gone" or not is_alive(tags, silence=ELSEWHERE_SECONDS)


def reconcile(client: Any, *, alone: bool = False) -> list[str]:
    """Mark every dead run of a store KILLED, with a tag that says so.

    Only runs with a heartbeat are judged: others were written by somebody else.

    Args:
        client: MlflowClient of the store.
        alone: a lock says that nobody else works in this store, so no run has to be silent first. Of a container that
            is gone nothing else could be known for minutes.

    Returns:
        The ids of the runs that were found dead.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "attributes.status = 'RUNNING'") if experiments else []
    dead = [run for run in found if HEARTBEAT in run.data.tags and (alone or not is_alive(run.data.tags))]
    for run in dead:
        last = int(float(run.data.tags[HEARTBEAT]))
        client.set_tag(run.info.run_id, FAILURE, KILLED_OUTRIGHT)
        client.set_tag(run.info.run_id, VERDICT, f"stopped: {KILLED_OUTRIGHT}")
        client.set_terminated(run.info.run_id, "KILLED", end_time=1000 * last)
        logger.info("MLflow run %s is KILLED: its process is gone", run.info.run_id)
    return [run.info.run_id for run in dead]


def _process(tags: Mapping[str, str]) -> str:
    """`lives` or `gone` for a process of this host, `elsewhere` for one that cannot be seen from here."""
    host, pid, began = tags.get(PROCESS, "::").rsplit(":", 2)
    if host != platform.node():
        return "elsewhere"
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(began)) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return "gone"
    return "lives" if same else "gone"
