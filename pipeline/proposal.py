"""Patch, depth, batch, spacing and normalisation that a fingerprint suggests for a given memory.

The rules are those of nnU-Net's planner (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), as far as our network
allows. It differs in this: our U-Net halves all axes at every level, so a short axis limits the depth of the others; it
has at most 5 levels, since its channels double without a ceiling; one plan is made, no low-resolution cascade; nothing
is cropped to what is not zero; CT is clipped to a window and not standardised, other modalities are scaled between two
percentiles of each volume in place of mean and standard deviation; and memory is estimated, for the CPU in float32.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.case_statistics import PERCENTILES
from pipeline.errors import InputError
from pipeline.fingerprint import Fingerprint
from pipeline.patch_size import LEAST_BATCH, Step, by, ladder, largest, most_patches
from pipeline.resizing import size_within

ANISOTROPIC = 3
"""Times that an axis is coarser than the others, from which it is treated apart."""

FINE_PERCENTILE = 10
"""Of the spacings of such an axis: finer than most cases, so that few lose resolution."""

BATCH_SHARE = 0.05
"""Of all voxels of the dataset that a step sees at most, against overfitting."""

WIDTH = 32
"""Channels of the first level where nothing else is said."""

NETWORK_KEYS = ("padding", "norm", "act", "down", "up", "dropout", "channel_dropout")
"""Of a bundle's keys, those that its U-Net is built with beside depth and width."""

PLAIN_NETWORK = {"padding": "zeros", "norm": "instance"}
"""What the memory is estimated for where no bundle is named."""

CT_WORDS = {"CT", "CTA"}
"""What a channel of Hounsfield units is called, and what DICOM calls its modality."""


@dataclass(frozen=True)
class Proposal:
    """What to train with; `overrides` gives it as a bundle's keys.

    `median_size` is in voxels at `spacing_mm`, which is None for images and where no case has one; `memory_gb` is the
    estimate for one step of `batch_size` patches, `cases_gb` what all training cases take if they are kept in memory,
    `budget_gb` what a step was allowed; `window` is None unless all channels are CT, `percentiles` is None where
    `window` is not; `padded` are the ids of cases that are smaller than the patch.
    """

    spacing_mm: list[float] | None
    median_size: list[int]
    patch: list[int]
    depth: int
    width: int
    batch_size: int
    window: list[float] | None
    percentiles: list[float] | None
    memory_gb: float
    cases_gb: float
    budget_gb: float
    padded: list[str]

    def overrides(self) -> dict[str, Any]:
        """The keys of a bundle and their values; the patch of an image is one number."""
        return {
            "patch": self.patch[0] if len(self.patch) == 2 else self.patch,
            "depth": self.depth,
            "width": self.width,
            "batch_size": self.batch_size,
            "spacing_mm": self.spacing_mm,
            "window": self.window,
            "percentiles": self.percentiles,
        }

    def lines(self) -> list[str]:
        """The proposal in words."""
        cases = f"median case {by(self.median_size)}"
        at = f"at {by(self.spacing_mm)} mm ({cases})" if self.spacing_mm else f"as stored ({cases})"
        clip = f"window {self.window}, of all foreground" if self.window else f"percentiles {self.percentiles} per case"
        why = "the least" if self.batch_size == LEAST_BATCH else f"as many as fit, or {BATCH_SHARE:.0%} of all voxels"
        return [
            f"Proposal: patch {by(self.patch)} {at}, {self.depth} levels, width {self.width}, intensities: {clip}.",
            f"A step of {self.batch_size} patches ({why}) takes about {self.memory_gb:.2g} of {self.budget_gb:g} GB "
            "(CPU, float32).",
        ]


def propose(
    found: Fingerprint, memory_gb: float, *, settings: Mapping[str, Any] | None = None, width: int | None = None
) -> Proposal:
    """Choose what to train with.

    Args:
        found: the fingerprint of the training cases.
        memory_gb: what one training step may take, 10**9 bytes.
        settings: the keys of a bundle: the network is that of `NETWORK_KEYS`, as wide as `width` says, and sees images
            whose longest side is `size`.
        width: channels of the first level; None for the bundle's, else `WIDTH`.

    Raises:
        InputError: not even the smallest patch fits, or this network cannot be planned for.
    """
    settings = settings or {}
    channels = width or settings.get("width") or WIDTH
    spacing = target_spacing_mm(found) if found.spatial_dims == 3 else None  # images are not resampled by spacing
    sizes = sizes_seen(found, spacing, settings.get("size"))
    median = [max(1, round(size)) for size in np.median(sizes, axis=0)]
    whole = median if found.spatial_dims == 3 else [min(median)] * 2
    step = Step(len(found.channels), max(2, len(found.classes)), channels, _network_keywords(found, settings))
    budget = memory_gb * 1e9
    patch, depth = largest(list(ladder(whole, spacing)), step, budget)
    batch = most_patches(step, patch, depth, budget, BATCH_SHARE * sizes.prod(axis=1).sum())
    window = _window(found)
    return Proposal(
        spacing_mm=spacing,
        median_size=median,
        patch=list(patch),
        depth=depth,
        width=channels,
        batch_size=batch,
        window=window,
        percentiles=None if window else [PERCENTILES[0], PERCENTILES[-1]],
        memory_gb=step.bytes(patch, depth, batch) / 1e9,
        cases_gb=float(sizes.prod(axis=1).sum()) * (4 * len(found.channels) + 1) / 1e9,  # float32 and a uint8 label
        budget_gb=memory_gb,
        padded=[case.id for case, size in zip(found.cases, sizes, strict=True) if (size < patch).any()],
    )


