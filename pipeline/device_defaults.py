"""How a device computes best: every default that depends on the device is chosen here, once, and told in one line.

A bundle's key that is null is chosen by the device; a value overrides. What a training began with is in its
checkpoint, and a resumed training keeps it wherever the device can.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pipeline import precision
from pipeline.errors import InputError
from pipeline.state_files import read_state

logger = logging.getLogger("pipeline.device_defaults")

STATE = "computing"
"""The part of a checkpoint that says how the training computes."""

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
"""Memory formats that keep a pixel's channels together, by the number of spatial axes."""

MOST_WORKERS = 8
"""Processes that feed a GPU: more have not paid in MONAI's own tutorials, and each holds its share of memory."""

OF_THE_RESULT = ("amp", "channels_last", "compile", "fused")
"""What decides the last bits of the weights: a resumed training keeps these. The others may be chosen anew."""

COMPILED = "overtile/compiled"
"""Folder below the user's cache where compiled code survives a run and a restart of the machine."""


@dataclass(frozen=True)
class Facts:
    """What there is to choose by."""

    kind: str
    """`cpu`, `cuda` or another name of PyTorch's."""
    bfloat16: bool = False
    """Whether it has instructions for bfloat16."""
    compiler: bool = False
    """Whether `torch.compile` finds what it needs: a C++ compiler; on a GPU Triton and a C compiler."""
    cores: int = 1
    """Processor cores that this process may use."""


