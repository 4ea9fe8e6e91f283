"""What tracking costs a training: seconds inside its handler, processor time of its threads.

Ten phantom patients, through the bundle's own configuration. One profiled
training tells where the seconds go; it also makes its store, which a site does once. Then short ones take turns, with
tracking, and without it and what it measures. Last, a server that stops answering (SIGSTOP) after the first epoch: the
other epochs must not wait for it.
"""

import cProfile
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from socket import socket
from unittest import mock

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
from pipeline import bundle, manifest
from pipeline.delivery import Delivery
from pipeline.epoch_clock import EpochClock
from pipeline.heartbeat import Heart
from pipeline.index import index
from pipeline.losses import LossParts
from pipeline.optimisation import ClipGradients
from pipeline.phantom import write_em_patients
from pipeline.recipe import recipe
from pipeline.split import split_by_patient
from pipeline.store import sqlite_store
from pipeline.system_metrics import SystemMetrics
from pipeline.tracking import TrackingHandler
from tests.benchmarks.harness import Row, Scale

PATIENTS, SECTIONS, SIZE = 10, 4, 192
SIZES = {Scale.FULL: (16, 2, 3), Scale.QUICK: (2, 1, 1)}
"""Epochs of the profiled training and of those that take turns, and how many turns."""

MOST = 3.0
"""Per cent of a training's time inside the handler that are too much."""

SETTINGS = {"patch": 128, "patches_per_case": 4, "learning_rate": 0.003}
SMALL = {"patches_per_case": 1}
"""The profiled training is that of `make demo`, with more epochs; those that take turns see fewer patches."""

THREADS = {Delivery: "_work", Heart: "_beat", SystemMetrics: "monitor"}
MEASURES = (TrackingHandler, EpochClock, LossParts, ClipGradients)
"""What a training without tracking does without; the clipping clips nothing here."""

EXPORT = "_put_model"
"""The handler's method that exports the network once a training has ended; how long does not depend on the training."""

LEAST_SECONDS = 0.01
"""Methods of the handler that took less are not told."""

SERVER_SECONDS = 120
"""A server answers after 5 to 15 s; on a busy machine, later."""


def make_data(folder: Path) -> Path:
    """Phantom patients and their manifest, split by patient."""
    write_em_patients(folder, patients=PATIENTS, sections=SECTIONS, size=SIZE, seed=1)
    names = {"image": "{patient}/image.tif", "label": "{patient}/label.tif"}
    classes = [("cell", 255), ("membrane", 0)]
    found = index(folder, recipe({"name": "phantom_em", "classes": classes} | names))
    path = folder / "manifest.json"
    manifests = split_by_patient(found, (0.6, 0.2, 0.2), seed=1)
    manifest.write(manifests, path)
    return path


class Training:
    """One training in this process: its wall time, and what its tracking spent."""

    def __init__(
        self, data: Path, folder: Path, epochs: int, *, tracked: bool = True, store: str = "", **changes: int
    ) -> None:
        self.handlers: list[TrackingHandler] = []
        self.profile = cProfile.Profile(time.perf_counter)
        self.threads: Counter[str] = Counter()
        self.handling = 0.0
        settings = SETTINGS | changes | {"manifest": str(data), "output_dir": str(folder), "epochs": epochs}
        settings |= {"tracking_uri": store} if store else {}
        with mock.patch.multiple(TrackingHandler, __init__=self._noted(), _timed=self._profiled()):
            for kind, method in THREADS.items():
                mock.patch.object(kind, method, self._clocked(kind, method)).start()
            for kind in () if tracked else MEASURES:
                mock.patch.object(kind, "attach", lambda *_: None).start()
            start, work = time.perf_counter(), time.process_time()
            try:
                bundle.run(bundle.find("neuron_em_segmentation"), "training", settings)
            finally:
                self.wall, self.work = time.perf_counter() - start, time.process_time() - work
                mock.patch.stopall()

    @property
    def inside(self) -> float:
        """Seconds inside the handler's methods."""
        return sum(handler.seconds for handler in self.handlers)

    def _noted(self):
        init = TrackingHandler.__init__

        def noted(handler, *arguments, **keywords):
            self.handlers.append(handler)
            init(handler, *arguments, **keywords)

        return noted

    def _profiled(self):
        timed = TrackingHandler._timed

        def profiled(handler, method):
            inner = timed(handler, method)

            def run(*arguments):
                with suppress(ValueError):  # a method that another one called: profiled already
                    self.profile.enable()
                start = time.thread_time()
                try:
                    inner(*arguments)
                finally:
                    self.handling += time.thread_time() - start
                    self.profile.disable()

            return run

        return profiled

    def _clocked(self, kind, method):
        work = getattr(kind, method)

        def clocked(*arguments):
            try:
                work(*arguments)
            finally:
                self.threads[kind.__name__] += time.thread_time()

        return clocked


