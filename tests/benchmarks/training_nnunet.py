"""nnU-Net's own trainer on the benchmark's cases, with a network of the same size and without deep supervision.

It reads, augments, validates and logs as it does by itself: its plan is changed in the patch, the batch and the
network alone, and its epochs are as long as ours. Its loss has no smoothing in common with MONAI's, its optimizer is
SGD, its augmentation another (no elastic deformation; blur, low resolution and mirrors instead): what is compared is
images per second.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from tests.benchmarks.training_task import DEVICE, Task

NAME, TRAINER = "Dataset001_Benchmark", "nnUNetTrainerNoDeepSupervision"

PARTITIONS = ("training", "validation")

Turns = Callable[[], contextlib.AbstractContextManager[None]]


def nnunet(task: Task, folder: Path, epochs: int, turns: Turns) -> None:
    """Its training, an epoch a turn."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(folder / variable)
        (folder / variable).mkdir()
    dataset, plans, configuration = _prepared(task, folder)
    from nnunetv2.training.nnUNetTrainer.variants import network_architecture

    module = importlib.import_module(f"{network_architecture.__name__}.{TRAINER}")
    trainer = getattr(module, TRAINER)(
        plans | {"continue_training": False}, configuration, 0, dataset, torch.device(DEVICE)
    )
    trainer.num_epochs = epochs
    trainer.num_iterations_per_epoch = task.images_per_epoch // task.settings["batch_size"]
    trainer.num_val_iterations_per_epoch = max(1, len(task.files("validation")) // task.settings["batch_size"])
    trainer.on_train_start()
    for _ in range(epochs):
        trainer.on_epoch_start()
        with turns():
            _epoch(trainer)
        trainer.on_epoch_end()
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


def _epoch(trainer: Any) -> None:
    """One round of `nnUNetTrainer.run_training`, but for the plot that it draws at the end.

    Beside its 250 steps that is nothing, beside our few it would be seconds.
    """
    trainer.on_train_epoch_start()
    steps = range(trainer.num_iterations_per_epoch)
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in steps])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        rounds = range(trainer.num_val_iterations_per_epoch)
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val)) for _ in rounds])


def _prepared(task: Task, folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Its dataset.json and its plans, the data preprocessed by them."""
    home = folder / "nnUNet_raw" / NAME
    split = {"train": _copied(task, "training", home), "val": _copied(task, "validation", home)}
    names = task.settings["class_names"]
    labels = {"background": 0} | {name: number for number, name in enumerate(names) if number}
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz"}
    dataset["numTraining"] = len(split["train"]) + len(split["val"])
    (home / "dataset.json").write_text(json.dumps(dataset))

    configuration = "2d" if task.dims == 2 else "3d_fullres"
    done = folder / "nnUNet_preprocessed" / NAME
    done.mkdir()
    (done / "splits_final.json").write_text(json.dumps([split]))
    (done / "dataset_fingerprint.json").write_text(json.dumps(_fingerprint(task)))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    plan_experiments([1])
    shutil.copy(home / "dataset.json", done)
    plans = json.loads((done / "nnUNetPlans.json").read_text())
    _give_network(plans["configurations"][configuration], task)
    _preprocess(split["train"] + split["val"], home, done, dataset, plans, configuration)
    return dataset, plans, configuration


def _fingerprint(task: Task) -> dict[str, Any]:
    """What it plans by: spacings, sizes, intensities. (Its own extractor starts processes for that.)"""
    arrays = [nib.load(files["image"]).get_fdata() for part in PARTITIONS for files in task.files(part)]
    values = np.concatenate([array.ravel() for array in arrays])
    low, middle, high = np.percentile(values, [0.5, 50, 99.5])
    figures = {"mean": values.mean(), "median": middle, "std": values.std(), "min": values.min(), "max": values.max()}
    figures |= {"percentile_00_5": low, "percentile_99_5": high}
    shapes = [[1] * (3 - task.dims) + list(array.shape[::-1]) for array in arrays]
    return {
        "spacings": [[999.0] * (3 - task.dims) + [1.0] * task.dims for _ in arrays],
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {"0": {name: float(one) for name, one in figures.items()}},
        "median_relative_size_after_cropping": 1.0,
    }


def _preprocess(
    names: list[str], home: Path, done: Path, dataset: dict[str, Any], plans: dict[str, Any], configuration: str
) -> None:
    """Write the cases as its own preprocessor does, one after the other in this process."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    chosen, preprocessor = manager.get_configuration(configuration), DefaultPreprocessor(verbose=False)
    target = done / chosen.data_identifier
    target.mkdir(exist_ok=True)
    for name in names:
        image, label = home / f"imagesTr/{name}_0000.nii.gz", home / f"labelsTr/{name}.nii.gz"
        preprocessor.run_case_save(str(target / name), [str(image)], str(label), manager, chosen, dataset)


def _copied(task: Task, partition: str, home: Path) -> list[str]:
    """Put the cases of a partition where it looks for them; their names."""
    names = []
    for files in task.files(partition):
        name = Path(files["image"]).name.removesuffix("_image.nii.gz")
        for place, file, ending in (("imagesTr", files["image"], "_0000"), ("labelsTr", files["label"], "")):
            (home / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, home / place / f"{name}{ending}.nii.gz")
        names.append(name)
    return names


def _give_network(plan: dict[str, Any], task: Task) -> None:
    """The patch, the batch and the size of the network: 3^dims convolutions, batch norm and ReLU, as ours has."""
    depth, dims = task.settings["depth"], task.dims
    plan |= {"patch_size": list(task.patch), "batch_size": task.settings["batch_size"], "batch_dice": False}
    plan["architecture"]["arch_kwargs"] |= {
        "n_stages": depth,
        "features_per_stage": [task.settings["width"] * 2**level for level in range(depth)],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * depth,
        "strides": [[1] * dims] + [[2] * dims] * (depth - 1),
        "n_conv_per_stage": [2] * depth,
        "n_conv_per_stage_decoder": [2] * (depth - 1),
        "conv_bias": False,
        "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.ReLU",
        "nonlin_kwargs": {"inplace": True},
    }