@dataclass(frozen=True)
class Training:
    """How a training computes."""

    amp: bool
    """bfloat16 in the network."""
    channels_last: bool
    """The channels of a pixel lie together in memory."""
    compile: bool
    """The network goes through `torch.compile`."""
    fused: bool
    """The optimizer updates a parameter in one pass."""
    pinned: bool
    """Batches lie in page-locked memory, from where they reach a GPU while it computes."""
    workers: int
    """Processes that augment beside the training."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: `OF_THE_RESULT`."""
        return {key: getattr(self, key) for key in OF_THE_RESULT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to do: `training` has looked into the checkpoint before the network was built."""


def facts(device: str | torch.device) -> Facts:
    """Look at a device."""
    found = torch.device(device)
    return Facts(
        found.type, precision.computes_in_bfloat16(found), _compiles_on(found.type), len(os.sched_getaffinity(0))
    )


def training_defaults(found: Facts, spatial_dims: int, amp: bool | None = None) -> Training:
    """The choice for a training, where `amp` is not given; what each part bought is in tests/benchmarks/README.md.

    - bfloat16 where the device computes in it.
    - Channels last on a processor in float32, where oneDNN's convolutions then need no copies; on a GPU for images in
      bfloat16, whose tensor cores want them so. Elsewhere it costs more than it brings.
    - Compiled on a GPU: on a processor the minute that it takes is paid back by long trainings alone.
    """
    gpu, half = found.kind == "cuda", found.bfloat16 if amp is None else amp
    return Training(
        amp=half,
        channels_last=half and spatial_dims == 2 if gpu else found.kind == "cpu" and not half,
        compile=gpu and found.compiler,
        fused=found.kind in ("cpu", "cuda"),
        pinned=gpu,
        workers=max(0, min(MOST_WORKERS if gpu else 1, found.cores - 1)),
    )


def channels_last_in_inference(found: Facts, spatial_dims: int) -> bool:
    """Whether a prediction keeps the channels of a pixel together; it computes in float32, by the engine of its key."""
    return found.bfloat16 and spatial_dims == 2 if found.kind == "cuda" else found.kind == "cpu"


def training(
    device: str | torch.device, *, spatial_dims: int, resumed_from: str | Path | None = None, **given: Any
) -> Training:
    """How a training computes on a device, told in one line.

    Args:
        device: that it runs on.
        spatial_dims: 2 or 3.
        resumed_from: checkpoint of a training that goes on: where nothing is given it keeps what it began with, but
            for what cannot work on this device.
        given: `amp`, `channels_last`, `compile`, `fused`, `pinned`, `workers`; None is chosen by the device.

    Raises:
        InputError: what is given is of another kind, or cannot work on the device.
    """
    found = facts(device)
    chosen = overridden(training_defaults(found, spatial_dims, given.get("amp")), given, found)
    begun = {} if resumed_from is None else _begun(Path(resumed_from))
    kept = {key: begun[key] for key in OF_THE_RESULT if key in begun and given.get(key) is None}
    lost = [key for key, value in kept.items() if (reason := _refusal(key, value, found)) and _told(key, reason)]
    chosen = replace(chosen, **{key: value for key, value in kept.items() if key not in lost})
    if chosen.compile:
        keep_compiled_code()
    logger.info("training on %s", in_words(chosen, found))
    return chosen


def overridden(defaults: Training, given: Mapping[str, Any], found: Facts) -> Training:
    """A choice with what the user gave instead of a default.

    Args:
        defaults: of the device.
        given: name -> value; None leaves the default.
        found: the device.

    Raises:
        InputError: a value is of another kind, or cannot work on the device.
    """
    values = {key: value for key, value in given.items() if value is not None}
    for key, value in values.items():
        _refuse_kind(key, value, getattr(defaults, key))
        reason = _refusal(key, value, found)
        if reason:
            raise InputError(f"`{key}` cannot be {value}: {reason}; leave it null for what the device does best")
    return replace(defaults, **values)


def placed(network: torch.nn.Module, device: str | torch.device, channels_last: bool) -> torch.nn.Module:
    """A network on a device, its convolutions' weights laid out as chosen; feature maps follow the weights.

    Args:
        network: of images or volumes.
        device: that it runs on.
        channels_last: see `Training`; False makes it contiguous.
    """
    dims = max((weight.dim() for weight in network.parameters()), default=2) - 2
    layout = LAYOUTS.get(dims, torch.contiguous_format) if channels_last else torch.contiguous_format
    moved: torch.nn.Module = network.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    return moved


def in_words(chosen: Training, found: Facts) -> str:
    """One line for the log."""
    names = {"fused": "fused optimizer", "pinned": "pinned batches", "channels_last": "channels last"}
    parts = ["bfloat16" if chosen.amp else "float32"]
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        if field.name == "workers":
            parts.append(f"{value} worker{'' if value == 1 else 's'}")
        elif field.name == "compile":
            parts.append("compiled" if value else "not compiled")
        elif field.name != "amp" and value:
            parts.append(names[field.name])
    return f"{found.kind}: {', '.join(parts)}"


def keep_compiled_code() -> None:
    """Let `torch.compile` keep its code in the user's cache, where no `TORCHINDUCTOR_CACHE_DIR` says otherwise.

    PyTorch's own place is the temporary folder, which a restart or a new container empties.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / COMPILED
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home: PyTorch's own place will do
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _refusal(key: str, value: Any, found: Facts) -> str:
    """Why a value cannot work on a device, or nothing."""
    if key == "amp" and value and not found.bfloat16:
        return f"this {found.kind} has no instructions for bfloat16, it would be emulated and slow"
    if key == "compile" and value and not found.compiler:
        needs = "Triton and a C compiler" if found.kind == "cuda" else "a C++ compiler (g++ or clang++)"
        return f"torch.compile needs {needs}, which is not installed"
    if key == "pinned" and value and found.kind != "cuda":
        return "page-locked memory speeds up the way to a GPU, and there is none"
    if key == "fused" and value and found.kind not in ("cpu", "cuda"):
        return f"PyTorch has no fused optimizers for {found.kind}"
    return ""


def _refuse_kind(key: str, value: Any, default: Any) -> None:
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f"`{key}` must be True, False or null, got {value!r}")
    if not isinstance(default, bool) and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InputError(f"`{key}` must be a whole number of at least 0, or null, got {value!r}")


def _told(key: str, reason: str) -> bool:
    logger.warning(
        "this training began with `%s`, but %s: it goes on without, and is no longer bit for bit", key, reason
    )
    return True


def _begun(path: Path) -> dict[str, Any]:
    """How the training in a checkpoint computes; nothing where the file is missing, broken or older."""
    try:
        return dict(read_state(path).get(STATE, {}))
    except InputError:  # the training's state refuses the file with its own sentence
        return {}


def _compiles_on(kind: str) -> bool:
    if kind == "cuda":
        from torch.utils._triton import has_triton

        return has_triton() and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
