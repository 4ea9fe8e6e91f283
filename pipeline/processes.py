"""Several processes of one program, started by torchrun: which one this is, and what they tell each other.

Without torchrun, and until `join` was called, there is one, and nothing here costs anything or imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipeline.errors import STOPPED, DataError, InputError, user_error

Item = TypeVar("Item")

TIMEOUT = timedelta(minutes=30)
"""So long a process waits for the others in a training, then it ends: one of them hangs. (One that died is noticed at
once.) A validation of large volumes must fit into it."""

ARCHIVE_TIMEOUT = timedelta(days=7)
"""So long a process that has predicted its share waits for the others."""

NEWS_SECONDS = 5.0
"""So long after a broken connection another process's reason, or torchrun's signal, is waited for."""

STORE_SECONDS = 10
"""So long torchrun's store is looked for."""

REASON = "reason"
"""Key of torchrun's store: why the first process that failed did so."""

BROKEN = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting")
"""Words by which the error of a process is told that has lost another one."""

RELEVANT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
"""What torchrun sets in the environment of its processes."""

_state: dict[str, Any] = {"rank": 0, "count": 1, "objects": None, "store": None}
"""This process's number among the joined ones; the group in which they tell each other Python objects; the store."""


def launched() -> bool:
    """Whether torchrun has started this process."""
    return all(name in os.environ for name in RELEVANT)


def launcher() -> str:
    """The words before a module's name in the command line that starts such processes as this one."""
    return f"torchrun --nproc_per_node {os.environ['LOCAL_WORLD_SIZE']} -m" if launched() else "python -m"


def speaks() -> bool:
    """Whether this process tells its user what all do: the only one, or the first of torchrun's, joined or not."""
    return not launched() or os.environ["RANK"] == "0"


def rank() -> int:
    """The number of this process among those that have joined, 0 where there is one."""
    return int(_state["rank"])


def count() -> int:
    """How many have joined."""
    return int(_state["count"])


def is_first() -> bool:
    """Whether this process writes the files and speaks for all."""
    return rank() == 0


def join(device: str, distributed: bool = True, *, timeout: timedelta = TIMEOUT) -> None:
    """Join the other processes that torchrun has started; from here on `rank` and `count` tell them apart.

    Processes on the CPU talk by gloo. On GPUs each has one, that of its LOCAL_RANK, which is `cuda` from here on, and
    they talk by nccl. Those that are not the first log warnings alone.

    Args:
        device: `cpu` or `cuda`.
        distributed: False: there is to be one process, and nothing is done.
        timeout: so long a process waits for another one.

    Raises:
        InputError: torchrun has started several although there is to be one, or has not started this one although
            there are to be several; or there are more than GPUs.
    """
    if not distributed:
        if launched() and int(os.environ["WORLD_SIZE"]) > 1:
            raise InputError(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes, and each would do all of the work; add "
                "'configs/multi_gpu.yaml' to --config_file (overtile run: --overlay multi_gpu), or leave torchrun out"
            )
        return
    if not launched():
        raise InputError(
            "multi_gpu.yaml is for several processes; start them with torchrun --standalone --nproc_per_node 2 -m "
            "pipeline run NAME training --overlay multi_gpu, or leave it out"
        )
    import torch
    from torch import distributed as dist

    on_gpu = str(device).startswith("cuda")
    if on_gpu:
        _refuse_too_many(torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = _store()
    store.set_timeout(timeout)  # of two processes one may be much longer about its imports
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, timeout=timeout,
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
    )  # fmt: skip
    objects = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else dist.group.WORLD
    _state.update(rank=dist.get_rank(), count=dist.get_world_size(), objects=objects)
    if not is_first():
        logging.disable(logging.INFO)


def leave() -> None:
    """Part from the others after all work is done."""
    if count() > 1:
        from torch import distributed as dist

        dist.destroy_process_group()
        _state.update(rank=0, count=1, objects=None)


def gathered(value: Item) -> list[Item]:
    """The values of all processes, in their order; every process gets them."""
    if count() == 1:
        return [value]
    from torch import distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_state["objects"])
    return values


