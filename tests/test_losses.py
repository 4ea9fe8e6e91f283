import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss, DiceLoss
from torch.nn import functional

from pipeline.losses import CutTarget, LossParts, PixelWeightedCrossEntropy, cut_to
from tests.conftest import ROOT

BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/train.yaml"))
KEYS = ("label", "pred")
LOSS = PixelWeightedCrossEntropy()


def batch(classes, shape=(6, 8), seed=0):
    """Logits (2, C, ...) and classes and weights, each (2, 1, ...)."""
    torch.manual_seed(seed)
    labels = torch.randint(0, max(2, classes), (2, 1, *shape)).double()
    return torch.randn(2, classes, *shape).double().requires_grad_(), labels, torch.rand(2, 1, *shape).double() + 0.1


@pytest.mark.parametrize("shape", [(6, 8), (4, 6, 5)])
@pytest.mark.parametrize("classes", [2, 5])
def test_softmax_equals_torch(classes, shape):
    logits, labels, weights = batch(classes, shape)
    assert LOSS(logits, labels).item() == pytest.approx(functional.cross_entropy(logits, labels[:, 0].long()).item())
    per_pixel = functional.cross_entropy(logits, labels[:, 0].long(), reduction="none")
    expected = (per_pixel * weights[:, 0]).sum() / per_pixel.numel()
    assert LOSS(logits, torch.cat([labels, weights], 1)).item() == pytest.approx(expected.item())


def test_class_weights_as_pixel_weights_equal_torchs_class_weights():
    logits, labels, _ = batch(2)
    by_class = torch.tensor([0.5, 3.0]).double()
    weights = by_class[labels.long()]
    summed = functional.cross_entropy(logits, labels[:, 0].long(), weight=by_class, reduction="sum")
    assert LOSS(logits, torch.cat([labels, weights], 1)).item() == pytest.approx(summed.item() / labels.numel())


def test_one_channel_equals_torchs_binary_cross_entropy():
    logits, labels, weights = batch(1)
    expected = functional.binary_cross_entropy_with_logits(logits, labels, weight=weights)
    assert LOSS(logits, torch.cat([labels, weights], 1)).item() == pytest.approx(expected.item())
    two_channels = torch.cat([torch.zeros_like(logits), logits], 1)
    assert LOSS(logits, labels).item() == pytest.approx(LOSS(two_channels, labels).item())


def test_neither_patch_nor_batch_changes_the_scale_and_twice_the_weight_is_twice_the_loss():
    logits, labels, weights = batch(2)
    target = torch.cat([labels, weights], 1)
    once = LOSS(logits, target).item()
    assert LOSS(logits.repeat(2, 1, 2, 3), target.repeat(2, 1, 2, 3)).item() == pytest.approx(once)
    assert LOSS(logits, torch.cat([labels, 2 * weights], 1)).item() == pytest.approx(2 * once)


@pytest.mark.parametrize("classes", [1, 3])
def test_every_pixel_has_a_gradient_in_proportion_to_its_weight(classes):
    logits, labels, weights = batch(classes)
    (plain,) = torch.autograd.grad(LOSS(logits, labels), logits)
    (weighted,) = torch.autograd.grad(LOSS(logits, torch.cat([labels, weights], 1)), logits)
    assert (plain != 0).all()
    torch.testing.assert_close(weighted, plain * weights)
    (none,) = torch.autograd.grad(LOSS(logits, torch.cat([labels, torch.zeros_like(weights)], 1)), logits)
    assert (none == 0).all()


@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_those_of_finite_differences(classes):
    logits, labels, weights = batch(classes, (3, 4))
    assert torch.autograd.gradcheck(lambda x: LOSS(x, torch.cat([labels, weights], 1)), logits)


