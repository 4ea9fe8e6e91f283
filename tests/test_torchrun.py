"""Training and prediction as torchrun starts them: what a user types, kills and reads."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from pipeline import bundle
from tests.conftest import ROOT
from tests.test_training import EM, SMALL, equal, points, same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = {key: value for key, value in SMALL.items() if key != "dropout"} | {"epochs": 6, "patches_per_case": 4}


def torchrun(*words, processes=2, restarts=0, **how):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    line = [*launcher, f"--max-restarts={restarts}", "-m", *map(str, words)]
    settings = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, **settings | how)


def training(manifest, folder, *, overlays=("--overlay", "multi_gpu"), processes=2, restarts=0, **changes):
    settings = RUN | {"manifest": manifest, "output_dir": folder} | changes
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    line = ("pipeline", "run", EM, "training", *overlays, *words)
    return torchrun(*line, processes=processes, restarts=restarts)


def ended(process):
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def seen(process, sign):
    """Everything shown up to a line that contains `sign`."""
    shown = ""
    for line in process.stdout:
        shown += line
        if sign in line:
            return shown
    raise AssertionError(shown)


def worker(process, rank):
    """The process id of a worker of torchrun."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "multiprocessing" not in " ".join(child.cmdline()):
            return child.pid
    raise AssertionError(f"no worker {rank}")


@pytest.fixture
def started(tmp_path, empty_store):
    """A folder with a store, so that a kill does not meet MLflow making one."""
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def state(folder):
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(phantom_manifest, tmp_path_factory, empty_store):
    """Two processes without a stop: the folder and what was shown."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(empty_store, folder)
    code, output = ended(training(phantom_manifest, folder))
    assert code == 0, output
    return folder, output


def test_two_processes_are_one_run(whole):
    folder, output = whole
    assert len(re.findall(r"epoch \d/6 ", output)) == 6
    assert output.count("MLflow run") == 2  # where it is, how it ended
    assert points(folder)[0] == ["FINISHED"]
    assert not list(folder.glob(".*.tmp"))


def test_two_processes_have_the_losses_of_one(phantom_manifest, tmp_path):
    # By small steps of plain gradient descent: AdamW's do not shrink with a gradient that is rounding alone. What is
    # allowed is some four times what one process with one thread differs from one process with two.
    changes = {"optimizer#_target_": "torch.optim.SGD", "epochs": 3, "learning_rate": 0.003}
    code, output = ended(training(phantom_manifest, tmp_path / "two", **changes))
    assert code == 0, output
    settings = RUN | {"manifest": str(phantom_manifest), "output_dir": str(tmp_path / "one")} | changes
    bundle.run(bundle.find(EM), "training", settings)
    one, two = (state(tmp_path / name)["history"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for names, allowed in ((("loss", "loss_dice", "loss_ce"), 1e-5), (("gradient_norm", "val_mean_dice"), 5e-4)):
        for name in names:
            torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(one[name]), rtol=0, atol=allowed)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_started_again_and_ends_with_the_same_bits(whole, phantom_manifest, started, rank):
    process = training(phantom_manifest, started, restarts=2)
    shown = seen(process, "epoch 2/6")
    os.kill(worker(process, rank), signal.SIGKILL)
    code, output = ended(process)
    assert code == 0, shown + output
    assert "resumed after epoch" in output
    assert same(state(started), state(whole[0]))
    assert equal(*(torch.load(home / "model.pt", weights_only=True) for home in (started, whole[0])))
    assert points(started)[:2] == points(whole[0])[:2]


@pytest.mark.parametrize("to", ["group", "torchrun"])
def test_a_stop_is_said_once_and_can_be_resumed(whole, phantom_manifest, started, to):
    process = training(phantom_manifest, started)
    shown = seen(process, "epoch 2/6")
    if to == "group":  # as a terminal does
        for child in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
            os.kill(child, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code != 0
    assert output.count("interrupted; what was complete is on disk") <= 1
    assert points(started)[0] == ["KILLED"], shown + output
    code, output = ended(training(phantom_manifest, started, resume=True))
    assert code == 0, output
    assert same(state(started), state(whole[0]))
    assert points(started)[:2] == points(whole[0])[:2]


def test_another_number_of_processes_goes_on_with_the_same_training(whole, phantom_manifest, started):
    process = training(phantom_manifest, started)
    seen(process, "epoch 2/6")
    process.send_signal(signal.SIGTERM)
    ended(process)
    code, output = ended(training(phantom_manifest, started, processes=1, overlays=(), resume=True))
    assert code == 0, output
    losses = [torch.tensor(state(home)["history"]["loss"]) for home in (started, whole[0])]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    assert points(started)[0] == ["FINISHED"]


MISTAKES = {
    "`batch_size` 3 cannot be shared by 2 processes": {"batch_size": 3},
    "add 'configs/multi_gpu.yaml' to --config_file": {"overlays": ()},
    "no such manifest": {"manifest": "/nowhere.json"},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_said_once(phantom_manifest, tmp_path, sentence):
    code, output = ended(training(**{"manifest": phantom_manifest, "folder": tmp_path} | MISTAKES[sentence]))
    assert code == 1  # torchrun's; the process's own, 2, is in its table
    assert output.count("error: ") == output.count(sentence) == 1
    assert re.search(r"exitcode\s*: 2", output)


def test_the_overlay_without_torchrun_is_refused(phantom_manifest, tmp_path, overtile):
    code, output = overtile(
        "run", EM, "training", "--overlay", "multi_gpu", "--manifest", phantom_manifest, "--output_dir", tmp_path
    )
    assert code == 2
    assert "multi_gpu.yaml is for several processes; start them with torchrun" in output


def test_an_archive_through_torchrun(phantom_dir, trained, tmp_path):
    words = ["pipeline", "predict", "--bundle", EM, "--input", phantom_dir, "--match", "*/image.tif", "--resume"]
    words += ["--output", tmp_path, "--checkpoint", trained / "model.pt", "--device", "cpu"]
    code, output = ended(torchrun(*words))
    assert code == 0, output
    assert len(list(tmp_path.glob("*/image.tif"))) == 4
    assert output.count("Label maps:") == 1
    begun = time.time()
    code, output = ended(torchrun(*words))
    assert code == 0, output
    assert all(path.stat().st_mtime < begun for path in tmp_path.glob("*/image.tif"))
