"""Prepared cases kept for a whole training: in memory as far as half of what is free goes, then in a mapped file."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.memory import available_bytes
from pipeline.scratch import LARGE, scratch
from pipeline.stopwatch import TimedCacheDataset

logger = logging.getLogger("pipeline.case_cache")

ALIGNED = 64
"""Bytes that an array's start in the file is a multiple of, as PyTorch aligns its own."""


class MappedArrays:
    """Arrays in unlinked temporary files, several to a file: each open file costs the process a descriptor."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._used = 0

    def put(self, array: np.ndarray) -> np.ndarray:
        """The same array, of the same bits, on pages that the kernel may drop.

        Raises:
            InputError: there is no room for the file.
        """
        size = -(-array.nbytes // ALIGNED) * ALIGNED
        if self._used + size > self._block.nbytes:
            self._block, self._used = scratch([max(size, LARGE)], np.uint8), 0
        place = self._block[self._used : self._used + array.nbytes].view(array.dtype).reshape(array.shape)
        self._used += size
        place[...] = array
        return place


class BoundedCacheDataset(TimedCacheDataset):
    """A CacheDataset that never takes more than half of the free memory: what is beyond lies in a mapped file.

    All datasets of the process count together. An item is the same wherever it lies, and worker processes share both.

    Args:
        data: as MONAI's CacheDataset has it.
        transform: that prepares a case.
        memory_gb: what the cases may take in memory; None is half of what is free, looked at anew with every case.
        free: gives the free bytes; None asks the machine.
        keywords: of MONAI's CacheDataset.
    """

    held: ClassVar[dict[int, int]] = {}
    """Bytes in memory by dataset, of all datasets of the process."""

    def __init__(
        self,
        data: Sequence[Any],
        transform: Any,
        *,
        memory_gb: float | None = None,
        free: Callable[[], int] | None = None,
        **keywords: Any,
    ) -> None:
        self.memory_gb = memory_gb
        self.free = free or free_memory
        self._mapped = MappedArrays()
        self.mapped_cases = 0
        self.held[id(self)] = 0
        weakref.finalize(self, self.held.pop, id(self), None)
        super().__init__(data, transform, **keywords)

    def set_data(self, data: Sequence[Any]) -> None:
        """Read and prepare every case; the constructor does so too."""
        self._mapped, self.mapped_cases, self.held[id(self)] = MappedArrays(), 0, 0
        super().set_data(data)
        if self.mapped_cases:
            logger.info(
                "%d of %d prepared cases lie in a temporary file: the others take %.1f GB of memory",
                self.mapped_cases, len(data), self.held[id(self)] / 1e9,
            )  # fmt: skip

    def _load_cache_item(self, idx: int) -> Any:
        item = super()._load_cache_item(idx)
        tensors = list(_tensors(item))
        size = sum(tensor.nbytes for tensor in tensors)
        if self._fits(size):
            self.held[id(self)] += size
            return item
        for tensor in tensors:
            tensor.data = torch.from_numpy(self._mapped.put(np.asarray(tensor.detach().cpu())))
        self.mapped_cases += 1
        return item

    def _fits(self, size: int) -> bool:
        """Whether a case that has just been prepared, and so is in memory now, may stay there."""
        if self.memory_gb is not None:
            return self.held[id(self)] + size <= self.memory_gb * 1e9
        held = sum(self.held.values()) + size
        return held <= (self.free() + held) / 2


def free_memory() -> int:
    """Bytes that are free on the host. A function with a name: a dataset may go to a process by pickle."""
    return available_bytes(torch.device("cpu"))


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    """The tensors of an item that have something in them."""
    if isinstance(item, torch.Tensor) and item.nbytes:
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
