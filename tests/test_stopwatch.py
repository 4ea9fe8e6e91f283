import time

import pytest
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, Identityd, Lambdad, RandGaussianNoised

from pipeline.seeding import CaseSampler, SeededDataset
from pipeline.stopwatch import Stopwatch, TimedCacheDataset

NAP = 0.02
CASES = [{"id": name, "image": torch.zeros(1, 2, 2)} for name in "abc"]


def nap(image):
    time.sleep(NAP)
    return image


def test_blocks_add_up_also_those_that_fail():
    watch = Stopwatch(clock=iter([10.0, 12.0, 20.0, 23.0]).__next__)
    with watch.running():
        pass
    with pytest.raises(ZeroDivisionError), watch.running():
        raise ZeroDivisionError
    assert watch.total() == 2 + 3


@pytest.mark.parametrize("workers", [0, 2])
def test_every_worker_adds_its_seconds_and_the_batch_does_not_know(workers):
    dataset = SeededDataset(CASES, Compose([RandGaussianNoised("image", prob=1.0), Lambdad("image", nap)]), seed=0)
    loader = DataLoader(dataset, batch_size=2, sampler=CaseSampler(CASES, 0, repeats=2), num_workers=workers)
    batches = list(loader)
    assert [sorted(batch) for batch in batches] == [["id", "image"]] * 3
    assert 6 * NAP <= dataset.augmenting.total() < 6 * NAP + 0.5
    assert 0 < dataset.loading.total() < NAP


def test_a_cache_knows_how_long_its_cases_took():
    slow = TimedCacheDataset(CASES, Lambdad("image", nap), progress=False)
    assert 3 * NAP <= slow.seconds < 3 * NAP + 0.5
    plain = CacheDataset(CASES, Identityd("image"), progress=False)
    assert [item["id"] for item in slow] == [item["id"] for item in plain]
