"""Trainings of the same network on the same data: the bundle's, one as the model zoo writes them, a plain loop.

Each runs in a process of its own and waits before every epoch for its turn; see `tests.benchmarks.training`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, LrScheduleHandler, MeanDice, StatsHandler, ValidationHandler, from_engine
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandSpatialCropd,
    ScaleIntensityRangePercentilesd,
)
from monai.utils import set_determinism
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pipeline import bundle as bundles
from tests.benchmarks.harness import in_turns
from tests.benchmarks.training_task import DEVICE, Task

KEYS, MODES = ["image", "label"], ["bilinear", "nearest"]

ZOO_WORKERS, LOOP_WORKERS = 4, 2
"""The zoo's spleen bundle has 4 processes beside the training; here no more than there are cores."""

CORNER = 64
"""Pixels along a side of the batches by which the trainings are compared."""

Turns = Callable[[], contextlib.AbstractContextManager[None]]
"""Waits for the turn, and tells its end."""


def follow(engine: Engine, turns: Turns) -> None:
    """Let every epoch of an engine be a turn: from its first batch to the last handler at its end."""
    running: list[Any] = []

    def begin(_: Engine) -> None:
        running.append(turns())
        running[-1].__enter__()

    engine.add_event_handler(Events.EPOCH_STARTED, begin)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: running.pop().__exit__(None, None, None))


def parsed(task: Task, **settings: Any) -> ConfigParser:
    """The bundle's training, ready to be built."""
    home = bundles.find(task.bundle)
    overrides = {"manifest": str(task.manifest), "log_model": False, "patches_per_case": task.repeats}
    files, found = bundles.prepare(home, "training", overrides | dict(task.overrides) | settings, [])
    parser = ConfigParser()
    parser.read_config([str(home / file) for file in files])
    parser.update(found)
    return parser


def built(task: Task, parser: ConfigParser, *names: str) -> list[Any]:
    """Components of it."""
    with contextlib.chdir(bundles.find(task.bundle)):
        set_determinism(0)
        return [parser.get_parsed_content(name) for name in names]


def ours(task: Task, folder: Path, epochs: int, turns: Turns) -> None:
    """The bundle's training with all that belongs to it: tracking, pictures, checkpoints."""
    (trainer,) = built(task, parsed(task, epochs=epochs, output_dir=str(folder)), "train#trainer")
    follow(trainer, turns)
    trainer.run()


def network_alone(task: Task, folder: Path, epochs: int, turns: Turns) -> None:
    """What of that is the network's own: as many steps on one batch that is there, and the validation's forward."""
    names = ("train#trainer", "optimizer", "loss", "train#dataloader", "train#inferer")
    parser = parsed(task, epochs=epochs, output_dir=str(folder))
    trainer, optimizer, loss, loader, inferer = built(task, parser, *names)
    validating, validation = built(task, parser, "inferer", "validate#dataloader")
    batch, network = next(iter(loader)), trainer.network
    image, label = batch["image"].to(DEVICE), batch["label"].to(DEVICE)
    images = [item["image"].as_tensor().to(DEVICE) for item in validation]
    for _ in range(epochs):
        with turns():
            network.train()
            for _ in range(len(loader)):
                optimizer.zero_grad(set_to_none=True)
                loss(inferer(image, network), label).backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                for whole in images:
                    validating(whole, network)
            _wait()


def new_network(task: Task) -> torch.nn.Module:
    """The bundle's network with the bundle's initial weights."""
    return built(task, parsed(task), "network_def")[0].to(DEVICE)


def dice_ce(_: Task) -> DiceCELoss:
    """MONAI's loss, as all bundles of the benchmark have it."""
    return DiceCELoss(to_onehot_y=True, softmax=True)


def zoo(task: Task, folder: Path, epochs: int, turns: Turns) -> None:
    """The same training in stock MONAI, built as the zoo's spleen_ct_segmentation is."""
    set_determinism(0)
    figures, classes = task.settings, len(task.settings["class_names"])
    cases = {
        part: CacheDataset(task.files(part) * (task.repeats if part == "training" else 1), chain, progress=False)
        for part, chain in (("training", Compose([*_read(task), *_augmented(task)])), ("validation", _read(task)))
    }
    workers = min(ZOO_WORKERS, torch.get_num_threads())
    loader = DataLoader(cases["training"], batch_size=figures["batch_size"], shuffle=True, num_workers=workers)
    network = new_network(task)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=figures["learning_rate"], weight_decay=figures["weight_decay"]
    )
    answer = [Activationsd("pred", softmax=True), AsDiscreted(KEYS_OUT, argmax=[True, False], to_onehot=classes)]
    evaluator = SupervisedEvaluator(
        torch.device(DEVICE),
        DataLoader(cases["validation"], batch_size=1, num_workers=workers),
        network,
        inferer=SlidingWindowInferer(task.patch, sw_batch_size=4, overlap=0.5),
        postprocessing=Compose(answer),
        key_val_metric={"val_mean_dice": MeanDice(include_background=False, output_transform=from_engine(KEYS_OUT))},
        val_handlers=[
            StatsHandler(iteration_log=False),
            CheckpointSaver(str(folder), {"model": network}, save_key_metric=True),
        ],
    )
    trainer = SupervisedTrainer(
        torch.device(DEVICE),
        epochs,
        loader,
        network,
        optimizer,
        dice_ce(task),
        inferer=SimpleInferer(),
        amp=DEVICE == "cuda",
        train_handlers=[
            LrScheduleHandler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs), print_lr=False),
            ValidationHandler(1, evaluator),
            StatsHandler(tag_name="train_loss", output_transform=from_engine(["loss"], first=True)),
        ],
    )
    follow(trainer, turns)
    trainer.run()


