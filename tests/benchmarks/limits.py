"""What the machine itself allows: floating-point operations and bytes per second, and how much memory a command takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

LAYERS, LEAST_SECONDS = 4, 1.0
"""Convolutions in the stack that is timed, and how long it is repeated; the best repetition counts."""

SIDES = {"cpu": {1: 2**16, 2: 256, 3: 40}, "cuda": {1: 2**20, 2: 1024, 3: 128}}
"""Pixels along a side of what is convolved, by device and dimensions: large enough to keep every core busy."""

COPIED = {"cpu": 2**28, "cuda": 2**31}
"""Bytes that are copied: far more than any cache holds."""

SAMPLED_SECONDS = 0.01
"""How often the memory of a command is looked at."""


def convolution_rate(device: Any, dims: int, channels: int, dtype: Any) -> float:
    """Floating-point operations per second of a plain stack of 3^dims convolutions, in the faster memory layout.

    Args:
        device: a torch device or its name.
        dims: 1, 2 or 3.
        channels: of input and output alike.
        dtype: of image and weights, such as `torch.bfloat16`.
    """
    import torch
    from torch import nn

    device = torch.device(device)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    side = SIDES[device.type][dims]
    stack = nn.Sequential(*(kind(channels, channels, 3, padding=1, bias=False) for _ in range(LAYERS)))
    stack, image = stack.to(device, dtype), torch.rand(1, channels, *[side] * dims).to(device, dtype)
    formats = [torch.contiguous_format, *{2: [torch.channels_last], 3: [torch.channels_last_3d]}.get(dims, [])]
    fastest = []
    with torch.inference_mode():
        for layout in formats:
            laid, stack = image.to(memory_format=layout), stack.to(memory_format=layout)
            fastest.append(_best(lambda laid=laid, stack=stack: stack(laid), device))
    return LAYERS * 2 * channels**2 * 3**dims * side**dims / min(fastest)


def bandwidth(device: Any) -> float:
    """Bytes per second, read and written, of a large copy in the memory of the device."""
    import torch

    device = torch.device(device)
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(call: Callable[[], object], device: Any) -> float:
    """Seconds of the fastest repetition."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken, deadline = [], time.perf_counter() + LEAST_SECONDS
    while len(taken) < 3 or time.perf_counter() < deadline:
        wait()
        start = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - start)
    return min(taken)


def peak_memory(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Most bytes of anonymous memory that a command and its children hold at one time, sampled every 10 ms.

    Pages of a mapped file are not counted: the kernel drops them when it wants to.

    Raises:
        RuntimeError: the command failed; the end of what it said is repeated.
    """
    peak = 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(SAMPLED_SECONDS)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed ({process.returncode}): {said.read()[-2000:]}")
    return peak


def _anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and those it started."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (found := psutil.Process(pid), *found.children(recursive=True)):
            with suppress(OSError, psutil.NoSuchProcess):
                total += _status_bytes(Path(f"/proc/{process.pid}/status").read_text(), "RssAnon")
    return total


def _status_bytes(status: str, name: str) -> int:
    """One figure of /proc/PID/status; 0 where a process is ending and has none."""
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] == f"{name}:")


def peer_python() -> str:
    """The Python that has the peers, for what must run in a process of its own: the one that runs this."""
    return sys.executable
