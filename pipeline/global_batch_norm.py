"""Batch norm over the batch of all processes; PyTorch has it for GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d`, 2d or 3d whose mean and variance are those of the batches of all processes together.

    On the CPU, by gloo; `nn.SyncBatchNorm` does the same by nccl.

    Attributes:
        process_group: over which processes; None: all.
    """

    process_group: Any = None

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, ...), got the shape {tuple(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same shape."""
        if not self.training or dist.get_world_size(self.process_group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, number = _Normalised.apply(input, self.weight, self.bias, self.eps)
        tracked, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        if tracked is not None and running_mean is not None and running_var is not None:
            tracked.add_(1)
            share = 1 / float(tracked) if self.momentum is None else self.momentum
            running_mean.lerp_(mean.to(running_mean), share)
            running_var.lerp_((variance * number / (number - 1)).to(running_var), share)
        return output


class _Normalised(torch.autograd.Function):
    """The forward and the backward pass: Ioffe and Szegedy, arXiv 1502.03167, with sums over all processes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: Any, eps: float) -> tuple[torch.Tensor, ...]:
        mean, variance, number = _statistics(x)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.number, ctx.eps = number, eps
        output = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, number)
        return output, mean, variance, number

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        deviation = (variance + ctx.eps).sqrt()
        scale = torch.ones_like(mean) if weight is None else weight
        # With fixed statistics: d y / d x, the sum over the pixels of grad * (x - mean) / deviation, and that of grad.
        straight, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        along, level = sums / ctx.number
        slope = -scale * along / deviation**2
        offset = -scale * level / deviation - slope * mean
        shape = (1, -1, *(1,) * (x.dim() - 2))
        through = straight.add_(x * slope.view(shape).to(x)).add_(offset.view(shape).to(x))
        return through, None if weight is None else of_weight, None if weight is None else of_bias, None


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance per channel, and the number of pixels, over all processes (Chan, Golub and LeVeque, 1979)."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(wide, axes, correction=0)
    mine = torch.stack([mean, variance, torch.full_like(mean, x.numel() / x.shape[1])])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    means, variances, numbers = torch.stack(parts, dim=1)  # each (processes, C)
    number = numbers.sum(0)
    mean = (means * numbers).sum(0) / number
    spread = ((variances + (means - mean) ** 2) * numbers).sum(0)
    return mean, spread / number, number[:1]


def with_global_statistics(network: nn.Module, device: str) -> nn.Module:
    """Replace every batch norm in a network by one over all processes; its parameters stay the same objects.

    Args:
        network: changed in place.
        device: where it computes: `cpu` or `cuda`.
    """
    if device.startswith("cuda"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, _BatchNorm) and not isinstance(part, GlobalBatchNorm):
                setattr(module, name, _like(part))
    return network


def _like(norm: _BatchNorm) -> GlobalBatchNorm:
    made = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made._parameters, made._buffers, made.training = norm._parameters, norm._buffers, norm.training
    return made