def tell(text: str) -> None:
    """A line of the result."""
    sys.stdout.write(f"tracking: {text}\n")
    sys.stdout.flush()


def profiled(data: Path, folder: Path, epochs: int) -> Row:
    """The long training; the share of its wall time that is spent in the handler, but for the export at the end."""
    training = Training(data, folder, epochs)
    tell(f"{epochs} epochs in {training.wall:.1f} s, {training.inside:.2f} s in the handler")
    tell(f"  {training.handling:6.2f} s  of a processor, of {training.work:.1f} s of the whole process")
    found = pstats.Stats(training.profile).stats
    for (file, _, name), (_, _, _, seconds, _) in sorted(found.items(), key=lambda each: -each[1][3]):
        if file.endswith("pipeline/tracking.py") and name.startswith("_") and seconds >= LEAST_SECONDS:
            tell(f"  {seconds:6.2f} s  {name}")
    for name, seconds in training.threads.items():
        tell(f"  {seconds:6.2f} s  processor time of the thread of {name}, beside the training")
    export = sum(seconds for (_, _, name), (_, _, _, seconds, _) in found.items() if name == EXPORT)
    share = 100 * (training.inside - export) / training.wall
    note = (
        f"beside it {export:.1f} s once, at the end of a training of any length, for the model's export (`log_model`)"
    )
    work = f"tracking: share of {epochs} epochs inside its handler, without the model's export"
    return Row(work, "%", [share], aim={"absolute": MOST}, note=note)


def turns(data: Path, folder: Path, store: str, *, epochs: int, count: int) -> Row:
    """Short trainings with and without tracking, one after the other, in a store that is there already."""
    walls: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(count):
        for tracked, found in walls.items():
            one = Training(data, folder / f"{turn}{tracked}", epochs, tracked=tracked, store=store, **SMALL)
            found.append(one.wall)
    work = f"training with tracking, {epochs} epochs of few patches, start included"
    return Row(work, "s", walls[True], {"without tracking": walls[False]})


def stalled(data: Path, folder: Path, epochs: int) -> Row:
    """A server that is stopped after the first epoch, and what that costs the epochs after it."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    store = f"http://127.0.0.1:{port}"
    line = ["server", "--workers", "1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    line += ["--artifacts-destination", str(folder / "artifacts")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *line],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    completed = TrackingHandler._epoch_completed
    moments: list[float] = []

    def stop_server(handler, engine):
        completed(handler, engine)
        moments.append(handler.seconds)
        if len(moments) == 1:
            os.killpg(server.pid, signal.SIGSTOP)

    try:
        until_it_answers(store)
        with mock.patch.object(TrackingHandler, "_epoch_completed", stop_server):
            training = Training(data, folder / "run", epochs, store=store, **SMALL)
        unsent = len(list((folder / "run").rglob("journal.jsonl")))
        end = training.inside - moments[-1]
        note = f"{end:.1f} s at the end until it is given up; journals that wait to be sent: {unsent}"
        work = f"tracking: a server that stops after the first of {epochs} epochs, what the others wait"
        return Row(work, "s", [moments[-1] - moments[0]], note=note)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def until_it_answers(store: str) -> None:
    """Wait for a server's first answer."""
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{store}/health", timeout=5):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{store} does not answer within {SERVER_SECONDS} s")


def rows(scale: Scale) -> Iterator[Row]:
    """The share, the turns, the server that stops answering."""
    long, short, count = SIZES[scale]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_data(folder / "data")
        yield profiled(data, folder / "long", long)
        yield turns(data, folder / "turns", sqlite_store(folder / "long"), epochs=short, count=count)
        yield stalled(data, folder / "stalled", max(short, 2))
