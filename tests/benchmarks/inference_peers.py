"""Whole images through a network as MONAI, nnU-Net and TorchIO do it: windows that overlap by half and are blended.

Each takes (1, C, H, W[, D]) and gives logits of that size. nnU-Net's predictor has its mirroring switched off, which
would make it 4 or 8 times slower, and sums in float16 as it always does.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from tests.benchmarks.harness import missing_peer

BATCH = 4
"""Windows that MONAI and TorchIO hand to the network at once, as in the model zoo; nnU-Net takes one."""

Whole = Callable[[torch.Tensor], torch.Tensor]

MODULES = {"MONAI": "monai", "nnU-Net": "nnunetv2.inference.predict_from_raw_data", "TorchIO": "torchio"}


def monai(network: nn.Module, window: Sequence[int]) -> Whole:
    """`SlidingWindowInferer` as the bundles of the model zoo set it."""
    inferer = SlidingWindowInferer(window, sw_batch_size=BATCH, overlap=0.5, mode="gaussian")

    @torch.no_grad()
    def whole(image: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(inferer(image, network))

    return whole


def nnunet(network: nn.Module, window: Sequence[int]) -> Whole:
    """`nnUNetPredictor`, initialised by hand with our network."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=False, device=next(network.parameters()).device, allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(window))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)

    def whole(image: torch.Tensor) -> torch.Tensor:
        flat = image.dim() == 4
        logits = predictor.predict_sliding_window_return_logits(image[0, :, None] if flat else image[0])
        return (logits[:, 0] if flat else logits)[None].float()

    return whole


def torchio(network: nn.Module, window: Sequence[int]) -> Whole:
    """`GridSampler` and `GridAggregator` with Hann windows."""
    import torchio as tio

    flat = len(window) == 2
    size = (*window, 1) if flat else tuple(window)
    overlap = tuple(n // 2 if n > 1 else 0 for n in size)

    @torch.no_grad()
    def whole(image: torch.Tensor) -> torch.Tensor:
        subject = tio.Subject(image=tio.ScalarImage(tensor=image[0, ..., None] if flat else image[0]))
        sampler = tio.GridSampler(subject, size, overlap)
        aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
        for batch in tio.SubjectsLoader(sampler, batch_size=BATCH):
            tiles = batch["image"][tio.DATA]
            logits = network(tiles[..., 0])[..., None] if flat else network(tiles)
            aggregator.add_batch(logits, batch[tio.LOCATION])
        answer = aggregator.get_output_tensor()
        return (answer[..., 0] if flat else answer)[None]

    return whole


MAKERS: dict[str, Callable[[nn.Module, Sequence[int]], Whole]] = {"MONAI": monai, "nnU-Net": nnunet, "TorchIO": torchio}


def peers(network: nn.Module, windows: dict[str, Sequence[int]]) -> tuple[dict[str, Whole], dict[str, str]]:
    """Those that are installed, and why the others are not."""
    absent = {name: why for name in windows if (why := missing_peer(MODULES[name]))}
    return {name: MAKERS[name](network, windows[name]) for name in windows if name not in absent}, absent


def count(size: Sequence[int], window: Sequence[int]) -> int:
    """Windows that cover an image in steps of half a window; all three take as many."""
    steps = [math.ceil((n - w) / (w // 2)) + 1 if n > w else 1 for n, w in zip(size, window, strict=True)]
    return math.prod(steps)


def covering(windows: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """The size of an image that so many windows along each axis cover."""
    return tuple(w + (n - 1) * (w // 2) for n, w in zip(windows, window, strict=True))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())
