"""Training: images per second end to end, what of an epoch is not the network's, one step beside the device's limit.

Ours is the bundle's own training with all that belongs to it. Each contender is a process of its own that waits for
its turn before every epoch, so that what else the machine does meets all of them. Data is synthetic, of the sizes that
the bundles are for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.benchmarks.harness import Limit, Row, Scale, convolution_rate, missing_peer
from tests.benchmarks.machine import PEERS
from tests.benchmarks.training_task import DEVICE, Task

ZOO, NNUNET, LOOP, OURS, ALONE = "model zoo (MONAI)", "nnU-Net", "plain PyTorch loop", "ours", "network alone"

AIMS = {"cpu": {ZOO: 2.0, NNUNET: 3.0}, "cuda": {ZOO: 1.5, NNUNET: 1.5}}
"""How many times as many images per second are wanted, by device."""

OUTSIDE = 0.05
"""Largest share of an epoch that may be spent outside the network."""

OF_THE_LIMIT = {"cpu": 0.5, "cuda": 0.4}
"""Share of the measured convolution rate that a training step is to reach."""

TURNS = {2: 3, 3: 4}
"""Epochs that are measured after the first one, in 2D and in 3D."""

STEPS, TOLERANCE = 4, 1e-9
"""Steps whose loss must be the same, in float64."""

READY = "ready"
"""What a contender says when it waits for its first turn."""


def rows(scale: Scale) -> Iterator[Row]:
    """2D, then 3D: images per second, the share outside the network, one step."""
    quick = scale == Scale.QUICK
    small: dict[str, Any] = {"width": 4, "depth": 3} if quick else {}
    flat = small | {"patch": 64} if quick else {"width": 32}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        images = Task("neuron_em_segmentation", home / "2d", 8, 1 if quick else 4, flat)
        volumes = Task("hippocampus_mri_segmentation", home / "3d", 8 if quick else 16, 1 if quick else 2, small)
        for task, size in ((images, 96 if quick else 320), (volumes, 0)):
            task.write(size)
            yield from _rows(task, 1 if quick else TURNS[task.dims])


def _rows(task: Task, turns: int) -> Iterator[Row]:
    curves, step = _apart("same_and_step", task, STEPS, 2 * turns + 1)
    same = _same(curves)
    absent = missing_peer(PEERS[NNUNET])
    taken = _epochs(task, [OURS, ALONE, ZOO, LOOP, *([] if absent else [NNUNET])], turns)
    if absent:
        taken[NNUNET] = absent
    rates = {
        name: found if isinstance(found, str) else [task.images_per_epoch / one for one in found]
        for name, found in taken.items()
        if name != ALONE
    }
    yield Row(
        f"training, {task.name}, end to end with validation",
        "images/s",
        rates.pop(OURS),
        rates,
        more_is_better=True,
        aim=AIMS[DEVICE],
        same=same,
        note=f"{DEVICE}; an epoch of {task.images_per_epoch} patches from memory and {len(task.files('validation'))} "
        "whole images of validation; nnU-Net's loss, optimizer and augmentation are its own, without deep supervision",
    )
    yield Row(
        f"training, {task.name}: share of an epoch not spent in the network",
        "share",
        [1 - alone / whole for alone, whole in zip(taken[ALONE], taken[OURS], strict=True)],
        aim={"absolute": OUTSIDE},
        note="beside as many steps on one batch that is there, and the validation's forward passes on images that are",
    )
    yield _step(task, step)


def _step(task: Task, reached: Mapping[str, Any]) -> Row:
    """Floating-point operations per second of one training step, as the bundle computes it on this device."""
    dtype = torch.bfloat16 if reached["bfloat16"] else torch.float32
    limit = convolution_rate(DEVICE, task.dims, 64 if task.dims == 2 else 32, dtype) / 1e9
    name = str(dtype).removeprefix("torch.")
    return Row(
        f"one training step, {task.name}, {name}",
        "GFLOP/s",
        reached["rates"],
        more_is_better=True,
        aim={"limit": OF_THE_LIMIT[DEVICE]},
        limit=Limit(limit, "GFLOP/s", f"a plain stack of 3^{task.dims} convolutions forward, {name}"),
        note=f"{reached['operations'] / 1e9:.0f} GFLOP by PyTorch's counter; forward, loss, backward and optimizer",
    )


def _same(curves: Mapping[str, Sequence[float]]) -> str:
    """A sentence on the loss curves.

    Raises:
        RuntimeError: they are not the same.
    """
    ours = curves["ours"]
    apart = {
        name: [abs(a - b) for a, b in zip(ours, one, strict=True)] for name, one in curves.items() if name != "ours"
    }
    largest = max(max(one) for one in apart.values())
    said = f"loss of {STEPS} steps on equal batches from equal weights, float64: ours = {' = '.join(apart)} to {largest:.1e}"
    if not largest <= TOLERANCE:
        raise RuntimeError(f"{said}: more than {TOLERANCE}")
    return f"{said} (tolerance {TOLERANCE})"


def _epochs(task: Task, names: Sequence[str], turns: int) -> dict[str, list[float] | str]:
    """Seconds of each contender's epochs, turn by turn; a sentence where one failed. The first epoch is not counted."""
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Any, Connection]] = {}
    for name in names:
        here, there = context.Pipe()
        process = context.Process(target=_contend, args=(name, task, turns + 1, there))
        process.start()
        there.close()
        running[name] = process, here
    started = {name: _heard(connection) for name, (_, connection) in running.items()}
    taken: dict[str, Any] = {name: [] if started[name] == READY else f"failed: {started[name]}" for name in names}
    with _standing_still([process.pid for process, _ in running.values()]):
        for turn in range(turns + 1):
            for name, (process, connection) in running.items():
                if isinstance(taken[name], str):
                    continue
                found = _turn(process.pid, connection)
                if isinstance(found, str):
                    taken[name] = f"failed: {found}"
                elif turn:
                    taken[name].append(found)
    for process, connection in running.values():
        connection.close()
        process.join()
    for name in (OURS, ALONE):
        if isinstance(taken[name], str):
            raise RuntimeError(f"{name}: {taken[name]}")
    return taken


