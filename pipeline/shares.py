"""A training in several processes, each with its share of every batch: the step is that of the whole batch.

The loss is computed from the logits of the whole batch in every process, so whatever it averages or pools (the Dice of
a batch, weights of classes) is what it is in one process; each process then walks back through its own share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, Sampler

from pipeline import processes
from pipeline.errors import InputError
from pipeline.global_batch_norm import GlobalBatchNorm, with_global_statistics
from pipeline.seeding import CaseSampler, Draw


class Shares(Sampler[list[Draw]]):
    """Deals every batch of a sampler to the processes, in the order that the batch has.

    Args:
        sampler: which is the same in every process.
        batch_size: of the whole batch.

    Raises:
        InputError: the batch cannot be shared evenly.
    """

    def __init__(self, sampler: CaseSampler, batch_size: int) -> None:
        if batch_size % processes.count():
            raise InputError(
                f"`batch_size` {batch_size} cannot be shared by {processes.count()} processes; make it a multiple of "
                f"{processes.count()}, or start another number of processes"
            )
        self.samples, self.batch_size = len(sampler), batch_size
        self.batches: Any = BatchSampler(sampler, batch_size, drop_last=False)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        """The shares of this process; a last batch of fewer samples than processes is all of it in each of them."""
        for batch in self.batches:
            yield list(processes.share_or_all(batch))

    def last_is_whole(self) -> bool:
        """Whether the last batch has fewer samples than there are processes."""
        return 0 < self.samples % self.batch_size < processes.count()


class ShareLoader(DataLoader):
    """MONAI's DataLoader of the samples of this process: its share of every batch, all of it where there is one.

    Args:
        dataset: of a `CaseSampler`'s draws.
        sampler: of the samples of an epoch.
        batch_size: of the whole batch.
        keywords: of MONAI's DataLoader.
    """

    def __init__(self, dataset: Any, *, sampler: CaseSampler, batch_size: int, **keywords: Any) -> None:
        self.shares = Shares(sampler, batch_size)
        super().__init__(dataset, batch_sampler=self.shares, **keywords)


class ShareTrainer(SupervisedTrainer):
    """MONAI's SupervisedTrainer, whose step is that of all processes together."""

    __signature__ = inspect.signature(SupervisedTrainer)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if processes.count() > 1:
            self.loss_function: Any = WholeBatch(self.loss_function)
            self.network: Any = parallel(self.network, str(self.state.device))
            self._alone, _ = dist.new_subgroups(group_size=1)

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        if not self._same_for_all(engine):
            return super()._iteration(engine, batchdata)
        with self._computing_alone():
            super()._iteration(engine, batchdata)
        if not processes.is_first():
            engine.state.output = []  # these samples are the first process's
        return engine.state.output

    def _same_for_all(self, engine: Any) -> bool:
        """Whether every process has all samples of the present batch."""
        shares = getattr(self.data_loader, "shares", None)
        last = engine.state.iteration % engine.state.epoch_length == 0
        return last and shares is not None and shares.last_is_whole()

    @contextmanager
    def _computing_alone(self) -> Iterator[None]:
        """Statistics and loss of this process's samples: they are all there are."""
        norms = [part for part in self.network.modules() if isinstance(part, GlobalBatchNorm | nn.SyncBatchNorm)]
        self.loss_function.alone = True
        for norm in norms:
            norm.process_group = self._alone
        try:
            yield
        finally:
            self.loss_function.alone = False
            for norm in norms:
                norm.process_group = None  # a group can be neither copied nor exported with the network


def parallel(network: nn.Module, device: str) -> nn.Module:
    """The network as all processes train it: statistics of the whole batch, gradients summed over its shares.

    Args:
        network: whose batch norms are replaced in place; its parameters and their names stay.
        device: where it lies.
    """
    return DistributedDataParallel(with_global_statistics(network, device), forward_sync_buffers=False)


class WholeBatch(nn.Module):
    """A loss of the logits and targets of all processes.

    Its gradient goes to this process's own logits, times the number of processes, since `DistributedDataParallel`
    takes the mean of their gradients where the sum is wanted.

    Args:
        loss: of logits (B, C, ...) and targets (B, K, ...).

    Attributes:
        alone: every process has the whole batch, so there is nothing to be put together.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.loss = loss
        self.alone = False

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of this process's share -> the loss of the whole batch, the same in every process."""
        if self.alone:
            return self.loss(logits, target)
        mine = logits.view_as(logits)
        if mine.requires_grad:
            mine.register_hook(lambda gradient: gradient * processes.count())
        others = whole(mine.detach())
        others[processes.rank()] = mine
        return self.loss(torch.cat(others), torch.cat(whole(target)))


def whole(share: torch.Tensor) -> list[torch.Tensor]:
    """The shares (N, ...) of all processes, in their order; N may differ."""
    share = share.contiguous()
    sizes = [torch.zeros(1, dtype=torch.int64, device=share.device) for _ in range(processes.count())]
    dist.all_gather(sizes, torch.tensor([len(share)], device=share.device))
    most = max(int(size) for size in sizes)
    padded = share.new_zeros((most, *share.shape[1:]))
    padded[: len(share)] = share
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
