"""A child process whose last words are kept: why it ended is told in one sentence, and no traceback is shown."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.child_process import start, wait_for
from pipeline.errors import INTERRUPTED, DataError, InputError

TRACEBACK = "Traceback (most recent call last)"
ERROR = "error: "
"""How the line begins that a command ends with when its user can mend something."""

LAST_LINES = 200
"""Of what a child wrote to its error stream, that are kept."""

DRAIN_SECONDS = 10.0
"""So long a loader's workers may hold the stream open after the child is gone."""

FIRST_TO_GO = 500
"""Added to a child's share of the memory, in thousandths, when the kernel looks for one to end: the parent holds
a few hundred megabytes too, and if it were ended nobody would say why. What a child did is not lost."""

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of what the kernel ended for want of memory, or a container's engine."""

NO_MEMORY = re.compile(
    r"can't allocate memory|MemoryError|bad_alloc|Unable to allocate|out of memory|OutOfMemory"
    r"|DataLoader worker .*(killed by signal|exited unexpectedly)",
    re.IGNORECASE,
)
NO_SHARED_MEMORY = re.compile(r"shared memory|\bshm\b|Bus error", re.IGNORECASE)

MORE_MEMORY = "give it more, or less to do at once: --batch_size, --patch, --tile, --memory_gb or --workers 0"
MORE_SHARED_MEMORY = "give the container more shared memory (shm_size), or --workers 0"


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, and the last lines of its error stream."""

    code: int
    lines: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The sentence for the user; empty where there is none."""
        return next((line.removeprefix(ERROR) for line in reversed(self.lines) if line.startswith(ERROR)), "")


Run = Callable[[Sequence[str]], Ended]
"""Words after `overtile` -> how it ended."""


def run_told(words: Sequence[str], keep: Sequence[int] = ()) -> Ended:
    """Run `overtile WORDS` and wait for its end; its error stream is passed on, but for a traceback.

    Args:
        words: of the command.
        keep: file descriptors that the child inherits, say of a lock.

    Raises:
        KeyboardInterrupt: this process was stopped; the child has ended.
    """
    process = start(
        [sys.executable, "-m", "pipeline", *words],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=tuple(keep),
    )
    _first_to_go(process.pid)
    lines: list[str] = []
    listener = threading.Thread(target=_listen, args=(process.stderr, lines), daemon=True)
    listener.start()
    try:
        code = wait_for(process)
    finally:
        listener.join(DRAIN_SECONDS)
    return Ended(code, tuple(lines[-LAST_LINES:]))


def _first_to_go(pid: int) -> None:
    """Have the kernel, where memory runs out, end this process and its children before the one that can say so."""
    with suppress(OSError):  # elsewhere than on Linux
        Path(f"/proc/{pid}/oom_score_adj").write_text(f"{FIRST_TO_GO}\n")


def refuse(ended: Ended, what: str) -> None:
    """Raise what a child's end means; nothing if it ended well.

    Args:
        ended: how it ended.
        what: the child did, say `the fine-tuning`.

    Raises:
        KeyboardInterrupt: it was stopped.
        InputError, DataError: says why it ended and what to do.
    """
    if ended.code == 0:
        return
    if ended.code == INTERRUPTED:
        raise KeyboardInterrupt(f"{what} was stopped")
    if ended.code in KILLED:
        raise DataError(f"{what} was killed, most likely for want of memory: {MORE_MEMORY}. The same command goes on")
    if ended.said:
        kind = InputError if ended.code == InputError.exit_code else DataError
        raise kind(ended.said)
    text = "\n".join(ended.lines)
    if NO_SHARED_MEMORY.search(text):
        raise DataError(f"{what} ran out of shared memory: {MORE_SHARED_MEMORY}. The same command goes on")
    if NO_MEMORY.search(text):
        raise DataError(f"{what} ran out of memory: {MORE_MEMORY}. The same command goes on")
    how = f"was ended by signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"
    last = next((line.strip() for line in reversed(ended.lines) if line.strip()), "")
    raise DataError(f"{what} {how}" + (f" ({last})" if last else "") + "; the same command tries it again")


def _listen(stream: IO[str], lines: list[str]) -> None:
    """Keep what comes and pass it on, until a traceback begins; the error's sentence is for the parent to tell."""
    shown = True
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))
            shown = shown and not line.startswith((TRACEBACK, ERROR))
            if shown:
                sys.stderr.write(line)
