"""A program in a process of its own, that never outlives the one that waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ENDS_WITH_PARENT = """
import ctypes, os, signal, sys
parent, *line = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: the kernel sends it when the parent is gone
if os.getppid() == int(parent):
    os.execv(line[0], line)
"""
"""A few lines of Python that become another program, which a kill -9 of its parent stops like a SIGTERM of its own."""


def start_child(words: Sequence[str]) -> int:
    """Run `overtile WORDS` and wait for its end, which a stop of this process brings about first.

    Args:
        words: of the command.

    Returns:
        Its exit code; that of a process which was killed by a signal is negative.

    Raises:
        KeyboardInterrupt: this process was stopped; the child has ended.
    """
    return wait_for(start([sys.executable, "-m", "pipeline", *words]))


def start(line: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program, which writes where this process writes unless `options` of `Popen` say otherwise.

    It has a process group of its own, so that Ctrl-C on a terminal reaches it once, from here, and not twice. On Linux
    it is also stopped when this process is killed outright.
    """
    return subprocess.Popen(_line(line), process_group=0, **options)


def wait_for(process: subprocess.Popen[Any]) -> int:
    """Wait for a program's end and give its exit code; Ctrl-C and SIGTERM stop it first, a second one at once.

    Raises:
        KeyboardInterrupt: this process was stopped; the program has ended.
    """
    try:
        return process.wait()
    except KeyboardInterrupt:
        stop(process)
        raise


def stop(process: subprocess.Popen[Any]) -> None:
    """End a program: it is asked to, and waited for; whatever interrupts the wait kills it."""
    process.terminate()
    try:
        process.wait()
    finally:
        process.kill()
        process.wait()


def _line(line: list[str]) -> list[str]:
    if sys.platform != "linux":
        return line
    return [sys.executable, "-c", ENDS_WITH_PARENT, str(os.getpid()), *line]
