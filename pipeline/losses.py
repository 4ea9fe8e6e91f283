"""Pixel-weighted cross-entropy, targets cut to the output of a valid network, a loss's parts; the rest is MONAI's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ignite.engine import Engine, Events
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional


def cut_to(target: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The centre of a target: an unpadded network says nothing about the margin of its input.

    Args:
        target: (B, C, H, W) or (B, C, X, Y, Z).
        size: of the network's output, one number per spatial axis.

    Returns:
        (B, C, *size), a view.

    Raises:
        ValueError: the target is smaller than `size`, or larger by an odd number of pixels and so has no centre.
    """
    lacking = [have - want for have, want in zip(target.shape[2:], size, strict=False)]
    if target.ndim != len(size) + 2 or any(pixels < 0 or pixels % 2 for pixels in lacking):
        raise ValueError(
            f"a target of {_by(target.shape[2:])} pixels has no centre of {_by(size)}: "
            "it must be as large as the network's output, or larger by an even number along each axis"
        )
    centre = [slice(pixels // 2, pixels // 2 + want) for pixels, want in zip(lacking, size, strict=True)]
    return target[(slice(None), slice(None), *centre)]


class CutTarget(nn.Module):
    """Any loss of logits and target for a valid network: the target's centre counts.

    Args:
        loss: called with logits (B, C, ...) and the target cut to their size, such as MONAI's DiceCELoss.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) and (B, K, ...), the latter as large or larger -> the loss."""
        return self.loss(logits, cut_to(target, logits.shape[2:]))


class PixelWeightedCrossEntropy(nn.Module):
    """The weighted cross-entropy of the U-Net paper, - sum of w(x) log p_class(x)(x) (arXiv 1505.04597, equation 1).

    The sum is divided by the number of pixels, so that neither the patch nor the batch size changes what a
    learning rate means. It is not divided by the sum of the weights: a pixel would then count less the more
    border there is around it, and doubling a whole map would change nothing. Where the class weights have a mean
    of 1 (`pipeline.weights.class_weights`) and there is no border, the two are the same on average.

    A target that is larger than the logits, as for a valid network, is cut to its centre.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 2)
        >>> target = torch.tensor([[[[0.0, 1.0]], [[1.0, 3.0]]]])  # classes 0 and 1, weights 1 and 3
        >>> PixelWeightedCrossEntropy()(logits, target)  # (1 ln 2 + 3 ln 2) / 2
        tensor(1.3863)
    """

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch.

        Args:
            logits: (B, C, H, W) or (B, C, X, Y, Z); one channel is the sigmoid's logit of class 1, two or more
                are the softmax's.
            target: (B, 1 or 2, ...), spatially as the logits or larger: the class index and, in the second
                channel, the weight (MONAI's ConcatItemsd joins the two keys); without it every weight is 1.

        Returns:
            A scalar, in the dtype of the logits.

        Raises:
            ValueError: the shapes do not fit, or a class index is no class of the logits.
        """
        if target.shape[0] != logits.shape[0] or target.shape[1] not in (1, 2):
            raise ValueError(
                f"a target for {logits.shape[0]} cases must have 1 or 2 channels, the class index and its weight, "
                f"got {_by(target.shape)}"
            )
        target = cut_to(target, logits.shape[2:])
        loss = _cross_entropy(logits, _class_indices(target[:, 0], max(2, logits.shape[1])))  # (B, ...)
        return (loss * target[:, 1].to(loss) if target.shape[1] == 2 else loss).mean()


class LossParts:
    """A handler of the training engine: what Dice and cross-entropy contribute to the loss, apart.

    `loss_dice` and `loss_ce` among the engine's metrics are means over an epoch's batches, as `loss` is, with the
    weights `lambda_dice` and `lambda_ce` in them: they add up to `loss`. A cross-entropy alone (ours) is its own only
    part; of other losses no part is known. The parts are caught where MONAI's DiceCELoss computes them, so nothing
    is computed twice and the loss is what it was. Stands before the handler that writes the metrics.

    Args:
        loss: a DiceCELoss or a PixelWeightedCrossEntropy, or a module that has one in it.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self._parts: dict[str, list[torch.Tensor]] = {}  # scalars, on the device until the epoch's end

    def attach(self, engine: Engine) -> None:
        """Follow an engine's epochs and the loss's parts."""
        for module in self.loss.modules():
            if isinstance(module, DiceCELoss):
                self._catch(module.dice, "loss_dice", module.lambda_dice)
                self._catch(module.cross_entropy, "loss_ce", module.lambda_ce)
                self._catch(module.binary_cross_entropy, "loss_ce", module.lambda_ce)
            elif isinstance(module, PixelWeightedCrossEntropy):
                self._catch(module, "loss_ce", 1.0)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._parts.clear())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _catch(self, module: nn.Module, name: str, weight: float) -> None:
        def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self._parts.setdefault(name, []).append(weight * output.detach())

        module.register_forward_hook(keep)

    def _epoch_completed(self, engine: Engine) -> None:
        engine.state.metrics |= {name: torch.stack(values).mean().item() for name, values in self._parts.items()}


def _cross_entropy(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(B, C, ...) and (B, ...) -> -log p of every pixel's class, (B, ...)."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], classes.to(logits), reduction="none")
    return functional.cross_entropy(logits, classes, reduction="none")


def _class_indices(values: torch.Tensor, classes: int) -> torch.Tensor:
    """The same as int64; a fraction betrays a label that was interpolated as if it were an image."""
    indices = values.long()
    strange = (indices != values) | (indices < 0) | (indices >= classes)
    if strange.any():
        raise ValueError(
            f"the class index {values[strange][0]:g} is none of 0 to {classes - 1}: channel 0 of the target must be "
            "class indices, warped by nearest neighbour"
        )
    return indices


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)