KEYS_OUT = ["pred", "label"]


def _read(task: Task) -> list[Any]:
    """A file to a tensor."""
    scale: Any = NormalizeIntensityd("image")
    if task.dims == 3:
        scale = ScaleIntensityRangePercentilesd("image", 0.5, 99.5, -1, 1, clip=True)
    return [LoadImaged(KEYS), EnsureChannelFirstd(KEYS, channel_dim="no_channel"), scale, EnsureTyped(KEYS)]


def _augmented(task: Task) -> list[Any]:
    """Crop, rotation and scale, elastic deformation, mirrors, contrast and noise, one transform for each."""
    figures, dims = task.settings, task.dims
    bend = {"keys": KEYS, "prob": figures["elastic"], "mode": MODES, "padding_mode": "reflection"}
    elastic: Any = (
        Rand2DElasticd(spacing=32, magnitude_range=(0, 2), **bend)
        if dims == 2
        else Rand3DElasticd(sigma_range=(5, 7), magnitude_range=(50, 150), **bend)
    )
    flips = figures["flip"] if isinstance(figures["flip"], list) else [figures["flip"]] * dims
    turn = [figures["rotation"]] * (1 if dims == 2 else 3)
    return [
        RandSpatialCropd(KEYS, task.patch, random_size=False),
        RandAffined(
            KEYS,
            prob=1.0,
            rotate_range=turn,
            scale_range=[figures["scaling"]] * dims,
            mode=MODES,
            padding_mode="reflection",
        ),
        elastic,
        *(RandFlipd(KEYS, prob, axis) for axis, prob in enumerate(flips) if prob),
        RandAdjustContrastd("image", prob=0.5, gamma=figures["gamma"], retain_stats=True),
        RandGaussianNoised("image", prob=0.5, std=figures["noise"]),
    ]


class PlainDataset(torch.utils.data.Dataset):
    """Cases in memory, augmented as one writes it without a library: one `grid_sample`, a gamma, some noise."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cases = list(plain_cases(task, "training")) * task.repeats

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, *patch) float32 image and label."""
        image, label = self.cases[number]
        figures, dims = self.task.settings, self.task.dims
        matrix = torch.eye(dims) * (1 + figures["scaling"] * (2 * torch.rand(1) - 1))
        angle = figures["rotation"] * (2 * torch.rand(1) - 1)
        turn = torch.stack([torch.cat([angle.cos(), -angle.sin()]), torch.cat([angle.sin(), angle.cos()])])
        matrix[:2, :2] = matrix[:2, :2] @ turn
        patch = torch.tensor(self.task.patch).flip(0) / torch.tensor(image.shape[1:]).flip(0)
        free = (1 - patch).clamp(min=0) * (2 * torch.rand(dims) - 1)
        grid = functional.affine_grid(
            torch.cat([matrix * patch, free[:, None]], 1)[None], [1, 1, *self.task.patch], align_corners=False
        )
        if torch.rand(1) < figures["elastic"]:
            coarse = 0.04 * torch.randn(1, dims, *[3] * dims)
            smooth = functional.interpolate(
                coarse, self.task.patch, mode="bicubic" if dims == 2 else "trilinear", align_corners=True
            )
            grid = grid + smooth.movedim(1, -1)
        image, label = (
            functional.grid_sample(part[None], grid, mode, "reflection", align_corners=False)[0]
            for part, mode in ((image, "bilinear"), (label, "nearest"))
        )
        if torch.rand(1) < 0.5:
            low, span = image.min(), image.max() - image.min() + 1e-7
            image = ((image - low) / span) ** float(np.random.uniform(*figures["gamma"])) * span + low
        if torch.rand(1) < 0.5:
            image = image + figures["noise"] * torch.randn_like(image)
        return image, label


