import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from pipeline import stopping
from pipeline.errors import DataError
from pipeline.optimisation import lr_scheduler
from pipeline.stopping import StopEarly, TimeBudget, Watchdog


def epochs_until_it_stops(best_epochs, patience, start=0):
    """How many epochs run where the best epoch after epoch n is `best_epochs[n - 1]`."""
    evaluator, engine = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.best_metric_epoch = best_epochs[start - 1] if start else -1
    evaluator.state.epoch = start

    def restore(e):
        e.state.epoch = start

    def validate(e):
        if best_epochs[e.state.epoch - 1] is not None:
            evaluator.state.epoch = e.state.epoch
            evaluator.state.best_metric_epoch = best_epochs[e.state.epoch - 1]

    engine.add_event_handler(Events.STARTED, restore)
    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    StopEarly(evaluator, patience).attach(engine)
    return engine.run([0], max_epochs=len(best_epochs)).epoch


def test_stops_when_the_best_epoch_is_too_long_ago():
    assert epochs_until_it_stops([1, 2, 2, 2, 2, 2], patience=2) == 4
    assert epochs_until_it_stops([1, 2, 2, 4, 4, 6], patience=2) == 6
    assert epochs_until_it_stops([1, 1, 1, 1], patience=None) == 4


def test_epochs_without_validation_stop_nothing():
    assert epochs_until_it_stops([None, None, 3, None, None, 3, 3], patience=2) == 6


@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_stops_at_the_same_epoch_after_a_resume(start):
    assert epochs_until_it_stops([1, 2, 2, 2, 2, 2], patience=2, start=start) == 4


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return now


def test_minutes_become_epochs_once(clock):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = lr_scheduler("cosine", optimizer, epochs=100)
    seconds = iter([50, *[10] * 100])

    def work(*_):
        clock[0] += next(seconds)

    engine = Engine(work)
    TimeBudget(2, scheduler).attach(engine)
    state = engine.run([0], max_epochs=100)
    assert state.epoch == 2 + (120 - 60) // 10
    assert scheduler.lr_lambdas[0].epochs == state.epoch


def test_the_time_of_validations_counts_where_not_every_epoch_has_one(clock):
    engine = Engine(lambda *_: clock.__setitem__(0, clock[0] + 10))
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda _: clock.__setitem__(0, clock[0] + 20))
    TimeBudget(3, None, val_interval=2).attach(engine)
    state = engine.run([0], max_epochs=100)
    assert state.epoch == 3 + (180 - 50) // 20  # epochs 1, 2 and 3 take 10, 30 and 10 s; 20 s on average
    assert clock[0] <= 180


def test_a_resumed_training_keeps_its_number_of_epochs(clock):
    engine = Engine(lambda *_: clock.__setitem__(0, clock[0] + 10))
    TimeBudget(1, None).attach(engine)
    engine.add_event_handler(
        Events.STARTED, lambda e: (setattr(e.state, "epoch", 3), setattr(e.state, "max_epochs", 5))
    )
    assert engine.run([0], max_epochs=100).epoch == 5


@pytest.mark.parametrize(("handler", "value"), [(StopEarly, 0), (TimeBudget, 0)])
def test_nothing_is_no_patience_and_no_time(handler, value):
    with pytest.raises(ValueError, match="must be (at least 1 epoch|positive) or null, got 0"):
        handler(value, None) if handler is TimeBudget else handler(None, value)


def trainer(watchdog, loss=lambda prediction, _: prediction.mean(), image=1.0, epochs=4):
    network = torch.nn.Conv2d(1, 1, 1)
    batch = {"image": torch.full((1, 1, 2, 2), image), "label": torch.zeros(1, 1, 2, 2), "id": ["patient-01_003"]}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    return network, SupervisedTrainer(
        torch.device("cpu"), epochs, [batch] * 3, network, optimizer, loss, train_handlers=[watchdog]
    )


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights():
    calls = []

    def loss(prediction, _):
        calls.append(1)
        return prediction.mean() * (float("nan") if len(calls) == 2 else 1)

    network, engine = trainer(Watchdog(Engine(lambda *_: None), None, learning_rate=0.1), loss)
    sentence = (
        r"loss is nan in epoch 1, step 2, cases patient-01_003: .*lower `learning_rate` \(now 0\.1\) or set `clip_norm`"
    )
    with pytest.raises(DataError, match=sentence):
        engine.run()
    assert torch.isfinite(network.weight).all()


def test_weights_that_are_no_numbers_are_not_validated():
    network, engine = trainer(Watchdog(Engine(lambda *_: None), None, learning_rate=0.1), epochs=1)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: pytest.fail("came to the next handler"))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda _: network.weight.data.fill_(float("inf")))
    with pytest.raises(DataError, match="weights that are no numbers after epoch 1: the steps are too long; lower"):
        engine.run()


def test_a_broken_image_is_named_as_the_cause():
    _, engine = trainer(Watchdog(Engine(lambda *_: None), None, learning_rate=0.1), image=float("inf"))
    with pytest.raises(DataError, match="patient-01_003: the image is not finite; run `overtile audit`"):
        engine.run()


def validations(predictions, reference, give_up_after):
    """Validations of one case each, until the watchdog stops them; how many there were."""
    evaluator = Engine(lambda e, prediction: [{"pred": prediction, "label": reference}])
    Watchdog(evaluator, give_up_after, learning_rate=0.1).attach(trainer(Watchdog(evaluator, None, 0.1))[1])
    for number, prediction in enumerate(predictions, start=1):
        try:
            evaluator.run([prediction])
        except DataError as error:
            return number, str(error)
    return len(predictions), ""


NOTHING = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])  # one-hot: two pixels of class 0
ONE = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])


def test_no_foreground_in_the_first_validations_stops():
    number, sentence = validations([NOTHING] * 5, ONE, give_up_after=3)
    assert number == 3
    assert sentence.startswith("no foreground predicted in the first 3 validations, where the references have 1 pixels")


def test_foreground_that_came_and_went_does_not_stop():
    assert validations([NOTHING, ONE, NOTHING, NOTHING, NOTHING], ONE, give_up_after=3) == (5, "")
    assert validations([NOTHING] * 5, ONE, give_up_after=None) == (5, "")


def test_without_foreground_in_the_references_there_is_none_to_miss():
    assert validations([NOTHING] * 5, NOTHING, give_up_after=3) == (5, "")


def test_the_watchdog_remembers_across_a_resume():
    first, second = (Watchdog(Engine(lambda *_: None), 3, 0.1) for _ in range(2))
    first.empty = 2
    second.load_state_dict(first.state_dict())
    assert (second.empty, second.validations) == (2, 3)
