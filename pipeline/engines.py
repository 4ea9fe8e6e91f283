"""What runs a deployed network: PyTorch as it is, PyTorch's compiler, or OpenVINO, each held against PyTorch first."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import InputError

ENGINES = ("compiled", "openvino")
"""Besides None, PyTorch as it is."""

TOLERANCE = 1e-4
"""Largest difference from PyTorch in float32, relative to the largest logit, above which an engine is refused: rounding
in another order gave up to 4e-6; bfloat16, to which OpenVINO rounds in silence where a processor has it, gives 1e-2."""

LONGER = 2
"""Strides by which the sizes of the trial differ, so that an engine that has learnt one size by heart is noticed."""


def checked_name(engine: str | None) -> str | None:
    """The name of an engine that there is.

    Raises:
        InputError: there is no such engine.
    """
    if engine is not None and engine not in ENGINES:
        listed = ", ".join(map(repr, ENGINES))
        raise InputError(f"`engine` must be null or one of {listed}, got {engine!r}")
    return engine


def started(engine: str, network: nn.Module, size: Sequence[int], strides: Sequence[int]) -> nn.Module:
    """Give a network to an engine, and hold its answer against PyTorch's.

    Args:
        engine: one of `ENGINES`.
        network: float32, in eval mode; kept by the engine, so nobody else's.
        size: (1, C, ...) of an input that it takes.
        strides: of the spatial axes: by multiples of these its size may grow.

    Raises:
        InputError: the engine is not installed, does not run on the network's device, cannot run the network, or
            answers otherwise.
    """
    first = next(network.parameters())
    x = torch.rand(tuple(size), generator=torch.Generator().manual_seed(0)).to(first.device)
    longer = [n + LONGER * (i + 1) * s for i, (n, s) in enumerate(zip(size[2:], strides, strict=True))]
    other = torch.rand(*size[:2], *longer, generator=torch.Generator().manual_seed(1)).to(first.device)
    expected = network(other)
    try:
        running = _compiled(network) if engine == "compiled" else OpenVino(network, x)
        found = running(other)
    except InputError:
        raise
    except Exception as error:  # what a compiler cannot do it says in its own words
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(f"`engine={engine!r}` cannot run this network ({first_line}): use null") from error
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"`engine={engine!r}` differs from PyTorch by {difference:.1g} of the largest logit, more than"
            f" {TOLERANCE:g}: use null"
        )
    return running


def _compiled(network: nn.Module) -> nn.Module:
    """The network through `torch.compile`, for any size; its code is kept in the user's cache."""
    from pipeline.device_defaults import keep_compiled_code

    keep_compiled_code()
    compiled: nn.Module = torch.compile(network, dynamic=True)  # type: ignore[assignment]
    return compiled


class OpenVino(nn.Module):
    """A network in OpenVINO on the CPU, in float32; nobody is told.

    Args:
        network: float32, on the CPU, in eval mode.
        x: (1, C, ...), an input that it takes.

    Raises:
        InputError: OpenVINO is not installed, or the network is not a float32 one on the CPU.
    """

    def __init__(self, network: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        if importlib.util.find_spec("openvino") is None:
            raise InputError("`engine='openvino'` needs OpenVINO: pip install 'overtile[openvino]', or use null")
        if x.device.type != "cpu" or next(network.parameters()).dtype != torch.float32:
            raise InputError("`engine='openvino'` runs float32 networks on the CPU: use null, or `device: cpu`")
        self.request = _request(network, x)
        self.kept = next(network.parameters())  # says where the network is and in which precision

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the network's output."""
        given = x.contiguous().numpy()
        answer: Any = self.request.infer([given], share_inputs=True)
        return torch.from_numpy(answer[0])


def _request(network: nn.Module, x: torch.Tensor) -> Any:
    """Trace, convert and compile."""
    if "openvino" not in sys.modules:
        # Its import opens a session of telemetry; where that package is missing, OpenVINO takes a stub of its own.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: what depends on the size is found out by the trial
        decoder = TorchScriptPythonDecoder(network, example_input=x)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    exactly = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", exactly | threads).create_infer_request()
