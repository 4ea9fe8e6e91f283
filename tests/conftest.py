"""Synthetic patients that the tests share, and the real data where it is at hand."""

import json
import logging
import os
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["OMP_NUM_THREADS"] = "1"  # small images; threads of several processes would wait for each other

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_logging():
    """A bundle's logging.conf speaks for the whole process: every test starts and ends without one."""

    def reset():
        for name, logger in logging.root.manager.loggerDict.items():
            if isinstance(logger, logging.Logger):
                logger.disabled = False
                if name == "pipeline":
                    logger.setLevel(logging.NOTSET)
                    logger.handlers.clear()
                    logger.propagate = True

    reset()
    yield
    reset()


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory):
    """Four EM-like patients of three sections, 64 x 64; not to be written to."""
    from pipeline.phantom import write_em_patients

    folder = tmp_path_factory.mktemp("phantom")
    write_em_patients(folder, patients=4, sections=3, size=64, seed=1)
    return folder


@pytest.fixture(scope="session")
def phantom_manifest(phantom_dir):
    """Their manifest, split by patient: 2 training, 1 validation, 1 test."""
    from pipeline import manifest as manifests
    from pipeline.split import split_by_patient

    path = phantom_dir / "manifest.json"
    manifests.write(split_by_patient(index_phantom(phantom_dir), (0.5, 0.25, 0.25), seed=1), path)
    return path


def index_phantom(folder, **changes):
    from pipeline.index import index
    from pipeline.recipe import recipe

    how = {name: changes.pop(name) for name in ("key", "previous") if name in changes}
    arguments = {
        "name": "phantom_em",
        "image": "{patient}/image.tif",
        "label": "{patient}/label.tif",
        "classes": [("cell", 255), ("membrane", 0)],
    }
    return index(folder, recipe(arguments | changes), **how)


def edited(path, target, change):
    """Write the manifest at `path` to `target` after `change` was applied to its dict."""
    fields = json.loads(path.read_text())
    change(fields)
    target.write_text(json.dumps(fields))
    return target


def real(name):
    """A folder of real data, or a skip that says what is missing."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data {name} is not beside the repository at {REAL_DATA}")
    return folder


@pytest.fixture
def overtile(capsys, monkeypatch):
    """Run the command in this process: `code, output = overtile("split", manifest)`."""

    def call(*words):
        return run_overtile(words, capsys, monkeypatch)

    return call


def run_overtile(words, capsys, monkeypatch):
    import sys

    from pipeline.cli import main

    monkeypatch.setattr(sys, "argv", ["overtile", *map(str, words)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    streams = capsys.readouterr()
    return code, streams.out + streams.err


@pytest.fixture(scope="session")
def trained(phantom_manifest, tmp_path_factory):
    """The folder of a two-epoch training on the phantom patients: model.pt, last.pt, mlflow.db."""
    from pipeline import bundle

    folder = tmp_path_factory.mktemp("trained")
    overrides = {
        "manifest": str(phantom_manifest),
        "output_dir": str(folder),
        "epochs": 2,
        "patch": 64,
        "patches_per_case": 2,
        "workers": 0,
        "learning_rate": 0.003,
    }
    bundle.run(bundle.find("neuron_em_segmentation"), "training", overrides)
    return folder


@pytest.fixture(scope="session")
def released(trained, tmp_path_factory):
    """The release of that training, 0.3.0, in a folder with the keys `site.key` and `site.pub`."""
    from pipeline import bundle
    from pipeline.release import release

    folder = tmp_path_factory.mktemp("released")
    return release(bundle.find("neuron_em_segmentation"), trained, folder, key=folder / "site.key", version="0.3.0")


@pytest.fixture(scope="session")
def unpacked(released, tmp_path_factory):
    """Its folder, unpacked; not to be written to."""
    from zipfile import ZipFile

    folder = tmp_path_factory.mktemp("unpacked")
    ZipFile(released).extractall(folder)
    return folder / "neuron_em_segmentation"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow store without a run, to be copied: to make one takes seconds."""
    from pipeline.store import open_store, sqlite_store

    folder = tmp_path_factory.mktemp("store")
    open_store(sqlite_store(folder))
    return folder / "mlflow.db"
