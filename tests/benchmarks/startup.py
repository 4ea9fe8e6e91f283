"""How long a user waits: for `overtile --help`, and from importing torch to the first step of a training."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import run

from pipeline import manifest
from pipeline.index import index
from pipeline.phantom import write_em_patients
from pipeline.recipe import recipe
from pipeline.split import split_by_patient
from tests.benchmarks.harness import Row, Scale, in_turns

TURNS = {Scale.FULL: (7, 3), Scale.QUICK: (1, 1)}
"""How often the help and the training are started."""

HELP_S, FIRST_STEP_S = 0.3, 5.0

FIRST_STEP = """
import json, os, sys, time
import torch
start = time.perf_counter()
from monai.engines import SupervisedTrainer
step = SupervisedTrainer._iteration
def first_step(self, engine, batch):
    begun = time.perf_counter() - start
    step(self, engine, batch)
    print("SECONDS" + json.dumps([begun, time.perf_counter() - start]), flush=True)
    os._exit(0)
SupervisedTrainer._iteration = first_step
from pipeline.cli import main
main()
"""
"""The command line, stopped after its first step: when that began, and when it was done."""


def rows(scale: Scale) -> Iterator[Row]:
    """The help, then the training of `make demo`; a first start of each fills the caches of the disk."""
    turns, starts = TURNS[scale]
    bare, helped = [sys.executable, "-c", "pass"], [sys.executable, "-m", "pipeline", "--help"]
    taken = in_turns({"ours": lambda: _said(helped), "python -c pass": lambda: _said(bare)}, turns)
    note = "python -c pass is what no Python program can start without"
    peers = {"python -c pass": taken["python -c pass"]}
    yield Row("start of `overtile --help`", "s", taken["ours"], peers, aim={"absolute": HELP_S}, note=note)
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        found = [first_step(data, Path(folder) / str(turn)) for turn in range(-1, starts)][1:]
    done = sorted(seconds for _, seconds in found)[starts // 2]
    note = (
        f"to the beginning of the step, its batch at hand and the run's new MLflow store begun; done after {done:.1f} s"
    )
    work = "start of a training, from importing torch to its first step"
    yield Row(work, "s", [seconds for seconds, _ in found], aim={"absolute": FIRST_STEP_S}, note=note)


def make_data(folder: Path) -> Path:
    """The manifest of phantom patients as `make demo` makes them."""
    write_em_patients(folder, patients=10, sections=4, size=192, seed=1)
    names = {"image": "{patient}/image.tif", "label": "{patient}/label.tif"}
    found = index(folder, recipe({"name": "phantom_em", "classes": [("cell", 255), ("membrane", 0)]} | names))
    manifest.write(split_by_patient(found, (0.6, 0.2, 0.2), seed=1), path := folder / "manifest.json")
    return path


def first_step(data: Path, output: Path) -> tuple[float, float]:
    """Seconds after importing torch at which the first step began and was done."""
    words = ["run", "neuron_em_segmentation", "training", "--manifest", str(data), "--output_dir", str(output)]
    words += ["--epochs", "10", "--patch", "128", "--patches_per_case", "4", "--learning_rate", "0.003"]
    said = _said([sys.executable, "-c", FIRST_STEP, *words])
    begun, done = json.loads(said.partition("SECONDS")[2].splitlines()[0])
    return begun, done


def _said(command: Sequence[str]) -> str:
    """What a command prints; it has to succeed."""
    done = run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed ({done.returncode}): {done.stderr[-1000:]}")
    return done.stdout
