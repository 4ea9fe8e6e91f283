"""The law of several processes: their step is the one of one process with the same whole batch."""

import copy

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.losses import DiceCELoss
from monai.transforms import Compose

from pipeline import processes
from pipeline.errors import DataError, InputError
from pipeline.networks import UNet
from pipeline.plainly import say_once
from pipeline.seeding import CaseSampler, SeededDataset
from pipeline.shares import ShareLoader, Shares, ShareTrainer, WholeBatch, parallel
from tests.several import in_processes

LOSS = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)


def batch(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 1, 16, 16, dtype=torch.float64, generator=generator)
    return images, (images > 0.5).double()


def stepped(network, loss, images, labels):
    """Loss, gradients and running statistics of one step, float64."""
    value = loss(network(images), labels)
    value.backward()
    module = getattr(network, "module", network)
    gradients = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    return value.item(), gradients, {name: buffer.numpy() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize(
    ("number", "size", "norm"), [(2, 5, "batch"), (3, 4, "batch"), (2, 4, "instance"), (3, 3, None)]
)
def test_loss_gradients_and_statistics_are_those_of_the_whole_batch(number, size, norm):
    torch.manual_seed(0)
    network = UNet(2, 1, 2, width=2, depth=2, padding="zeros", norm=norm).double()
    images, labels = batch(size)
    value, gradients, buffers = stepped(copy.deepcopy(network), LOSS, images, labels)

    def work():
        processes.join("cpu")
        return stepped(parallel(network, "cpu"), WholeBatch(LOSS), processes.share(images), processes.share(labels))

    for found in in_processes(number, work):
        np.testing.assert_allclose(found[0], value, rtol=1e-13)
        for wanted, given in ((gradients, found[1]), (buffers, found[2])):
            assert wanted.keys() == given.keys()
            for name in wanted:
                np.testing.assert_allclose(given[name], wanted[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_last_batch_of_fewer_samples_than_processes_is_everybodys():
    cases, batch_size = 7, 3  # batches of 3, 3 and 1

    def trained():
        torch.manual_seed(0)
        network = UNet(2, 1, 2, width=2, depth=2, padding="zeros", norm="batch").double()
        images, labels = batch(cases)
        items = [{"id": n, "image": images[n], "label": labels[n]} for n in range(cases)]
        dataset = SeededDataset(items, Compose([]), seed=0)
        loader = ShareLoader(dataset, sampler=CaseSampler(items, seed=0), batch_size=batch_size)
        counted = []
        trainer = ShareTrainer(
            torch.device("cpu"), 1, loader, network, torch.optim.SGD(network.parameters(), 0.1), LOSS
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: counted.append(len(engine.state.output)))
        trainer.run()
        return {name: value.numpy() for name, value in network.state_dict().items()}, counted

    def work():
        processes.join("cpu")
        return trained()

    (expected, _), found = trained(), in_processes(3, work)
    assert [counted for _, counted in found] == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    for weights, _ in found:
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_batch_that_cannot_be_shared_evenly_is_refused_once(capfd):
    def work():
        processes.join("cpu")
        try:
            Shares(CaseSampler([1] * 8, seed=0), 4)
        except InputError as error:
            say_once(str(error))

    in_processes(3, work)
    sentence = "`batch_size` 4 cannot be shared by 3 processes; make it a multiple of 3, or start another number"
    assert capfd.readouterr().err.count(sentence) == 1


def test_shares_in_the_order_of_processes_are_the_whole():
    def work():
        processes.join("cpu")
        return processes.share(range(7)), processes.share_or_all(range(2)), processes.gathered(processes.rank())

    found = in_processes(3, work)
    assert [list(share) for share, _, _ in found] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [list(share) for _, share, _ in found] == [[0, 1]] * 3
    assert [ranks for _, _, ranks in found] == [[0, 1, 2]] * 3


def test_the_reason_of_a_process_that_fails_reaches_the_others():
    def work():
        processes.join("cpu")
        try:
            if processes.rank() == 1:
                raise DataError("case p1 is broken")
            processes.gathered(0)
        except Exception as error:
            return processes.told(error)

    first, second = in_processes(2, work)
    assert (type(first), str(first)) == (type(second), str(second)) == (DataError, "case p1 is broken")
