"""Every benchmark in turn, each in a process of its own: a table, and a JSON file that grows row by row.

`python -m tests.benchmarks.harness [--only NAME ...] [--quick] [--out build/bench.json]`; `make bench` makes the
environment of the peers first. A benchmark is a module beside this one with `rows(scale)`. Exit code 1: something
failed, or an aim was missed; `--quick` misses every aim by nature and minds failures only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.atomic import atomic, make_folder
from tests.benchmarks.limits import bandwidth, convolution_rate, peak_memory, peer_python
from tests.benchmarks.machine import PEERS, machine, missing_peer
from tests.benchmarks.rows import Limit, Row, Scale, told
from tests.benchmarks.table import table

__all__ = [
    "Limit",
    "Row",
    "Scale",
    "bandwidth",
    "convolution_rate",
    "in_turns",
    "missing_peer",
    "peak_memory",
    "peer_python",
]

HERE = Path(__file__).resolve().parent
OUT = Path("build/bench.json")


def in_turns(calls: Mapping[str, Callable[[], object]], turns: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, turn by turn: A B A B, so that what else the machine does meets all of them.

    Args:
        calls: name -> what is timed.
        turns: how often each is timed.
        warmup: how often each is called before, untimed.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warmup, turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                taken[name].append(time.perf_counter() - start)
    return taken


def benchmarks() -> list[str]:
    """The modules beside this one that have rows."""
    return sorted(path.stem for path in HERE.glob("*.py") if "\ndef rows(scale: Scale)" in path.read_text("utf-8"))


def run(names: Sequence[str], scale: Scale, out: Path, say: Callable[[str], object]) -> dict[str, Any]:
    """Run benchmarks one after the other; whatever is told is in `out` at once."""
    result: dict[str, Any] = {"scale": str(scale), "machine": machine(), "rows": [], "failed": {}}
    make_folder(out.parent)
    for name in names:
        start = time.perf_counter()
        for found in _rows(name, scale):
            if isinstance(found, str):
                result["failed"][name] = found
                say(f"{name}: FAILED, {found}")
            else:
                result["rows"].append({"benchmark": name} | found)
                say(f"{name}: {time.perf_counter() - start:.0f} s: {found['work']}")
            _write(result, out)
    return result


def _write(result: Mapping[str, Any], out: Path) -> None:
    with atomic(out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _rows(name: str, scale: Scale) -> Iterator[dict[str, Any] | str]:
    """A benchmark's rows from a process of its own; a sentence where it failed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(name, scale, sender))
    process.start()
    sender.close()
    try:
        while True:
            found = receiver.recv()
            if found is None:
                break
            yield found
    except EOFError:
        process.join()
        yield f"its process ended without a word, exit code {process.exitcode}"
    finally:
        process.join()


def _send(name: str, scale: Scale, sender: Connection) -> None:
    """The other process: each row as soon as it is there, at the end None."""
    try:
        for row in importlib.import_module(f"tests.benchmarks.{name}").rows(scale):
            sender.send(told(row))
    except Exception as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}")
    sender.send(None)


def missed(result: Mapping[str, Any]) -> list[str]:
    """A sentence for every aim that was not reached: by how much."""
    return [
        f"{row['work']}: {aim['reached']:.3g} where {aim['asked']:.3g} is wanted ({aim['against']})"
        for row in result["rows"]
        for aim in row["aims"]
        if aim["met"] is False
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, print the table and every aim that was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=benchmarks(), default=benchmarks(), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for peer, module in PEERS.items():
        _say(f"{peer}: {missing_peer(module) or 'at hand'}")
    result = run(asked.only, Scale.QUICK if asked.quick else Scale.FULL, asked.out, _say)
    _say("\n" + table(result["rows"]) + "\n")
    sentences = [f"failed: {name}: {why}" for name, why in result["failed"].items()]
    sentences += [] if asked.quick else [f"missed: {sentence}" for sentence in missed(result)]
    for sentence in sentences:
        _say(sentence)
    return int(bool(sentences))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
