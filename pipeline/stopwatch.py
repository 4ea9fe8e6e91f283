"""Seconds that work takes, in whatever process of a data loader it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import CacheDataset
from torch.utils.data import get_worker_info

PLACES = 257
"""Processes that add up their seconds apart: the training's own and 256 workers; more would share places."""


class Stopwatch:
    """Adds up the seconds of a piece of work over all processes of a data loader, each in a place of its own.

    The places are memory that the processes share, so the sum needs no lock and no word in the items: what a loader
    gives is bit for bit what it would be without it.

    Args:
        clock: seconds since whenever.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._places = torch.zeros(PLACES, dtype=torch.float64).share_memory_()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of the block, also of one that fails."""
        start = self._clock()
        try:
            yield
        finally:
            worker = get_worker_info()
            self._places[0 if worker is None else 1 + worker.id % (PLACES - 1)] += self._clock() - start

    def total(self) -> float:
        """Seconds so far, of all processes together."""
        return float(self._places.sum())


class TimedCacheDataset(CacheDataset):
    """MONAI's CacheDataset that knows how long its cases took to be read and prepared, in `seconds`."""

    seconds = 0.0

    def set_data(self, data: Sequence[Any]) -> None:
        """Read and prepare every case; the constructor does so too."""
        start = time.perf_counter()
        super().set_data(data)
        self.seconds += time.perf_counter() - start
