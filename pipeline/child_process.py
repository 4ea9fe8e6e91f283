"""A command of ours in a process of its own, that never outlives the one that waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

ENDS_WITH_PARENT = """
import ctypes, os, signal, sys
parent, *line = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: the kernel sends it when the parent is gone
if os.getppid() == int(parent):
    os.execv(line[0], line)
"""
"""A few lines of Python that become another program, which a kill -9 of its parent stops like a SIGTERM of its own."""


def start_child(words: Sequence[str]) -> int:
    """Run `overtile WORDS` and wait for its end; Ctrl-C and SIGTERM stop it first, a second one at once.

    It writes where this process writes. It has a process group of its own, so that Ctrl-C on a terminal reaches it
    once, from here, and not twice. On Linux it is also stopped when this process is killed outright.

    Args:
        words: of the command.

    Returns:
        Its exit code; that of a process which was killed by a signal is negative.

    Raises:
        KeyboardInterrupt: this process was stopped; the child has ended.
    """
    process = subprocess.Popen(_line([sys.executable, "-m", "pipeline", *words]), process_group=0)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait()
        finally:
            process.kill()
            process.wait()
        raise


def _line(line: list[str]) -> list[str]:
    if sys.platform != "linux":
        return line
    return [sys.executable, "-c", ENDS_WITH_PARENT, str(os.getpid()), *line]
