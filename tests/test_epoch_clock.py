from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from pipeline.epoch_clock import EpochClock
from pipeline.stopwatch import Stopwatch


class Clock:
    """Goes only when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


def train(epochs, start_s=7, wait_s=2, step_s=3, validation_s=5, handler_s=0.5, load_s=0.25, augment_s=1):
    """Epochs of three batches that take so long: their metrics, with the validation's and the wall time."""
    clock, found, starts = Clock(), [], []
    dataset = SimpleNamespace(loading=Stopwatch(clock), augmenting=Stopwatch(clock))

    class Loader:
        def __iter__(self):
            clock.pass_(start_s)
            for _ in range(3):
                clock.pass_(wait_s)
                dataset.loading._places[1] += load_s
                dataset.augmenting._places[2] += augment_s
                yield 0

        def __len__(self):
            return 3

    evaluator = Engine(lambda *_: clock.pass_(validation_s))
    engine = Engine(lambda *_: clock.pass_(step_s))
    cached = [SimpleNamespace(seconds=40.0), SimpleNamespace(seconds=2.0)]
    engine.add_event_handler(Events.EPOCH_STARTED, lambda _: starts.append(clock()))
    EpochClock(dataset, evaluator, cached, clock).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: clock.pass_(handler_s))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run([0]))
    engine.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda e: found.append(e.state.metrics | evaluator.state.metrics | {"wall": clock() - starts[-1]}),
    )
    engine.run(Loader(), max_epochs=epochs)
    return found


def test_waiting_computing_and_validating_are_the_epoch():
    for epoch in train(2):
        assert epoch["seconds_waiting"] == 7 + 3 * 2
        assert epoch["seconds_computing"] == 3 * (3 + 0.5)
        assert epoch["seconds_validating"] == 5
        parts = [epoch[f"seconds_{what}"] for what in ("waiting", "computing", "validating")]
        assert sum(parts) == pytest.approx(epoch["wall"])


def test_what_the_loaders_processes_did_is_told_per_epoch_and_what_was_cached_in_the_first():
    first, second = train(2)
    assert (first["seconds_augmenting"], second["seconds_augmenting"]) == (3, 3)
    assert first["seconds_loading"] == pytest.approx(40 + 2 + 3 * 0.25)
    assert second["seconds_loading"] == pytest.approx(3 * 0.25)
