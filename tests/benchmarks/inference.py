"""Whole images through a network: seconds, memory and exactness, beside MONAI's, nnU-Net's and TorchIO's windows.

A time is that of a stated part of the windows or tiles, all of one size, divided by that part. Exactness is the largest
difference from `network(whole image)`, relative to the largest logit, on an image that fits.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.device_defaults import LAYOUTS
from pipeline.folding import foldable, folded
from pipeline.inferers import OverlapTileInferer
from pipeline.memory import LiveBytes
from pipeline.networks import UNet
from pipeline.scratch import LARGE
from tests.benchmarks.harness import Limit, Row, Scale, convolution_rate, in_turns, peak_memory
from tests.benchmarks.inference_child import TILE_GB, WIDTH, WINDOW, write_image
from tests.benchmarks.inference_peers import BATCH, count, covering, difference, peers

MARGIN = 16
"""Voxels on each side of a 3D tile whose outputs are dropped, where the exact margin costs more than it is worth."""

CHANNELS = 64
"""Of the convolutions that say what the machine can do: fewer leave its registers idle."""

EXACT = 1e-4
"""Largest difference that counts as exact; the benchmark fails above it."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TORCH = "ours, PyTorch alone"


def rows(scale: Scale) -> Iterator[Row]:
    """Images of 4096 x 4096, volumes of 512 x 512 x 300, memory, the network of 2015, levers."""
    full = scale == Scale.FULL
    torch.backends.cudnn.allow_tf32 = False
    yield images(4096 if full else 640, 16 if full else 4, 3 if full else 1, full)
    yield from volumes((512, 512, 300) if full else (80, 80, 72), 8 if full else 4, 3 if full else 1, full)
    yield paper(512 if full else 128, 64 if full else 4, 2 if full else 1)
    yield levers(1024 if full else 128, 16 if full else 4, 5 if full else 1, full)
    yield from memory([4096, 8192, 16384] if full else [512, 1024])


def trained(dims: int, width: int, depth: int, **keywords: Any) -> nn.Module:
    """A U-Net of two classes whose batch norms have seen something."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = UNet(dims, 1, 2, width=width, depth=depth, **{"padding": "zeros", "norm": "batch"} | keywords)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.uniform_(-0.2, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    return net.eval().to(DEVICE)


def engine() -> str | None:
    """OpenVINO on a processor, where it is installed."""
    return "openvino" if DEVICE == "cpu" and importlib.util.find_spec("openvino") else None


def waited(call: Callable[[], object]) -> Callable[[], None]:
    """A call that has ended when it returns."""

    def whole() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return whole


def part(inferer: OverlapTileInferer, image: torch.Tensor, net: nn.Module, tiles: int) -> Callable[[], None]:
    """The first tiles of an image, through the inferer's own path."""

    @torch.no_grad()
    def some() -> None:
        for _ in islice(inferer.each(image, net), tiles):
            pass

    return waited(some)


def shared_gb(net: nn.Module, size: Sequence[int], window: Sequence[int]) -> float:
    """What MONAI holds at least: logits and weights of the whole image, and one batch of windows in the network."""
    mode, twin = LiveBytes(), copy.deepcopy(net).to("meta")
    with torch.no_grad(), mode:
        twin(torch.empty(BATCH, 1, *window, device="meta"))
    return (math.prod(size) * (2 + 1) * 4 + mode.peak) / 1e9


def operations(net: nn.Module, size: Sequence[int]) -> float:
    """Floating-point operations of the network for an image, nothing counted twice."""
    twin = copy.deepcopy(net).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(torch.empty(1, 1, *size, device="meta"))
    return float(counter.get_total_flops())


def possible(net: nn.Module, size: Sequence[int]) -> Limit:
    """Seconds of the image at the rate of a plain stack of convolutions that has channels enough."""
    rate = convolution_rate(DEVICE, len(size), CHANNELS, torch.float32)
    how = f"operations of one pass over the image at {rate / 1e9:.0f} GFLOP/s, measured for {CHANNELS} channels"
    return Limit(operations(net, size) / rate, "s", how)