@pytest.mark.parametrize(("head", "classes"), [("softmax", 2), ("softmax", 4), ("sigmoid", 1)])
@pytest.mark.parametrize("terms", [(1.0, 0.0), (0.0, 1.0)], ids=["cross-entropy", "Dice"])
def test_each_term_of_dice_ce_has_a_gradient_at_every_pixel(head, classes, terms):
    logits, labels, _ = batch(classes)
    loss = DiceCELoss(**{head: True}, to_onehot_y=head == "softmax", lambda_ce=terms[0], lambda_dice=terms[1])
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    assert (gradient != 0).all()


def test_the_loss_runs_in_the_logits_precision():
    logits, labels, weights = batch(2)
    assert LOSS(logits.bfloat16(), torch.cat([labels, weights], 1).float()).dtype == torch.bfloat16


def test_the_target_of_a_valid_network_is_cut_to_its_centre():
    logits, labels, weights = batch(2)
    target = torch.cat([labels, weights], 1)
    padded = functional.pad(target, (92, 92, 4, 4), value=1)
    assert torch.equal(cut_to(padded, (6, 8)), target)
    assert LOSS(logits, padded).item() == LOSS(logits, target).item()
    dice_ce = DiceCELoss(softmax=True, to_onehot_y=True)
    assert CutTarget(dice_ce)(logits, padded[:, :1]).item() == dice_ce(logits, labels).item()


@pytest.mark.parametrize("size", [(5, 8), (8, 8), (6, 8, 1), (6,)])
def test_a_target_without_such_a_centre_is_refused(size):
    with pytest.raises(ValueError, match=f"a target of 6 x 8 pixels has no centre of {' x '.join(map(str, size))}: "):
        cut_to(torch.zeros(2, 1, 6, 8), size)


@pytest.mark.parametrize(
    ("classes", "index", "shown"), [(3, 3, "3 is none of 0 to 2"), (2, -1, "-1 is none"), (1, 2, "2 is none of 0 to 1"),
                                    (2, 0.5, "0.5 is none of 0 to 1"), (2, float("nan"), "nan is none")]
)  # fmt: skip
def test_a_class_that_the_network_does_not_have_is_refused(classes, index, shown):
    logits, labels, _ = batch(classes)
    labels[1, 0, 2, 3] = index
    with pytest.raises(ValueError, match=f"the class index {shown}"):
        LOSS(logits, labels)


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (1, 2, 6, 8)])
def test_other_targets_are_refused(shape):
    with pytest.raises(ValueError, match=f"for 2 cases must have 1 or 2 channels.* got {' x '.join(map(str, shape))}"):
        LOSS(torch.zeros(2, 2, 6, 8), torch.zeros(shape))


# --- Dice is averaged over cases, never summed over the batch -----------------------------------------------------


def a_large_case_that_is_right_and_a_small_one_that_is_wrong():
    """Class indices (2, 1, 32, 32): the truth, and what is predicted."""
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, :, :, :24] = 1
    truth[1, :, :4, :4] = 1
    predicted = truth.clone()
    predicted[1] = 0
    return truth, predicted


def configured(folder, monkeypatch, **changes):
    monkeypatch.chdir(folder)
    parser = ConfigParser()
    parser.read_config("configs/train.yaml")
    parser.update(changes)
    return parser


TWO_CLASSES = [path for path in BUNDLES if "hippocampus" not in path.name]


WITH_HEADS = pytest.mark.parametrize(
    ("folder", "head"),
    [*((path, "softmax") for path in BUNDLES), *((path, "sigmoid") for path in TWO_CLASSES)],
    ids=lambda value: getattr(value, "name", value),
)