@contextlib.contextmanager
def _standing_still(contenders: Sequence[int]) -> Iterator[None]:
    """Stop all contenders and their loaders, which would fill their queues in the turns of others."""
    for pid in contenders:
        _tell(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in contenders:
            _tell(pid, signal.SIGCONT)


def _turn(pid: int, connection: Connection) -> Any:
    """Let one contender run for an epoch: its seconds, or a sentence on why it failed."""
    _tell(pid, signal.SIGCONT)
    with contextlib.suppress(OSError):
        connection.send("go")
    found = _heard(connection)
    _tell(pid, signal.SIGSTOP)
    return found


def _tell(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(pid)
        for process in [whole, *whole.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _heard(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return "its process ended without a word"


def _contend(name: str, task: Task, epochs: int, connection: Connection) -> None:
    """The other process: a training whose epochs wait for their turn."""
    from tests.benchmarks import training_contenders as contenders
    from tests.benchmarks.training_nnunet import nnunet

    _fork()
    trainings: dict[str, Callable[..., None]] = {
        OURS: contenders.ours,
        ALONE: contenders.network_alone,
        ZOO: contenders.zoo,
        LOOP: contenders.plain_loop,
        NNUNET: nnunet,
    }
    first = [True]

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        if first.pop() if first else False:
            connection.send(READY)
        connection.recv()
        start = time.perf_counter()
        yield
        connection.send(time.perf_counter() - start)

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            trainings[name](task, Path(folder), epochs, turn)
        except EOFError:
            return  # nobody listens any more
        except Exception as error:
            with contextlib.suppress(OSError):
                connection.send(f"{type(error).__name__}: {error}")
    for worker in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()  # loaders whose processes persist
    os._exit(0)  # some of those make an interpreter wait for them at its end


def _apart(work: str, task: Task, *numbers: int) -> Any:
    """What a function of the contenders says, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_called, (work, task, *numbers))


def _called(work: str, task: Task, *numbers: int) -> Any:
    from tests.benchmarks import training_contenders as contenders

    _fork()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        return getattr(contenders, work)(task, Path(folder), *numbers)


def _fork() -> None:
    """Let loaders start their processes as Linux does: a spawned process would spawn its own, which takes seconds."""
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What peers print goes nowhere."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