def target_spacing_mm(found: Fingerprint) -> list[float] | None:
    """The median spacing; of an axis that is much coarser than the others a low percentile; None if none is known.

    An axis is much coarser where its median spacing is more than `ANISOTROPIC` times that of the others and it has
    fewer voxels by the same factor. Its spacing stays at least that of the others.
    """
    spacings = found.spacings_mm
    if not len(spacings):
        return None
    target, sizes = np.median(spacings, axis=0), np.median(found.sizes, axis=0)
    worst = int(target.argmax())
    others = np.delete(target, worst).max()
    few = sizes[worst] * ANISOTROPIC < np.delete(sizes, worst).min()
    if target[worst] > ANISOTROPIC * others and few:
        target[worst] = max(np.percentile(spacings[:, worst], FINE_PERCENTILE), others)
    return [float(f"{side:.4g}") for side in target]


def sizes_seen(found: Fingerprint, spacing_mm: Sequence[float] | None, longest: int | None = None) -> np.ndarray:
    """Size of every case as the network sees it, (cases, axes): volumes at a spacing, images at their longest side."""
    if found.spatial_dims == 2:
        return np.array([size_within(case.size, longest) if longest else case.size for case in found.cases], float)
    zoomed = [
        np.round(np.array(case.size) * case.spacing_mm / spacing_mm) if case.spacing_mm and spacing_mm else case.size
        for case in found.cases
    ]
    return np.maximum(np.array(zoomed, float), 1)


def words(
    proposal: Proposal,
    manifest: str,
    *,
    dataset_dir: str | None = None,
    bundle: str = "BUNDLE",
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, list[str]]:
    """The command that trains as proposed, and the keys that the bundle does not have and that are left out.

    A key that is to be null is named where the bundle has a value for it.

    Args:
        proposal: what to train with.
        manifest: path of the manifest.
        dataset_dir: folder of the manifest's paths, where it is not the manifest's own.
        bundle: name of the bundle.
        settings: keys of its training; None where no bundle is named.
    """
    said = ["overtile", "run", bundle, "training", "--manifest", manifest]
    said += ["--dataset_dir", dataset_dir] if dataset_dir else []
    missing = []
    for key, value in proposal.overrides().items():
        if settings is not None and key not in settings:
            missing += [key] if value is not None else []
        elif value is not None or (settings or {}).get(key) is not None:
            said += [f"--{key}", str(value).replace(" ", "")]
    return shlex.join(said), missing


def is_ct(found: Fingerprint) -> bool:
    """Whether every channel is CT, by its name or by the DICOM modality of all cases."""
    names = [set(re.split(r"[^A-Z]+", name.upper())) for name in found.channels]
    return found.modality == "CT" or all(name & CT_WORDS and "PET" not in name for name in names)


def _window(found: Fingerprint) -> list[float] | None:
    """The outer percentiles of the foreground of all cases, where all channels are CT."""
    if not is_ct(found):
        return None
    channels = found.foreground or [values for case in found.cases for values in case.intensities]
    ends = [min(c.percentiles[0] for c in channels), max(c.percentiles[-1] for c in channels)]
    return [float(f"{end:.4g}") for end in ends]


def _network_keywords(found: Fingerprint, settings: Mapping[str, Any]) -> dict[str, Any]:
    dims = settings.get("spatial_dims", found.spatial_dims)
    if dims != found.spatial_dims:
        raise InputError(
            f"the cases have {found.spatial_dims} axes, the bundle's network {dims}; name another --bundle"
        )
    if settings.get("encoder"):
        raise InputError(
            f"the bundle's encoder is {settings['encoder']}, this plans for its own U-Net: name another one"
        )
    if settings.get("padding") == "valid":
        raise InputError("the bundle's network has `padding: valid`, whose sizes are its own: plan for a padded one")
    return PLAIN_NETWORK | {key: settings[key] for key in NETWORK_KEYS if key in settings}