@WITH_HEADS
def test_the_loss_is_the_mean_over_cases(folder, head, monkeypatch):
    case_by_case = {"batch_dice": False} if "batch_dice" in configured(folder, monkeypatch) else {}
    parser = configured(folder, monkeypatch, head=head, **case_by_case)
    loss = parser.get_parsed_content("loss")
    channels = parser.get_parsed_content("network_def#out_channels")
    truth, predicted = a_large_case_that_is_right_and_a_small_one_that_is_wrong()
    logits = 12 * (2 * predicted - 1)
    if channels > 1:
        logits = functional.pad(torch.cat([-logits, logits], 1), (0, 0, 0, 0, 0, channels - 2), value=-12)
    one_by_one = torch.stack([loss(logits[i : i + 1], truth[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(loss(logits, truth), one_by_one.mean())

    if "loss#loss" in parser:  # DiceCE, not the weighted cross-entropy
        changed = configured(folder, monkeypatch, head=head, **{"loss#loss#batch": True})
        assert changed.get_parsed_content("loss")(logits, truth) < loss(logits, truth) - 0.1


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_the_validation_metric_is_the_mean_over_patients_never_of_a_batch(folder, batch_size, monkeypatch):
    parser = configured(folder, monkeypatch)
    ((name, metric),) = parser.get_parsed_content("validate#key_metric").items()
    classes = max(2, len(parser.get_parsed_content("class_names")))
    cases = [
        {
            key: functional.one_hot(indices[0].long(), classes).movedim(-1, 0)
            for key, indices in zip(KEYS, pair, strict=True)
        }
        | {"patient": patient}
        for patient, *pair in zip("ab", *a_large_case_that_is_right_and_a_small_one_that_is_wrong(), strict=True)
    ]
    evaluator = Engine(lambda engine, batch: batch)
    metric.attach(evaluator, name)
    evaluator.run([cases[i : i + batch_size] for i in range(0, 2, batch_size)])
    assert evaluator.state.metrics[name] == pytest.approx((1.0 + 0.0) / 2)  # 0.99 were the pixels pooled


def parts_of(loss, *batches):
    """The parts of an epoch's loss, and each batch's whole."""
    engine = Engine(lambda _, batch: loss(*batch))
    LossParts(loss).attach(engine)
    wholes = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: wholes.append(e.state.output.item()))
    engine.run(batches[:1])  # which the next epoch forgets
    engine.run(batches)
    return engine.state.metrics, wholes[1:]


def test_the_parts_of_a_loss_are_monais_and_torchs_own_and_add_up_to_it():
    (logits, labels, _), (others, more, _) = batch(5), batch(5, seed=1)
    settings = {"to_onehot_y": True, "softmax": True}
    loss = DiceCELoss(**settings, lambda_dice=0.3, lambda_ce=2.0)
    metrics, wholes = parts_of(CutTarget(loss), (logits, labels), (others, more))
    dice = [DiceLoss(**settings)(*pair).item() for pair in ((logits, labels), (others, more))]
    assert metrics["loss_dice"] == pytest.approx(0.3 * sum(dice) / 2)
    ce = [functional.cross_entropy(one, two[:, 0].long()).item() for one, two in ((logits, labels), (others, more))]
    assert metrics["loss_ce"] == pytest.approx(2.0 * sum(ce) / 2)
    assert metrics["loss_dice"] + metrics["loss_ce"] == pytest.approx(sum(wholes) / 2)


@WITH_HEADS
def test_the_parts_of_every_bundles_loss_add_up_to_it(folder, head, monkeypatch):
    parser = configured(folder, monkeypatch, head=head)
    logits, labels, _ = batch(parser.get_parsed_content("network_def#out_channels"))
    metrics, (whole,) = parts_of(parser.get_parsed_content("loss"), (logits, labels))
    assert sum(metrics.values()) == pytest.approx(whole)
    assert set(metrics) == ({"loss_dice", "loss_ce"} if "loss#loss" in parser else {"loss_ce"})


def test_catching_the_parts_changes_no_bit_of_the_gradient():
    logits, labels, _ = batch(3)
    gradients = []
    for caught in (False, True):
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        if caught:
            LossParts(loss).attach(Engine(lambda *_: None))
        gradients.append(torch.autograd.grad(loss(logits, labels), logits)[0])
    assert torch.equal(*gradients)
