"""How much memory a forward pass takes, estimated without data, and how much there is."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WORKSPACE = 1.6
"""Resident memory per byte of live tensors: 1.39 to 1.55 measured on the CPU for U-Nets in 2D and 3D (buffers of the
convolutions, slack of the allocator)."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive while it is active; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(network: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> int:
    """Give the most bytes of live tensors during ``network(x)``, `x` included, weights not.

    Without storage, and so in milliseconds at any size, where `network` and `x` are on the meta device.
    """
    mode = LiveBytes()
    with mode:
        network(x.clone(), *args, **kwargs)
    return mode.peak


def available_bytes(device: torch.device) -> int:
    """Give the memory that is free now, on a GPU or, within the limit of a container, on the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))
