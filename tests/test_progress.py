import fcntl
import logging
import os
import pty
import struct
import sys
import termios
import threading

from ignite.engine import Engine, Events

from pipeline import progress
from pipeline.progress import TrainingProgress, silent


def train(epochs=2, dice=(0.5, 0.25), pause=0.0):
    def step(*_):
        pausing.wait(pause)
        return [{"loss": 0.75}] * 4

    pausing = threading.Event()
    evaluator, engine = Engine(lambda *_: None), Engine(step)
    evaluator.state.key_metric_name, evaluator.state.best_metric = "val_mean_dice", 0.5

    def validate(e):
        e.state.metrics = {"loss": 0.75}
        evaluator.state.epoch, evaluator.state.metrics = e.state.epoch, {"val_mean_dice": dice[e.state.epoch - 1]}

    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    TrainingProgress(evaluator).attach(engine)
    engine.run([0, 0, 0], max_epochs=epochs)


def test_one_plain_line_per_epoch_without_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 600, 60)).__next__)
    with caplog.at_level(logging.INFO, "pipeline"):
        train()
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1/2  loss 0.75  val_mean_dice 0.5  best 0.5  01:00 left",
        "epoch 2/2  loss 0.75  val_mean_dice 0.25  best 0.5  00:00 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        train(pause=0.12)  # longer than the bar waits between two drawings
        screen.flush()
        shown = os.read(reader, 100_000).decode()
    os.close(reader)
    last = next(part for part in reversed(shown.split("\r")) if "epoch" in part)
    assert "epoch 2/2  loss 0.750  val_mean_dice 0.500" in last
    assert "images/s" in last
    assert " left" in last


def test_silence_is_silent(capsys):
    assert list(silent([1, 2], 2, "counting")) == [1, 2]
    assert capsys.readouterr().out == ""
