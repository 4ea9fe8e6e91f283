"""Two processes of torchrun against one: a training's images per second, and an archive's cases per second.

Each turn is a command of its own, as a user types it; what it takes to start is left out. A process has one thread.
Training augments in the process itself, so that two processes are two threads in all.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline import bundle
from pipeline import manifest as manifests
from pipeline.index import index
from pipeline.phantom import write_em_patients
from pipeline.recipe import recipe
from pipeline.split import split_by_patient
from tests.benchmarks.harness import Row, Scale

BUNDLE = "neuron_em_segmentation"
NEAR_LINEAR = 1.8
"""Times as fast as one process with one thread: what is wanted of two."""

LOSS_TOLERANCE = 1e-3
"""Between the losses of an epoch: sums in another order. The steps are plain gradient descent's: AdamW's do not shrink
with a gradient that is rounding alone, so its trainings are soon further apart, whoever computes them. In small steps
the losses of two processes differ as those of one thread and two do (tests/test_torchrun.py); these steps are large."""

ONE, TWO, THREADS = "1 process, 1 thread", "2 processes, 1 thread each", "1 process, 2 threads"
PROCESSES = {ONE: (1, 1), TWO: (2, 1), THREADS: (1, 2)}
"""How many processes, and threads of each."""


def rows(scale: Scale) -> Iterator[Row]:
    """Images per second of a training, cases per second of an archive."""
    with tempfile.TemporaryDirectory(prefix="overtile-scale-") as folder:
        yield training(Path(folder), scale)
        yield archive(Path(folder), scale)


def training(folder: Path, scale: Scale) -> Row:
    """A training of two epochs; the second one counts."""
    full = scale == Scale.FULL
    patch, width, turns = (128, 32, 3) if full else (64, 8, 1)
    manifest = _patients(folder / "patients", 2 * patch)
    settings = {"manifest": manifest, "patch": patch, "width": width, "patches_per_case": 2, "epochs": 2, "workers": 0}
    settings |= {"batch_size": 4, "log_model": False, "device": "cpu"}
    settings |= {"optimizer#_target_": "torch.optim.SGD", "learning_rate": 0.03}
    rates: dict[str, list[float]] = {how: [] for how in PROCESSES}
    apart = 0.0
    for turn in range(turns):
        losses = {}
        for how in PROCESSES:
            losses[how], speeds = _trained(folder / f"{how} {turn}", settings, how)
            rates[how].append(speeds[-1])
        apart = max(apart, *(float(np.abs(losses[how] - losses[ONE]).max()) for how in PROCESSES))
    if apart > LOSS_TOLERANCE:
        raise AssertionError(f"the losses of an epoch are {apart:.2g} apart")
    return Row(
        f"training in 2 processes of one thread, U-Net width {width}, batches of 4 of {patch} x {patch}",
        "images/s", rates.pop(TWO), rates, more_is_better=True, aim={ONE: NEAR_LINEAR},
        same=f"the losses of both epochs are at most {apart:.1g} apart, {LOSS_TOLERANCE:g} is allowed",
        note="augmenting in the process itself; validation, tracking and start left out",
    )  # fmt: skip


def archive(folder: Path, scale: Scale) -> Row:
    """Cases from when every process has its first answer to the last one."""
    cases, size, turns = (48, 512, 3) if scale == Scale.FULL else (8, 64, 1)
    images = folder / "images"
    images.mkdir()
    for number in range(cases):
        noise = np.random.default_rng(number).integers(0, 256, (size, size), np.uint8)
        Image.fromarray(noise).save(images / f"{number:03}.png")
    torch.manual_seed(0)
    [network] = bundle.components(bundle.find(BUNDLE), "predicting", {}, ["network_def"])
    torch.save(network.state_dict(), folder / "model.pt")
    rates: dict[str, list[float]] = {ONE: [], TWO: []}
    for turn in range(turns):
        answers = {how: folder / f"labels of {how} {turn}" for how in rates}
        for how, found in answers.items():
            rates[how].append(_predicted(images, folder / "model.pt", found, how))
        _refuse_different(answers[ONE], answers[TWO], cases)
    return Row(
        f"an archive of {cases} images of {size} x {size} in 2 processes of one thread", "cases/s",
        rates.pop(TWO), rates, more_is_better=True, aim={ONE: NEAR_LINEAR},
        same="every label map is the same, bit for bit", note="start and the first answer of each process left out",
    )  # fmt: skip


def _patients(folder: Path, size: int) -> Path:
    folder.mkdir()
    write_em_patients(folder, patients=6, sections=3, size=size, seed=1)
    how = {"name": "scale", "image": "{patient}/image.tif", "label": "{patient}/label.tif"}
    found = index(folder, recipe(how | {"classes": [("cell", 255), ("membrane", 0)]}))
    manifests.write(split_by_patient(found, (0.7, 0.15, 0.15), seed=1), folder / "manifest.json")
    return folder / "manifest.json"


def _trained(folder: Path, settings: Mapping[str, Any], how: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss and the images per second of every epoch."""
    overlay = ["--overlay", "multi_gpu"] if PROCESSES[how][0] > 1 else []
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    _run(how, ["run", BUNDLE, "training", *overlay, *words, "--output_dir", str(folder)])
    query = "select value from metrics where key = ? order by step"
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        loss, speed = (np.array(store.execute(query, (key,)).fetchall())[:, 0] for key in ("loss", "images_per_second"))
    return loss, speed


def _predicted(images: Path, weights: Path, answers: Path, how: str) -> float:
    """Cases per second."""
    words = ["--input", images, "--checkpoint", weights, "--output", answers, "--device", "cpu"]
    _run(how, ["predict", "--bundle", BUNDLE, *map(str, words)])
    times = sorted(path.stat().st_mtime for path in answers.glob("*.png"))
    first = PROCESSES[how][0]
    return (len(times) - first) / (times[-1] - times[first - 1])


def _run(how: str, words: list[str]) -> None:
    processes, threads = PROCESSES[how]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(bundle.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "pipeline", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{how}: {' '.join(words)}: {(done.stdout + done.stderr)[-2000:]}")


def _refuse_different(first: Path, second: Path, cases: int) -> None:
    names = sorted(path.name for path in first.glob("*.png"))
    same = [np.array_equal(np.asarray(Image.open(first / n)), np.asarray(Image.open(second / n))) for n in names]
    if len(names) != cases or not all(same):
        raise AssertionError(f"{same.count(True)} of {cases} label maps are the same")
