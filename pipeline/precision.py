"""Mixed precision: bfloat16 where the device computes in it, float32 elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; where it has none, bfloat16 is emulated and slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("sve_bf16"))
    return False


class AutocastInferer(Inferer):
    """Runs the network under autocast to bfloat16, and hands float32 to the loss.

    MONAI's own `amp` casts on CUDA alone. bfloat16 has float32's range, so no loss scaling is needed.

    Args:
        enabled: False computes in float32 everywhere; True does so on a device without bfloat16.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """(N, C, ...) -> the network's output, float32."""
        cast = self.enabled and computes_in_bfloat16(inputs.device)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=cast):
            outputs = network(inputs, *args, **kwargs)
        return outputs.float()