def plain_cases(task: Task, partition: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(1, ...) image of mean 0 and standard deviation 1, and (1, ...) float label."""
    for files in task.files(partition):
        image, label = (torch.from_numpy(np.asarray(nib.load(files[key]).dataobj, np.float32)) for key in KEYS)
        yield ((image - image.mean()) / image.std())[None], label[None]


def plain_loop(task: Task, folder: Path, epochs: int, turns: Turns) -> None:
    """The loop of a tutorial: a Dataset, a DataLoader, the steps, Dice on whole images, a checkpoint."""
    torch.manual_seed(0)
    figures = task.settings
    network, loss = new_network(task), dice_ce(task)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=figures["learning_rate"], weight_decay=figures["weight_decay"]
    )
    workers = min(LOOP_WORKERS, torch.get_num_threads())
    loader = torch.utils.data.DataLoader(
        PlainDataset(task), figures["batch_size"], shuffle=True, num_workers=workers, persistent_workers=True
    )
    validation = list(plain_cases(task, "validation"))
    for _ in range(epochs):
        with turns():
            network.train()
            for image, label in loader:
                optimizer.zero_grad()
                loss(network(image.to(DEVICE)), label.to(DEVICE)).backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                for image, label in validation:
                    answer = network(image[None].to(DEVICE)).argmax(1).cpu()
                    _ = [_dice(answer == one, label == one) for one in range(1, len(figures["class_names"]))]
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pt")


def _dice(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()).clamp(min=1))


def loss_curves(task: Task, folder: Path, steps: int) -> dict[str, list[float]]:
    """The loss of every step on the same batches from the same weights, in float64, by each way to train.

    Ours is the bundle's trainer with every handler, ended before it validates; the batches are cases without
    augmentation. Of float32 no more than the first step could be compared: Adam divides a gradient by its own size, so
    one that is rounding alone, as a bias before a batch norm has it, moves its weight as far as any other.
    """
    parser = parsed(task, epochs=2, val_interval=2, output_dir=str(folder), amp=False, workers=0)
    trainer, network = built(task, parser, "train#trainer", "network")
    network.double()
    trainer.inferer = SimpleInferer()  # ours hands float32 to the loss
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=steps), lambda engine: engine.terminate())
    batches = list(_batches(task, steps))
    first = {key: value.clone() for key, value in network.state_dict().items()}
    trainer.data_loader, trainer.state.epoch_length = batches, len(batches)
    curves = {"ours": _recorded(trainer)}
    settings = {"lr": task.settings["learning_rate"], "weight_decay": task.settings["weight_decay"]}

    stock = new_network(task).double()
    stock.load_state_dict(first)
    optimizer = torch.optim.AdamW(stock.parameters(), **settings)
    curves["MONAI"] = _recorded(SupervisedTrainer(torch.device(DEVICE), 1, batches, stock, optimizer, dice_ce(task)))

    plain = new_network(task).double()
    plain.load_state_dict(first)
    optimizer, loss = torch.optim.AdamW(plain.parameters(), **settings), dice_ce(task)
    curves["plain loop"] = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(plain.train()(batch["image"].to(DEVICE)), batch["label"].to(DEVICE))
        value.backward()
        optimizer.step()
        curves["plain loop"].append(value.item())
    return curves


def _recorded(trainer: SupervisedTrainer) -> list[float]:
    """The losses of a training."""
    losses: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
    trainer.run()
    return losses


def _batches(task: Task, steps: int) -> Iterator[dict[str, Any]]:
    """Batches of corners of the training cases, in their order."""
    cases, size = list(plain_cases(task, "training")), task.settings["batch_size"]
    corner = (slice(None), *(slice(min(side, CORNER)) for side in task.patch))
    for step in range(steps):
        chosen = [cases[number % len(cases)] for number in range(step * size, (step + 1) * size)]
        image, label = (torch.stack([case[part][corner].double() for case in chosen]) for part in (0, 1))
        yield {"image": image, "label": label, "id": [f"case {step}"] * len(chosen)}


def same_and_step(task: Task, folder: Path, steps: int, turns: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The curves of `steps` steps, and the rates of `turns` of them."""
    return loss_curves(task, folder / "same", steps), step_rates(task, folder / "step", turns)


def step_rates(task: Task, folder: Path, turns: int) -> dict[str, Any]:
    """Floating-point operations per second of the bundle's training step, turn by turn; 1e9 of them are a GFLOP."""
    names = ("train#trainer", "optimizer", "loss", "train#inferer", "computing")
    trainer, optimizer, loss, inferer, computing = built(task, parsed(task, output_dir=str(folder)), *names)
    image = torch.rand(task.settings["batch_size"], 1, *task.patch, device=DEVICE)
    label, network = (image > 0.5).float(), trainer.network.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(image, network), label).backward()
        optimizer.step()
        _wait()

    with FlopCounterMode(display=False) as counter:
        new = new_network(task)
        loss(new(image), label).backward()
    operations = counter.get_total_flops()
    seconds = in_turns({"step": step}, turns, warmup=2)["step"]
    return {"operations": operations, "rates": [operations / one / 1e9 for one in seconds], "bfloat16": computing.amp}


def _wait() -> None:
    """A GPU computes behind the program's back."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
