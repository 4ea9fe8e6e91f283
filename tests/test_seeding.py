import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised

from pipeline.seeding import CaseSampler, Draw, SeededDataset, SeedHandler, seed_of

CASES = [{"id": name, "image": torch.zeros(1, 2, 2)} for name in "abc"]


def dataset(cases=CASES, seed=0):
    return SeededDataset(cases, Compose([RandGaussianNoised("image", prob=1.0)]), seed)


def samples(workers, epochs=(1, 2), seed=0):
    """(epoch, id) -> the augmented images of a loader whose workers outlive an epoch."""
    sampler = CaseSampler(CASES, seed, repeats=2)
    loader = DataLoader(dataset(seed=seed), sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    found = {}
    for epoch in epochs:
        sampler.epoch = epoch
        found[epoch] = [(batch["id"][0], batch["image"].flatten().tolist()) for batch in loader]
    return found


@pytest.fixture(scope="module")
def alone():
    return samples(workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(alone, workers):
    assert samples(workers) == alone


def test_an_epoch_is_the_same_without_the_one_before_it(alone):
    assert samples(workers=0, epochs=(2,))[2] == alone[2]


def test_every_sample_of_every_epoch_differs(alone):
    values = [tuple(image) for epoch in (1, 2) for _, image in alone[epoch]]
    assert len(set(values)) == 12
    assert [name for name, _ in alone[1]] != [name for name, _ in alone[2]]
    assert sorted(name for name, _ in alone[1]) == list("aabbcc")


def test_another_seed_gives_other_samples(alone):
    assert samples(workers=0, seed=1)[1] != alone[1]


def test_a_sample_depends_on_its_case_not_on_its_place():
    turned = dataset(CASES[::-1])
    assert torch.equal(dataset()[Draw(3, 0, 1)]["image"], turned[Draw(3, 2, 1)]["image"])


def test_the_seed_is_the_same_in_every_process():
    assert seed_of(0, 1, "a", 0) == 3180874932
    assert seed_of(1, 23) != seed_of(12, 3)


def test_dropout_depends_on_the_step_alone():
    drawn = {}
    engine = Engine(lambda e, _: drawn.setdefault(e.state.iteration, []).append(torch.rand(1).item()))
    SeedHandler(CaseSampler(CASES, 0), seed=7).attach(engine)
    engine.run([0, 0], max_epochs=1)
    torch.rand(5)
    engine.run([0, 0], max_epochs=1)
    assert [len(set(values)) for values in drawn.values()] == [1, 1]
    assert drawn[1] != drawn[2]


def test_the_sampler_hears_of_the_epoch_before_the_data_is_drawn():
    sampler = CaseSampler(CASES, 0)
    seen = []
    engine = Engine(lambda _, draw: seen.append(draw.epoch))
    SeedHandler(sampler, seed=0).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", 4))
    engine.run(sampler, max_epochs=6)
    assert seen == [5, 5, 5, 6, 6, 6]


def test_samples_are_computed_in_one_thread():
    class Count(RandGaussianNoised):
        def __call__(self, item):
            counts.append(torch.get_num_threads())
            return super().__call__(item)

    counts, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        SeededDataset(CASES, Compose([Count("image")]), 0)[Draw(1, 0, 0)]
        assert (counts, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