@dataclass(frozen=True)
class Work:
    """An image, and how everybody goes through it.

    Attributes:
        net: the network.
        size: of the image.
        windows: name of a peer -> its window.
        parts: name of a peer -> windows along each axis that are timed.
        ours: name -> inferer, first the one that counts.
        tiles: of ours that are timed.
        trial: size of an image that the network takes as a whole.
    """

    net: nn.Module
    size: tuple[int, ...]
    windows: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, tuple[int, ...]]
    ours: Mapping[str, OverlapTileInferer]
    tiles: int
    trial: tuple[int, ...]

    @property
    def image(self) -> torch.Tensor:
        """(1, 1, H, W[, D]) of noise."""
        return torch.rand(1, 1, *self.size, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def seconds(self, turns: int) -> tuple[dict[str, list[float]], dict[str, str], str]:
        """Name -> seconds of the whole image, who is absent and why, and which part was timed."""
        theirs, absent = peers(self.net, self.windows)
        image, calls, shares, said = self.image, {}, {}, []
        for name, inferer in self.ours.items():
            with torch.no_grad():
                plan = inferer.plan(image.shape, self.net)
            tiles = min(self.tiles, plan.tiles)
            calls[name], shares[name] = part(inferer, image, self.net, tiles), tiles / plan.tiles
            said.append(f"{name}: {tiles} of {plan.tiles} tiles of {plan.tile}, {plan.cost:.2f} voxels per voxel")
        for name, whole in theirs.items():
            patch = image[(..., *map(slice, covering(self.parts[name], self.windows[name])))].contiguous()
            every, done = count(self.size, self.windows[name]), math.prod(self.parts[name])
            calls[name], shares[name] = waited(partial(whole, patch)), done / every
            said.append(f"{name}: {done} of {every} windows of {self.windows[name]}")
        taken = in_turns(calls, turns)
        return {name: [one / shares[name] for one in taken[name]] for name in taken}, absent, "; ".join(said)

    def exactness(self, tiles: Mapping[str, int | tuple[int, ...]]) -> str:
        """Everybody's difference from the network's answer to the whole image; raises where an exact one of ours differs.

        Args:
            tiles: name of ours -> tile, so that there are several on the small image.
        """
        image = self.image[(..., *map(slice, self.trial))].contiguous()
        with torch.no_grad():
            expected = self.net(image)
            found = {
                name: difference(whole(image), expected) for name, whole in peers(self.net, self.windows)[0].items()
            }
            for name, inferer in self.ours.items():
                again = OverlapTileInferer(tiles[name], margin=inferer.margin, engine=inferer.engine)
                found[name] = difference(again(image, self.net), expected)
                if again.plan(image.shape, self.net).exact and found[name] > EXACT:
                    raise ValueError(f"{name} differs from the network's answer by {found[name]:.1g}")
        told = ", ".join(f"{name} {value:.1g}" for name, value in found.items())
        size = " x ".join(map(str, self.trial))
        return f"largest difference from network(image) of {size}, of the largest logit: {told}; exact means {EXACT:g}"


def images(side: int, width: int, turns: int, full: bool) -> Row:
    """A square image, everybody with the memory that MONAI takes or more."""
    net, size = trained(2, width, 5), (side, side)
    windows = {"MONAI": (256, 256), "nnU-Net": (512, 512), "TorchIO": (256, 256)}
    parts = {"MONAI": (31, 4), "nnU-Net": (15, 2), "TorchIO": (31, 4)} if full else dict.fromkeys(windows, (1, 1))
    gigabytes = max(shared_gb(net, size, windows["MONAI"]), 0.06)
    ours = {"ours": OverlapTileInferer(memory_gb=gigabytes, engine=engine())}
    if engine():
        ours[TORCH] = OverlapTileInferer(memory_gb=gigabytes)
    work = Work(net, size, windows, parts, ours, 8 if full else 1, (1024, 1024) if full else (512, 512))
    taken, absent, said = work.seconds(turns)
    return Row(
        f"inference on {side} x {side}, 2D U-Net width {width}, {engine() or 'PyTorch'}",
        "s",
        taken.pop("ours"),
        taken | absent,
        aim=dict.fromkeys(windows, 4.0),
        limit=possible(net, size),
        same=work.exactness(dict.fromkeys(ours, 512 if full else 256)),
        note=f"ours with a tile of at most {gigabytes:.2g} GB; {said}",
    )


def volumes(size: tuple[int, int, int], width: int, turns: int, full: bool) -> Iterator[Row]:
    """A volume, exact, and with a margin that is not."""
    depth, window = (4, 96) if full else (3, 48)
    net = trained(3, width, depth)
    windows = {"MONAI": (window,) * 3, "nnU-Net": (128 if full else 48,) * 3, "TorchIO": (window,) * 3}
    parts = (
        {"MONAI": (2, 2, 2), "nnU-Net": (2, 1, 1), "TorchIO": (2, 2, 2)} if full else dict.fromkeys(windows, (1,) * 3)
    )
    gigabytes = shared_gb(net, size, windows["MONAI"])
    for margin, name in ((None, "exact"), (MARGIN, f"with a margin of {MARGIN}, approximate")):
        ours = {"ours": OverlapTileInferer(memory_gb=gigabytes, margin=margin, engine=engine())}
        if engine():
            ours[TORCH] = OverlapTileInferer(memory_gb=gigabytes, margin=margin)
        work = Work(net, size, windows, parts, ours, 1, (192, 192, 160) if full else (72, 72, 64))
        taken, absent, said = work.seconds(turns)
        yield Row(
            f"inference on {' x '.join(map(str, size))}, 3D U-Net width {width}, {name}, {engine() or 'PyTorch'}",
            "s",
            taken.pop("ours"),
            taken | absent,
            aim=dict.fromkeys(windows, 1.5),
            limit=possible(net, tuple(-(-n // 8) * 8 for n in size)),
            same=work.exactness(dict.fromkeys(ours, 128 if full else 56)),
            note=f"ours with a tile of at most {gigabytes:.2g} GB; {said}",
        )


def paper(side: int, width: int, turns: int) -> Row:
    """The network of 2015, mirrored at the border; "less than a second" on a GPU of then."""
    net = trained(2, width, 5, padding="valid", norm=None)
    image = torch.rand(1, 1, side, side).to(DEVICE)
    ours = OverlapTileInferer(engine=engine())
    names = {"ours": ours, "ours, tiles of 572 as in the paper": OverlapTileInferer(572, engine=engine())}
    if engine():
        names[TORCH] = OverlapTileInferer()
    with torch.no_grad():
        plan = ours.plan(image.shape, net)
        expected, answers = mirrored(net, image, plan.tile, plan.margin), {n: i(image, net) for n, i in names.items()}
        worst = max(difference(answer, expected) for answer in answers.values())
    if worst > EXACT:
        raise ValueError(f"the network of 2015 in tiles differs from itself by {worst:.1g}")
    calls = {name: part(inferer, image, net, 10**6) for name, inferer in names.items()}
    calls["network on the mirrored image"] = waited(partial(mirrored, net, image, plan.tile, plan.margin))
    taken = in_turns(calls, turns)
    return Row(
        f"{side} x {side} through the network of 2015, width {width}, {engine() or 'PyTorch'}",
        "s",
        taken.pop("ours"),
        taken,
        aim={"absolute": 0.005 if DEVICE == "cuda" else 0.5},
        limit=possible(net, plan.tile),
        same=f"largest difference from the network on the mirrored image {worst:.1g}, tolerance {EXACT:g}",
        note=f"one tile of {plan.tile}; the aim is an H200-class GPU's 5 ms, or 0.5 s on 2 cores",
    )


@torch.no_grad()
def mirrored(net: nn.Module, image: torch.Tensor, tile: Sequence[int], margin: Sequence[int]) -> torch.Tensor:
    """The network on the image with a mirrored margin, as large as the tile, cropped to the image."""
    ends = [t - n - m for t, n, m in zip(tile, image.shape[2:], margin, strict=True)]
    padded = nn.functional.pad(image, (margin[1], ends[1], margin[0], ends[0]), mode="reflect")
    return net(padded)[..., : image.shape[2], : image.shape[3]]


def levers(side: int, width: int, turns: int, full: bool) -> Row:
    """One tile as the network stands, and with each lever: what each is worth."""
    net = trained(2, width, 5)
    image = torch.rand(1, 1, side, side).to(DEVICE)
    fold = foldable(net, image[..., :64, :64])
    last: Any = LAYOUTS[2]
    apart, laid = folded(net, fold), cast(Any, copy.deepcopy(net)).to(memory_format=last)
    both = cast(Any, folded(net, fold)).to(memory_format=last)
    calls = {
        "the network as it stands": lambda: net(image),
        "batch norm folded": lambda: apart(image),
        "channels last": lambda: laid(image.to(memory_format=last)),
        "folded and channels last (PyTorch's default here)": lambda: both(image.to(memory_format=last)),
    }
    for name in ("compiled", "openvino") if full else ():
        if name == "compiled" or engine() == name:
            calls[name] = partial(OverlapTileInferer(engine=name), image, net)
    with torch.no_grad():
        expected = net(image)
        worst = max(difference(torch.as_tensor(call()), expected) for call in calls.values())
        if worst > EXACT:
            raise ValueError(f"a lever changes the answer by {worst:.1g}")
        taken = in_turns({name: waited(call) for name, call in calls.items()}, turns)
    ours = taken.pop("openvino" if "openvino" in taken else "folded and channels last (PyTorch's default here)")
    return Row(
        f"levers: one tile of {side} x {side}, 2D U-Net width {width}, {engine() if full else 'PyTorch'}",
        "s",
        ours,
        taken,
        limit=possible(net, (side, side)),
        same=f"largest difference from the network {worst:.1g} of the largest logit, tolerance {EXACT:g}",
    )


def memory(sides: Sequence[int]) -> Iterator[Row]:
    """The anonymous memory of the process, above that of one that imports the same and predicts nothing."""
    if DEVICE == "cuda":
        return
    with tempfile.TemporaryDirectory(prefix="overtile-bench-") as folder:

        def grown(who: str, side: int) -> float:
            module = "tests.benchmarks.inference_child"
            return peak_memory([sys.executable, "-m", module, who, str(side), folder]) / 1e9 - idle

        idle, first = 0.0, sides[0]
        write_image(Path(folder) / f"image{first}.tif", first)
        idle = grown("nobody", first)
        _, absent = peers(trained(2, 2, 2), WINDOW)
        theirs = {name: absent.get(name) or [grown(name, first)] for name in WINDOW}
        ours = grown("ours", first)
        about = f"2D U-Net width {WIDTH}, memory-mapped image; above the {idle:.2g} GB of one that only imports"
        yield Row(
            f"peak anonymous memory of inference on {first} x {first}",
            "GB", [ours], theirs, aim=dict.fromkeys(WINDOW, 2.0),
            note=f"{about}; ours with a tile of at most {TILE_GB} GB, from TIFF to TIFF",
        )  # fmt: skip
        for side in sides[1:]:
            write_image(Path(folder) / f"image{side}.tif", side)
            larger = grown("ours", side)
            yield Row(
                f"peak anonymous memory of inference on {side} x {side}, ours, beside {first} x {first}",
                "GB", [larger], {f"{first} x {first}": [ours]}, aim={f"{first} x {first}": 0.9},
                note=f"{about}; labels of less than {LARGE / 2**20:.0f} MiB are held in memory, larger ones in a file",
            )  # fmt: skip
