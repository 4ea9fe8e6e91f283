import gc

import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, RandGaussianNoised, Transform

from pipeline.case_cache import BoundedCacheDataset, MappedArrays
from pipeline.seeding import CaseSampler, SeededDataset

CASES = [{"id": str(n), "image": n, "label": n} for n in range(5)]
SIZE = 4 * 1000 + 1000
"""Bytes of a prepared case."""


class Prepare(Transform):
    """MONAI caches what a transform of its own kind makes."""

    def __call__(self, data):
        number = data["image"]
        image = MetaTensor(torch.full((1, 10, 100), number, dtype=torch.float32), affine=torch.eye(4) * number)
        return data | {"image": image, "label": torch.full((1, 10, 100), number, dtype=torch.uint8)}


def kept(**how):
    return BoundedCacheDataset(CASES, Prepare(), progress=False, **how)


def batches(cases, workers):
    dataset = SeededDataset(cases, Compose([RandGaussianNoised("image", prob=1.0)]), seed=0)
    loader = DataLoader(dataset, batch_size=2, sampler=CaseSampler(CASES, 0, repeats=2), num_workers=workers)
    return [(batch["image"], batch["label"]) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_bits_from_memory_from_a_file_and_from_monai(workers):
    stock = batches(CacheDataset(CASES, Prepare(), progress=False), workers)
    for how in ({}, {"memory_gb": 0}, {"memory_gb": 2 * SIZE / 1e9}):
        found = batches(kept(**how), workers)
        assert all(
            torch.equal(a, b) for one, two in zip(found, stock, strict=True) for a, b in zip(one, two, strict=True)
        )


def test_a_mapped_case_keeps_its_affine_and_its_dtypes():
    item = kept(memory_gb=0)[3]
    assert isinstance(item["image"], MetaTensor)
    assert (item["image"].affine[0, 0], item["image"].dtype, item["label"].dtype) == (3, torch.float32, torch.uint8)


def test_never_more_than_half_of_what_is_free_all_datasets_together():
    gc.collect()
    BoundedCacheDataset.held.clear()
    memory = 6 * SIZE  # as many cases as would fill it

    def free():
        return memory - sum(BoundedCacheDataset.held.values()) - SIZE  # the case at hand takes its own

    first = kept(free=free)
    assert first.mapped_cases == 2  # 3 of 5 are half of 6
    second = kept(free=free)
    assert second.mapped_cases == 5
    del first
    gc.collect()
    assert kept(free=free).mapped_cases == 2


def test_arrays_share_files_and_a_large_one_has_its_own(monkeypatch):
    made = []
    monkeypatch.setattr(
        "pipeline.case_cache.scratch",
        lambda shape, kind: made.append(shape) or torch.zeros(shape, dtype=torch.uint8).numpy(),
    )
    monkeypatch.setattr("pipeline.case_cache.LARGE", 1000)
    arrays = MappedArrays()
    values = [torch.arange(n, dtype=torch.int64).numpy() for n in (3, 50, 80, 200)]
    found = [arrays.put(value) for value in values]
    assert made == [[1000], [1000], [1600]]  # 64 + 448 bytes, 640, 1600
    assert [one.tolist() for one in found] == [value.tolist() for value in values]
