"""What of a dataset's fingerprint someone should think about before training, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.fingerprint import Fingerprint
from pipeline.proposal import ANISOTROPIC, Proposal, is_ct

VARIES = 2
"""Times between the finest and the coarsest spacing of an axis, from which it is said."""

SCALES = 100
"""Times between the largest and the smallest 99.5th percentile of two cases, from which it is said."""

AIR = (-2048, -900)
"""Where the darkest voxels of most CT lie, Hounsfield units."""

FEW_LEVELS = 3
"""Levels of a network below which a short axis is said to have limited it."""

NAMED = 3
"""Cases that a sentence names."""


def cautions(found: Fingerprint, proposal: Proposal) -> list[str]:
    """What stands out in the data, or follows for the proposal."""
    return [*_cases(found), *_classes(found), *_spacings(found), *_intensities(found), *_sizes(found, proposal)]


def axis_names(dims: int) -> tuple[str, ...]:
    """Of an image's or a volume's axes, as tables and pictures name them."""
    return ("height", "width") if dims == 2 else ("X", "Y", "Z")


def _cases(found: Fingerprint) -> Iterator[str]:
    if found.partition == "unassigned":
        yield (
            f"The manifest is not split: all {len(found.cases)} cases were looked at, those of a later test partition "
            "among them. `overtile split` first, then this again."
        )
    if found.left_out:
        yield f"{found.left_out} unassigned cases were left out; `overtile split` deals them."
    if unlabelled := [case.id for case in found.cases if case.voxels is None]:
        yield f"Without a label: {_of(unlabelled, found)}."


def _classes(found: Fingerprint) -> Iterator[str]:
    labelled = [case.voxels for case in found.cases if case.voxels is not None]
    for name in found.classes[1:]:
        if labelled and not any(voxels[name] for voxels in labelled):
            yield f"Class {name} is in no case that was looked at: a network cannot learn it."


def _spacings(found: Fingerprint) -> Iterator[str]:
    spacings, names = found.spacings_mm, axis_names(found.spatial_dims)
    if unknown := [case.id for case in found.cases if case.spacing_mm is None]:
        yield f"Spacing unknown: {_of(unknown, found)}. Sizes are voxels, volumes of classes are not known."
    if not len(spacings):
        return
    for name, low, high in zip(names, spacings.min(axis=0), spacings.max(axis=0), strict=True):
        if high > VARIES * low:
            yield (
                f"Spacing along {name} varies from {low:g} to {high:g} mm: without resampling, one patch shows "
                "different extents of the body."
            )
    median = np.median(spacings, axis=0)
    worst = int(median.argmax())
    if (ratio := median[worst] / median.min()) > ANISOTROPIC:
        yield (
            f"Anisotropic: voxels are {ratio:.1f} times longer along {names[worst]} ({median[worst]:g} mm) than "
            "across. This U-Net halves all axes alike, so that axis limits its depth; nnU-Net halves the others more "
            "often."
        )


def _intensities(found: Fingerprint) -> Iterator[str]:
    types = Counter(case.dtype for case in found.cases if case.dtype)
    if len(types) > 1:
        listed = ", ".join(f"{kind} ({count})" for kind, count in types.most_common())
        yield f"Files hold different types: {listed}. Perhaps they were converted in different ways."
    for channel, name in enumerate(found.channels):
        high = {case.id: case.intensities[channel].percentiles[-1] for case in found.cases}
        low_case, high_case = min(high, key=lambda k: high[k]), max(high, key=lambda k: high[k])
        if high[low_case] > 0 and high[high_case] > SCALES * high[low_case]:
            yield (
                f"Intensities of {name} are of different scales: the 99.5th percentile is {high[low_case]:g} in "
                f"{low_case} and {high[high_case]:g} in {high_case}. Normalise every case by itself."
            )
        dark = float(np.median([case.intensities[channel].minimum for case in found.cases]))
        if AIR[0] <= dark <= AIR[1] and not is_ct(found):
            yield (
                f"{name} looks like CT (its darkest voxels are near {dark:g}, air in Hounsfield units), but is not "
                "called so: name the modality CT to get a fixed window."
            )


def _sizes(found: Fingerprint, proposal: Proposal) -> Iterator[str]:
    if proposal.padded:
        yield f"Smaller than the patch along some axis, and so padded: {_of(proposal.padded, found)}."
    if proposal.depth < FEW_LEVELS:
        short = axis_names(found.spatial_dims)[int(np.argmin(proposal.median_size))]
        yield (
            f"Only {proposal.depth} levels: the median case has {min(proposal.median_size)} voxels along {short}. "
            "Consider slices and a 2D network."
        )
    if proposal.cases_gb + proposal.memory_gb > proposal.budget_gb:
        yield (
            f"A bundle that keeps its training cases in memory needs {proposal.cases_gb:.2g} GB for them beside the "
            f"step's {proposal.memory_gb:.2g} GB: more than {proposal.budget_gb:g} GB, unless the step is on a GPU."
        )


def _of(ids: list[str], found: Fingerprint) -> str:
    """`3 of 10 cases (a, b, c)`."""
    if len(ids) == len(found.cases):
        return "all cases"
    return f"{len(ids)} of {len(found.cases)} cases ({', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''})"
