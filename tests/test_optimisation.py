import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pipeline.optimisation import ClipGradients, StepSchedule, lr_scheduler, set_epochs


def sgd(rate=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], rate)


def rates(scheduler, optimizer, epochs):
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_pytorchs():
    ours, theirs = sgd(), sgd()
    expected = rates(CosineAnnealingLR(theirs, T_max=8), theirs, 9)
    assert rates(lr_scheduler("cosine", ours, epochs=8), ours, 9) == pytest.approx(expected)
    assert expected[4] == pytest.approx(0.5)


def test_cosine_goes_on_where_it_was_saved_also_with_another_length():
    first = sgd()
    scheduler = lr_scheduler("cosine", first, epochs=100)
    set_epochs(scheduler, 4)
    rates(scheduler, first, 3)
    second = sgd()
    resumed = lr_scheduler("cosine", second, epochs=100)
    resumed.load_state_dict(scheduler.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(resumed, second, 2) == pytest.approx([(1 + math.cos(0.75 * math.pi)) / 2, 0])


def plateau(scores, **arguments):
    """The learning rate after each epoch, with a validation that scores so; None is an epoch without one."""
    optimizer, evaluator, found = sgd(), Engine(lambda *_: None), []
    evaluator.state.metrics, evaluator.state.key_metric_name = {}, "dice"
    scheduler = lr_scheduler("plateau", optimizer, epochs=len(scores), factor=0.1, patience=1)
    engine = Engine(lambda *_: None)

    def validate(e):
        if scores[e.state.epoch - 1] is not None:
            evaluator.state.epoch, evaluator.state.metrics["dice"] = e.state.epoch, scores[e.state.epoch - 1]

    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    StepSchedule(scheduler, evaluator).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: found.append(optimizer.param_groups[0]["lr"]))
    engine.run([0], max_epochs=len(scores))
    return found


def test_the_rate_falls_when_the_validation_no_longer_rises():
    assert plateau([0.1, 0.2, 0.2, 0.2]) == pytest.approx([1, 1, 1, 0.1])
    assert plateau([0.1, 0.2, 0.3, 0.4]) == pytest.approx([1, 1, 1, 1])


def test_epochs_without_validation_do_not_count():
    assert plateau([0.2, None, 0.2, None, 0.2]) == pytest.approx([1, 1, 1, 1, 0.1])


def test_constant_stays():
    optimizer = sgd(0.3)
    assert rates(lr_scheduler("constant", optimizer, epochs=3), optimizer, 3) == [0.3] * 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kind": "cosinus"}, "`lr_schedule` must be one of cosine, plateau, constant, got 'cosinus'"),
        ({"kind": "plateau", "factor": 2}, "`lr_factor` must be between 0 and 1, got 2"),
    ],
)
def test_wrong_schedules_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        lr_scheduler(optimizer=sgd(), epochs=3, **arguments)


def moved(norm, batches=1, **trainer):
    """How far one epoch of SGD with learning rate 1 moves a weight whose gradient is 3 in every batch."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    data = [{"image": torch.full((1, 1), 3.0), "label": torch.zeros(1, 1)}] * batches
    engine = SupervisedTrainer(
        torch.device("cpu"), 1, data, network, optimizer, lambda prediction, _: prediction.sum(),
        train_handlers=[ClipGradients(optimizer, norm)], decollate=False, **trainer,
    )  # fmt: skip
    engine.run()
    return -network.weight.item()


def test_no_step_is_longer_than_the_norm():
    assert [moved(None), moved(10.0), moved(0.5)] == pytest.approx([3, 3, 0.5])


def test_accumulated_batches_make_one_step_of_their_mean():
    assert moved(None, batches=4) == pytest.approx(12)
    assert moved(None, batches=4, accumulation_steps=2) == pytest.approx(6)
    assert moved(0.5, batches=4, accumulation_steps=2) == pytest.approx(1)


def measured(norm, *gradients, **trainer):
    """`gradient_norm` of an epoch whose batches have such gradients of one weight."""
    network = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    data = [{"image": torch.full((1, 1), float(value)), "label": torch.zeros(1, 1)} for value in gradients]
    engine = SupervisedTrainer(
        torch.device("cpu"), 2, data, network, optimizer, lambda prediction, _: prediction.sum(),
        train_handlers=[ClipGradients(optimizer, norm)], decollate=False, **trainer,
    )  # fmt: skip
    engine.run()
    return engine.state.metrics["gradient_norm"]


def test_the_gradients_length_is_told_as_it_was_before_it_was_shortened():
    assert [measured(None, 3, -1), measured(0.5, 3, -1)] == pytest.approx([2, 2])


def test_accumulated_batches_have_one_gradient():
    assert measured(None, 3, -1, accumulation_steps=2) == pytest.approx((3 - 1) / 2)
    assert measured(None, 3, -1, -4, accumulation_steps=2) == pytest.approx((1 + 2) / 2)  # MONAI halves the last, too


def test_a_norm_of_nothing_gets_a_sentence():
    with pytest.raises(ValueError, match="`clip_norm` must be positive or null, got 0"):
        ClipGradients(sgd(), 0)
