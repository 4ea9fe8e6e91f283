"""Going on with smaller tiles where memory ran out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.reach import Reach

SAID = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
"""What torch's allocators, CUDA's libraries and C++ say when memory runs out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def halved(tile: Sequence[int], margin: Sequence[int], axes: Sequence[Reach]) -> tuple[int, ...] | None:
    """Give a tile half as long along its longest axis that can be shortened; None where no axis can.

    Args:
        tile: pixels along each axis.
        margin: pixels of it that are dropped on each side.
        axes: how the network sees each of them.

    Example:
        >>> net = Reach(stride=16, lost=0, halo=96, least=16)
        >>> halved((512, 256), (96, 96), [net, net])
        (256, 256)
        >>> halved((208, 208), (96, 96), [net, net])
    """
    for i in sorted(range(len(tile)), key=lambda i: -tile[i]):
        shortest = axes[i].cover(2 * margin[i] + axes[i].stride)
        shorter = max(shortest, axes[i].cover(tile[i] // 2))
        if shorter < tile[i]:
            return (*tile[:i], shorter, *tile[i + 1 :])
    return None