def from_first(value: Item) -> Item:
    """The first process's value, in every process."""
    if count() == 1:
        return value
    from torch import distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, group=_state["objects"])
    return values[0]


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a sequence: consecutive, so that the parts in the order of processes are the whole.

    The first processes have one more where it does not come out even; the last ones may have none.
    """
    size, more = divmod(len(items), count())
    start = rank() * size + min(rank(), more)
    return items[start : start + size + (rank() < more)]


def share_or_all(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share; where there are fewer than processes, all of them: then every process does the same."""
    return share(items) if len(items) >= count() else items


def dealt(items: Sequence[Item]) -> Iterator[tuple[int, Item]]:
    """The items one by one with their numbers, each to the process that is the first to ask for it."""
    if count() == 1:
        yield from enumerate(items)
        return
    while (number := _store().add("dealt", 1) - 1) < len(items):
        yield number, items[number]


def own_device(device: str | None) -> str | None:
    """The device of this process of torchrun: where there are GPUs, the one of its LOCAL_RANK.

    Args:
        device: that was asked for; None: the best there is.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if not launched() or device not in (None, "cuda"):
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    _refuse_too_many(torch.cuda.device_count())
    return f"cuda:{os.environ['LOCAL_RANK']}"


def restarted(output_dir: str) -> bool:
    """Whether torchrun has started these processes anew and they have left a checkpoint: the value of `resume`.

    A checkpoint that is older than torchrun itself is that of an earlier training.

    Args:
        output_dir: of the training, with `last.pt`.
    """
    last = Path(output_dir) / "last.pt"
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0 or not last.is_file():
        return False
    return last.stat().st_mtime > psutil.Process(os.getppid()).create_time()


def may_say(sentence: str) -> bool:
    """Whether this process is the first one with a sentence to its user; the others need not repeat it."""
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return True
    try:
        return bool(_store().add("said " + _digest(sentence), 1) == 1)
    except (RuntimeError, OSError):  # no store any more: torchrun is gone
        return os.environ["RANK"] == "0"


def told(error: BaseException) -> BaseException:
    """Tell the others why this process ends, or learn from another one why this process must end: see `explained`."""
    reason = explained(error)
    if reason is error and count() > 1:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        why = str(user_error(error) or f"{type(error).__name__} in process {rank()}: {error}")
        tell_reason(STOPPED if stopped else why)
    return reason


def tell_reason(sentence: str) -> None:
    """Tell the others why this process ends, unless another one has failed before."""
    try:
        _store().compare_set(REASON, "", sentence)
    except (RuntimeError, OSError):
        return


def explained(error: BaseException) -> BaseException:
    """What is behind a connection that broke: another process's reason to end, if it has told one.

    Torchrun, or whoever pressed Ctrl-C, sends this process a signal then, whose KeyboardInterrupt is waited for too.

    Returns:
        The error itself where it is no broken connection, else a DataError with the reason.
    """
    if count() == 1 or user_error(error) is not None or not _is_broken_connection(error):
        return error
    try:
        reason = _reason()
    except KeyboardInterrupt as stop:
        return stop
    if reason == STOPPED:
        return KeyboardInterrupt(STOPPED)
    return DataError(
        reason or f"one of the {count()} processes was lost (killed, or out of memory), so the others ended too"
    )


def _reason() -> str:
    """What the process that failed has told; empty if nothing comes in time."""
    store, end = _store(), time.monotonic() + NEWS_SECONDS
    while time.monotonic() < end:
        if store.check([REASON]):
            return str(store.get(REASON).decode())
        time.sleep(0.05)
    return ""


def _is_broken_connection(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in BROKEN):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refuse_too_many(gpus: int) -> None:
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if here > gpus:
        raise InputError(f"{here} processes for {gpus} GPUs; say --nproc_per_node {gpus}, or --device cpu")


def _store() -> Any:
    """Torchrun's key-value store, of this start of the processes."""
    if _state["store"] is None:
        from torch import distributed as dist

        found, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=STORE_SECONDS)))
        _state["store"] = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
    return _state["store"]


def _digest(sentence: str) -> str:
    return hashlib.sha256(sentence.encode()).hexdigest()
