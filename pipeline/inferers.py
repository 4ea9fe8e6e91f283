"""Overlap-tile inference (arXiv 1505.04597, figure 2) whose result does not depend on the tiles."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers.inferer import Inferer
from torch import nn

from pipeline.deployed import channels_together, deployed, fold_of, replaced, small_input
from pipeline.device_defaults import LAYOUTS
from pipeline.engines import checked_name
from pipeline.folding import folded
from pipeline.out_of_memory import halved, is_out_of_memory
from pipeline.reach import Analysis, NotOneTensorError, Reach, analyse, unwrap
from pipeline.tile_pass import TilePass
from pipeline.tiling import Plan, Planner, Settings, by, per_axis

logger = logging.getLogger(__name__)

BLIND_STRIDE = 64
"""Where a network cannot be analysed, tiles start at multiples of what divides this and the tile."""


ANALYSES: weakref.WeakKeyDictionary[nn.Module, dict[Any, Analysis]] = weakref.WeakKeyDictionary()


class OverlapTileInferer(Inferer):
    """Applies a network to an image of any size, tile by tile, without a trace of the tiles.

    Tiles start at multiples of the network's stride and overlap by its halo, which are measured on a copy of the
    network at its first use, so the result equals the network's output for the whole image, which is

    - ``border="network"``: ``network(image)``, the image being lengthened at its far ends by mirroring where its
      size is not one that the network takes;
    - ``border="mirror"``: the network's output for the image with a mirrored margin on every side
      (arXiv 1505.04597, figure 2), cropped to the image. Mirrored without repeating the outermost pixel, and
      repeatedly where the margin is larger than the image.

    Networks without a finite halo (instance norm, aligned corners) and margins below the halo give approximate
    results: a warning says why and how large the difference is on one tile.

    Args:
        tile: input size of the network, one number or one per axis; None for the largest that the memory admits.
        border: None for `"mirror"` if the network's output is smaller than its input, and `"network"` if not.
        margin: pixels dropped on each side of a tile where the image goes on; None for the exact halo.
        memory_gb: what one batch of tiles may take (10**9 bytes); None for half of what is free.
        batch_size: number of tiles per forward pass.
        progress: show a progress bar.
        engine: what runs a network in eval mode without gradients: None for PyTorch as it is, `"compiled"` for
            `torch.compile`, `"openvino"` for OpenVINO on the CPU (an extra); another network runs as it is.

    Raises:
        InputError: the engine is none of these, or cannot run the network as PyTorch does.
        ValueError: an argument is out of range.

    Example:
        >>> inferer = OverlapTileInferer(tile=64)
        >>> network = torch.nn.Conv2d(1, 2, 3, padding=1).eval()
        >>> image = torch.rand(1, 1, 100, 90)
        >>> torch.allclose(inferer(image, network), network(image), atol=1e-6)
        True
        >>> print(inferer.plan(image.shape, network).step)
        (62, 62)
    """

    def __init__(
        self,
        tile: int | Sequence[int] | None = None,
        border: str | None = None,
        margin: int | Sequence[int] | None = None,
        *,
        memory_gb: float | None = None,
        batch_size: int = 1,
        progress: bool = False,
        engine: str | None = None,
    ) -> None:
        if border not in (None, "network", "mirror"):
            raise ValueError(f"`border` must be None, 'network' or 'mirror', got {border!r}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}")
        if memory_gb is not None and not memory_gb > 0:
            raise ValueError(f"`memory_gb` must be larger than 0, got {memory_gb!r}: None takes half of what is free")
        self.tile, self.border, self.margin = _sizes("tile", tile, 1), border, _sizes("margin", margin, 0)
        self.memory_gb, self.batch_size, self.progress = memory_gb, batch_size, progress
        self.engine = checked_name(engine)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Give the network's output for every pixel of `inputs`.

        Args:
            inputs: (N, C, H, W) or (N, C, H, W, D), on any device.
            network: a module; or any callable, for which `tile` and `margin` must be given. It is run as it
                stands: in its own mode, on its own device, under the caller's autocast and grad mode.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network.

        Returns:
            (N, out channels, H, W[, D]) on the device of `inputs`, in the network's output dtype; a MetaTensor
            with the metadata of `inputs` if that is one.

        Raises:
            ValueError: the network and the arguments do not go together; the sentence says how they would.
        """
        out: torch.Tensor | None = None
        for (images, *pixels), part in self.each(inputs, network, *args, **kwargs):
            if out is None:
                size = (len(inputs), part.shape[1], *inputs.shape[2:])
                out = torch.empty(size, dtype=part.dtype, device=inputs.device)
            out[images, :, *pixels] = part.to(out.device)
        assert out is not None  # there is at least one tile
        if isinstance(inputs, MetaTensor):
            out = MetaTensor(out).copy_meta_from(inputs, copy_attr=False)
        return out

    def each(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Give the network's output tile by tile, for an output that is larger than memory.

        Args:
            inputs: as for a call.
            network: as for a call.
            args: as for a call.
            kwargs: as for a call.

        Yields:
            Slices along N, H, W[, D] that say which pixels of which image, and the output there, (1, out channels,
            h, w[, d]) on the network's device. Together they cover every pixel; the last tile
            along an axis may repeat some.

        Raises:
            ValueError: as for a call.
        """
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        analysis, plan = self._planned(image.shape, network, args=args, kwargs=kwargs)
        smaller: Plan | None = plan
        while smaller is not None:  # again from the first tile: memory runs out in that one, if it does
            plan, smaller = smaller, None
            run = self._pass(image, network, plan, analysis, args=args, kwargs=kwargs)
            self._warn(run, analysis)
            try:
                yield from run.each(self.batch_size, self.progress)
            except Exception as error:
                smaller = self._smaller(plan, image.shape, network, analysis, error)

    def plan(
        self,
        shape: Sequence[int],
        network: Callable[..., torch.Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Plan:
        """Say what a call with inputs of this shape would do.

        Args:
            shape: (N, C, H, W) or (N, C, H, W, D).
            network: as for a call.
            args: as for a call.
            kwargs: as for a call.

        Returns:
            The plan; ``str(plan)`` is one line to read.

        Raises:
            ValueError: as for a call.
        """
        return self._planned(tuple(shape), network, args=args, kwargs=kwargs)[1]

    def _planned(
        self, shape: tuple[int, ...], network: Callable[..., Any], *, args: Any, kwargs: Any
    ) -> tuple[Analysis, Plan]:
        if len(shape) not in (4, 5) or min(shape) < 1:
            raise ValueError(f"`inputs` must be (N, C, H, W) or (N, C, H, W, D), none empty, got {tuple(shape)}")
        for name, sizes in (("tile", self.tile), ("margin", self.margin)):
            if isinstance(sizes, tuple) and len(sizes) != len(shape) - 2:
                raise ValueError(f"`{name}` must have {len(shape) - 2} numbers, one per axis, got {len(sizes)}")
        analysis = self._analysis(shape, network, args, kwargs)
        settings, key = self._key(shape, network)
        if key not in analysis.plans:
            if analysis.twin is not None and analysis.light is None and replaced(network, analysis):
                analysis.light = folded(analysis.twin, fold_of(unwrap(network), small_input(analysis, shape)))
                analysis.channels_last = channels_together(network, analysis)
            analysis.plans[key] = Planner(settings, shape, network, analysis).plan()
            logger.info("%s", analysis.plans[key])
        return analysis, analysis.plans[key]

    def _key(self, shape: tuple[int, ...], network: Callable[..., Any]) -> tuple[Settings, Any]:
        """The settings, and under what their plan for images of a shape is kept."""
        training = isinstance(network, nn.Module) and network.training
        settings = Settings(self.tile, self.border, self.margin, self.memory_gb, self.batch_size)
        return settings, (tuple(shape), settings, torch.is_grad_enabled(), training)

    def _pass(
        self,
        image: torch.Tensor,
        network: Callable[..., Any],
        plan: Plan,
        analysis: Analysis,
        *,
        args: Any,
        kwargs: Any,
    ) -> TilePass:
        """The pass of the network over the image's tiles, or of its deployed copy where that may run in its place."""
        layout = None
        if replaced(network, analysis):
            last = analysis.channels_last
            small = small_input(analysis, image.shape)
            network = deployed(unwrap(network), analysis, small, channels_last=last, engine=self.engine)
            layout = LAYOUTS[image.dim() - 2] if last else None
        return TilePass(image, network, plan, args=args, kwargs=kwargs, layout=layout)

    def _smaller(
        self, plan: Plan, shape: tuple[int, ...], network: Callable[..., Any], analysis: Analysis, error: Exception
    ) -> Plan:
        """The plan to go on with when memory ran out; raises the error if it is another or no tile is smaller."""
        tile = halved(plan.tile, plan.margin, analysis.axes) if is_out_of_memory(error) else None
        if tile is None:
            raise error
        settings, key = self._key(shape, network)
        analysis.plans[key] = smaller = Planner(settings._replace(tile=tile), shape, network, analysis).plan()
        if "memory" not in analysis.warned:
            analysis.warned.add("memory")
            logger.warning("memory ran out with tiles of %s: they are halved until they fit", by(plan.tile))
        return smaller

    def _analysis(self, shape: tuple[int, ...], network: Callable[..., Any], args: Any, kwargs: Any) -> Analysis:
        channels, dims = shape[1], len(shape) - 2
        if not isinstance(network, nn.Module):
            return self._blind(dims, "the network is not a torch.nn.Module and cannot be analysed")
        module = unwrap(network)
        known = ANALYSES.setdefault(module, {})
        key = (channels, dims, self.tile, self.margin, hash(repr(module)))
        if key not in known:
            try:
                known[key] = analyse(module, channels, dims, *args, **kwargs)
            except NotOneTensorError:
                raise
            except Exception as error:  # networks fail in any way they like on sizes and devices not theirs
                known[key] = self._blind(dims, f"the network cannot be analysed ({error})")
        return known[key]

    def _blind(self, dims: int, reason: str) -> Analysis:
        """Make do with the `tile` and `margin` that were given, for a network that keeps its input's size."""
        if self.tile is None or self.margin is None:
            raise ValueError(f"{reason}: give `tile` and `margin`")
        axes = []
        for tile, margin in zip(per_axis(self.tile, dims), per_axis(self.margin, dims), strict=True):
            stride = math.gcd(tile, BLIND_STRIDE)
            while stride > 1 and stride > tile - 2 * margin:
                stride //= 2
            axes.append(Reach(stride, lost=0, halo=None, least=tile))
        return Analysis(tuple(axes), reason)

    def _warn(self, run: TilePass, analysis: Analysis) -> None:
        """Say once per plan why its result is approximate, if it is."""
        plan = run.plan
        key = (plan.shape, plan.tile, plan.margin, plan.border)
        if not plan.exact and key not in analysis.warned:
            analysis.warned.add(key)
            logger.warning("approximate, because %s%s", plan.reason, self._measured(run, analysis))

    def _measured(self, run: TilePass, analysis: Analysis) -> str:
        """Say how much one tile in the middle of the image changes when its margin grows."""
        if getattr(run.network, "training", False):
            return ""
        wider = []
        for reach, axis in zip(analysis.axes, run.plan.axes, strict=True):
            extra = max((reach.halo or 2 * axis.margin) - axis.margin, reach.stride)
            wider.append(-(-extra // reach.stride) * reach.stride)
        try:
            difference, largest = run.difference(wider)
        except (ValueError, RuntimeError) as error:
            return f"; how much cannot be measured ({error})"
        margins = by([a.margin + w for a, w in zip(run.plan.axes, wider, strict=True)])
        return (
            f"; on one tile the result differs by up to {difference:.2g}, {difference / largest:.1%} of the largest"
            f" logit {largest:.2g}, from that with a margin of {margins}"
        )


def tile_inferer(inferer: Any) -> OverlapTileInferer | None:
    """The overlap-tile inferer that an inferer is, or hands its input to unchanged; None where there is no such.

    A wrapper says by an attribute `unchanged` which inferer its input and that one's answer pass through, if any.
    """
    while inferer is not None and not isinstance(inferer, OverlapTileInferer):
        inferer = getattr(inferer, "unchanged", None)
    return inferer


def _sizes(name: str, value: Any, least: int) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) else [value]
    if not values or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"`{name}` must be None or whole numbers of at least {least}, got {value!r}")
    return value if isinstance(value, int) else tuple(values)
