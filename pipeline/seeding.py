"""Randomness that depends on the seed, the epoch and the case, and on nothing else.

However many processes load the data, whether they persist, and wherever a training was interrupted: the same sample
of the same epoch is augmented in the same way, and the same step draws the same dropout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from pipeline import processes
from pipeline.stopwatch import Stopwatch


class Draw(NamedTuple):
    """One sample of an epoch: which case, and which of the samples that are drawn from it."""

    epoch: int
    number: int
    repeat: int


def seed_of(*parts: int | str) -> int:
    """A seed of 32 bits from numbers and names: the start of their SHA-256, the same in every process."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:4], "big")


class SeededDataset(Dataset[Any]):
    """Random transforms over a dataset of prepared cases; each sample seeded by (seed, epoch, case id, repeat).

    Args:
        cases: items with an `id`, after every deterministic transform (say a MONAI CacheDataset).
        transform: the random ones.
        seed: of the training.

    Attributes:
        loading: Stopwatch of taking cases out of `cases`.
        augmenting: Stopwatch of the random transforms.
    """

    def __init__(self, cases: Any, transform: Compose, seed: int) -> None:
        self.cases = cases
        self.transform = transform
        self.seed = seed
        self.loading, self.augmenting = Stopwatch(), Stopwatch()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, draw: Draw) -> Any:
        """The sample that a `CaseSampler` asks for."""
        epoch, number, repeat = draw
        with self.loading.running():
            item: Mapping[str, Any] = self.cases[number]
        self.transform.set_random_state(seed=seed_of(self.seed, epoch, item["id"], repeat))
        with _one_thread(), self.augmenting.running():
            return self.transform(item)


class CaseSampler(Sampler[Draw]):
    """Every case `repeats` times per epoch, in an order seeded by (seed, epoch).

    The epoch travels inside the index, so that worker processes that outlive an epoch know it.

    Args:
        cases: whose number counts.
        seed: of the training.
        repeats: samples per case and epoch.
    """

    def __init__(self, cases: Sized, seed: int, repeats: int = 1) -> None:
        self.cases = cases
        self.seed = seed
        self.repeats = repeats
        self.epoch = 1

    def __len__(self) -> int:
        return len(self.cases) * self.repeats

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        for place in torch.randperm(len(self), generator=generator).tolist():
            repeat, number = divmod(place, len(self.cases))
            yield Draw(self.epoch, number, repeat)


class SeedHandler:
    """A handler of the training engine: tells the sampler the epoch, and seeds every step by (seed, iteration).

    Args:
        sampler: of the training data.
        seed: of the training.
    """

    def __init__(self, sampler: CaseSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Follow an engine; its data is iterated after the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._step)

    def _epoch(self, engine: Engine) -> None:
        self.sampler.epoch = engine.state.epoch

    def _step(self, engine: Engine) -> None:
        others = [processes.rank()] if processes.rank() else []  # their dropout is not the first one's
        torch.manual_seed(seed_of(self.seed, engine.state.iteration, *others))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: worker processes do, and sums over several threads differ in their last bit."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
