"""A network and its best weights as an MLflow model: exported as a graph, so that loading it runs no code of ours.

The format is MLflow's `pt2`: `torch.export` writes the graph as JSON and the weights as plain numbers. The model takes
the image as the bundle's preprocessing leaves it and answers with logits; tiling and what comes after are the bundle's.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx.config
from torch import nn

from pipeline.checkpoint import load_weights
from pipeline.errors import InputError
from pipeline.outbox import Outbox
from pipeline.reach import unwrap
from pipeline.registry import allowed_name
from pipeline.store import reason

logger = logging.getLogger("pipeline.logged_model")

LARGEST_SIDE = 1024
"""Pixels: no side of an example is looked for beyond."""

SMALLEST = 1
"""The smallest sizes that a network takes are left out of its example: a level of one pixel would become a constant."""

BATCH = 2
"""Images in the example, more than 1 for the same reason."""


def put(outbox: Outbox, network: nn.Module, weights: Path, about: Mapping[str, Any]) -> None:
    """Export a network's weights and hand the model to a run; a failure is told and ends nothing.

    Args:
        outbox: of the run.
        network: as it was trained.
        weights: of `pipeline.checkpoint`.
        about: of `pipeline.run_story.RunStory.model`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".model-", dir=weights.parent) as folder:
            export(network, weights, Path(folder) / "model", metadata=about["metadata"])
            payload = {key: value for key, value in about.items() if key != "metadata"}
            outbox.put("model", payload | {"name": allowed_name(about["name"])}, Path(folder) / "model")
    except Exception as error:  # torch.export raises of every kind where it cannot follow a network
        logger.warning(
            "MLflow gets no model of this run, the network cannot be exported (%s: %s); its weights are in %s",
            type(error).__name__,
            reason(error),
            weights,
        )


def export(network: nn.Module, weights: str | Path, folder: Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a network with the weights of a file as an MLflow model; neither the network nor a random state changes.

    The signature leaves the number of images and every side open. The example is noise: no image of a patient is near.

    Args:
        network: on any device; a copy of it is exported on the CPU.
        weights: of `pipeline.checkpoint`.
        folder: to write to; must not exist.
        metadata: plain values that the file `MLmodel` says of the model.

    Raises:
        InputError: the weights are not of this network.
        Exception: of `torch.export`'s own, where it cannot follow the network.
    """
    import mlflow.pytorch  # seconds

    twin = load_weights(copy.deepcopy(unwrap(network)).cpu(), weights, {}).eval()
    image = example(twin)
    with _quiet(), _no_places():
        mlflow.pytorch.save_model(
            twin,
            folder,
            signature=_signature(image.shape, _logits(twin, image.shape)),
            input_example=image,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            metadata=dict(metadata or {}),
        )


def example(network: nn.Module) -> np.ndarray:
    """Noise that a network takes: (2, C, H, W) or (2, C, H, W, D) float32, the sides small and all different.

    Mean 0 and variance 1, as of a normalised image; two decimals, since MLflow writes it as text.

    Raises:
        InputError: the network has no convolution, or takes no image of up to 1024 pixels.
    """
    convolution = next((each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Conv3d)), None)
    if convolution is None:
        raise InputError("a network without a convolution has no image for an example")
    channels, dims = convolution.in_channels, convolution.weight.ndim - 2
    sides = _sides(network, channels, dims)
    noise = np.random.default_rng(0).standard_normal((BATCH, channels, *sides))
    return noise.round(2).astype(np.float32)


def _sides(network: nn.Module, channels: int, dims: int) -> list[int]:
    """The smallest sides that a network takes, the very smallest left out; tried without computing anything."""
    shadow, found = copy.deepcopy(network).to("meta"), []
    for side in range(1, LARGEST_SIDE + 1):
        try:
            _answer(shadow, (BATCH, channels, *[side] * dims))
        except (ValueError, RuntimeError):
            continue
        found.append(side)
        if len(found) == SMALLEST + dims:
            return found[SMALLEST:]
    raise InputError(f"the network takes no image of up to {LARGEST_SIDE} pixels in {dims} sizes")


def _answer(network: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = network(torch.empty(shape, device="meta"))
    return answer


def _logits(network: nn.Module, shape: tuple[int, ...]) -> int:
    return _answer(copy.deepcopy(network).to("meta"), shape).shape[1]


def _signature(shape: tuple[int, ...], logits: int) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    sides = [-1] * (len(shape) - 2)
    image, answer = (TensorSpec(np.dtype("float32"), (-1, channels, *sides)) for channels in (shape[1], logits))
    return ModelSignature(Schema([image]), Schema([answer]))


@contextmanager
def _no_places() -> Iterator[None]:
    """Without this, the graph names the source file of every operation, with the folders of this machine."""
    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow warns of its own type hints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
