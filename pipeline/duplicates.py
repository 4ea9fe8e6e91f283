"""Images that are copies of each other though no byte is the same, and the clusters that they make."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.candidates import candidates, descriptor
from pipeline.loading import LoadCased
from pipeline.manifest import BLANK, Case, Manifest, as_item
from pipeline.pictures import is_image, read_page
from pipeline.progress import Progress, silent
from pipeline.registration import (
    Prepared,
    Registration,
    best_shift,
    comparable,
    prepared,
    refined,
    resized,
    thumbnail,
)
from pipeline.seams import seams

DUPLICATE = 0.99
"""Correlation after registration above which two images are copies. Of 655 MRI slices and 100 chest X-rays the most
alike of two patients reach 0.984 and 0.971."""

DUPLICATE_EDGES = 0.93
"""What the strength of the edges must correlate by as well: slices at the top of the skull are black but for a spot,
which alone correlates. Slices of two patients reach 0.88 in their edges; JPEG copies of quality 40 keep 0.95."""

EVERY_PAIR = 20_000
"""Up to so many pairs (200 images) all are candidates: descriptors miss copies that were moved by more than 6 %."""

THUMBNAILS = 0.8
"""Correlation of thumbnails below which a candidate is dropped. A move by half a thumbnail's pixel costs copies of
small nuclei up to 0.2, ..."""

LARGER = 0.9
"""... and at twice the size and above less than 0.1."""

COMPARED = 512
"""Longest side, in pixels, of what is confirmed: more shows noise, not anatomy, and costs time."""

BLOCK = 16
"""Candidates whose thumbnails one thread registers before it asks for more."""

PREPARED = 400
"""Thumbnails whose spectra are kept, 0.2 MB each: candidates that are alike follow each other."""

Reader = Callable[[], np.ndarray]
"""Reads an image, (H, W), whenever it is needed."""


class Pair(NamedTuple):
    """Two copies by their numbers, the smaller first, and how the second lies on the first."""

    first: int
    second: int
    registration: Registration


class Search(NamedTuple):
    """What a search found: copies, most alike first; how many pairs were tried; images that show nothing."""

    pairs: list[Pair]
    candidates: int
    blank: list[int]


class Sketch(NamedTuple):
    """What is kept of an image: its descriptor, (D,), and its thumbnail."""

    descriptor: np.ndarray
    thumbnail: np.ndarray


class _Likely(NamedTuple):
    """A pair whose thumbnails correlate, and where."""

    first: int
    second: int
    shift: tuple[int, int]
    flip: tuple[int, int]


def grey_page(path: Path, page: int | None = None) -> np.ndarray:
    """The mean over the channels of a page, (H, W) float32; a constant alpha channel does not change a correlation.

    Raises:
        InputError: the file cannot be read.
    """
    return read_page(path, page).mean(0, dtype=np.float32)


def planes(volume: np.ndarray) -> np.ndarray:
    """A volume as a picture in which a mirrored patient is a mirrored picture: its middle planes, left and right alike.

    Args:
        volume: (C, X, Y, Z) in RAS; or (C, H, W), an image.

    Returns:
        (Y + Z, X) float32, axial above coronal, the mean over the channels; or (H, W).
    """
    grey: np.ndarray = volume.mean(0, dtype=np.float32)
    if grey.ndim == 2:
        return grey
    return np.concatenate([grey[:, :, grey.shape[2] // 2].T, grey[:, grey.shape[1] // 2].T])


def near_duplicates(
    images: Sequence[Reader],
    *,
    sketches: Sequence[Sketch | None] | None = None,
    groups: Sequence[Hashable] | None = None,
    progress: Progress = silent,
) -> Search:
    """Find images that are copies of each other: saved anew, brightened, moved, mirrored, turned upside down, resized.

    Candidates are the nearest others of every image (`pipeline.candidates`), or all pairs if they are few; they are
    registered as thumbnails, then as they are. A copy correlates above `DUPLICATE`, its edges above `DUPLICATE_EDGES`.
    Time grows as n log n with the images. Of more copies of one picture than `candidates.NEAREST`, each is paired with
    some of the others.
    Negatives, turns by 90 degrees, crops of less than half and images of other proportions are not found.

    Args:
        images: each is read once for its sketch, and again for every pair that passed as thumbnails.
        sketches: of the images, by `sketch`, where they are known already.
        groups: of each image, say its patient; pairs inside a group are not looked at.
        progress: told about images and pairs.
    """
    with ThreadPoolExecutor() as pool:
        if sketches is None:
            found = pool.map(lambda reader: sketch(reader()), images)
            sketches = list(progress(found, len(images), "thumbnails"))
        seen = {number: one for number, one in enumerate(sketches) if one is not None}
        kinds = np.unique([str(group) for group in groups], return_inverse=True)[1] if groups else None
        tried = _candidates(seen, np.arange(len(images)) if kinds is None else kinds)
        likely = _likely(seen, tried, pool, progress)
        confirmed = pool.map(lambda pair: _confirmed(images, pair), likely)
        pairs = [pair for pair in progress(confirmed, len(likely), "pairs compared") if pair is not None]
    blank = [number for number in range(len(images)) if number not in seen]
    return Search(sorted(pairs, key=lambda pair: -pair.registration.correlation), len(tried), blank)


def clusters(manifest: Manifest, root: Path, progress: Progress = silent) -> dict[str, str]:
    """Group cases that a split must not divide where no patient is known.

    In one cluster are copies (`near_duplicates`, and equal pixels) and neighbouring tiles of one larger picture
    (`pipeline.seams`), and whoever is connected through them. Tiles whose common border runs through empty background
    cannot be recognised: a cluster may be too small, never is it the whole experiment.

    Args:
        manifest: of the cases; their patients are not looked at.
        root: folder that its paths are relative to.
        progress: told about images and pairs.

    Returns:
        Case id -> name, `cluster-001` for that of the smallest case id.

    Raises:
        InputError: an image cannot be read.
    """
    cases = sorted((case for _, case in manifest.cases()), key=lambda case: case.id)
    images = readers(cases, root)
    links = [(pair.first, pair.second) for pair in near_duplicates(images, progress=progress).pairs]
    links += [(seam.first, seam.second) for seam in seams(images, progress=progress)]
    links += _equal([case.pixels for case in cases])
    ends = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (ends[0], ends[1])), shape=(len(cases), len(cases)))
    names: dict[int, str] = {}
    members = connected_components(graph, directed=False)[1]
    return {
        case.id: names.setdefault(int(member), f"cluster-{len(names) + 1:03d}")
        for case, member in zip(cases, members, strict=True)
    }


def readers(cases: Sequence[Case], root: Path) -> list[Reader]:
    """What reads the grey image of every case."""

    def reader(case: Case) -> Reader:
        if is_image(Path(case.images[0])):
            return lambda: grey_page(root / case.images[0], case.page)
        return lambda: planes(torch.as_tensor(LoadCased("image")(as_item(case, root))["image"]).numpy())

    return [reader(case) for case in cases]


def same_size(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two images of one proportion, (H, W), both at the size of the smaller, `COMPARED` at most."""
    smaller = min((first, second), key=lambda image: image.size)
    share = min(1.0, COMPARED / max(smaller.shape))
    shape = (max(1, round(smaller.shape[0] * share)), max(1, round(smaller.shape[1] * share)))
    return resized(first, shape), resized(second, shape)


def _equal(digests: Sequence[str | None]) -> list[tuple[int, int]]:
    seen: dict[str, int] = {}
    return [
        (seen.setdefault(digest, number), number)
        for number, digest in enumerate(digests)
        if digest and not digest.startswith(BLANK)
    ]


def sketch(image: np.ndarray) -> Sketch | None:
    """What is kept of an image, (H, W); None of one that is constant or not finite: it correlates with nothing."""
    if not comparable(image):
        return None
    small = thumbnail(image)
    if not comparable(small):
        return None
    return Sketch(descriptor(small), small)


def _candidates(sketches: dict[int, Sketch], groups: np.ndarray) -> np.ndarray:
    """(M, 2): pairs of other groups that may be copies, of thumbnails of one shape, the smaller number first."""
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in sorted(sketches):
        shapes[sketches[number].thumbnail.shape].append(number)
    every = len(sketches) * (len(sketches) - 1) // 2 <= EVERY_PAIR
    found = [np.empty((0, 2), int)]
    for members in shapes.values():
        numbers = np.array(members)
        if every:
            pairs = numbers[np.stack(np.triu_indices(len(numbers), 1), axis=1)]
            found.append(pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]])
        else:
            own = np.stack([sketches[number].descriptor for number in members])
            found.append(numbers[candidates(own, groups[numbers])])
    return np.concatenate(found)


def _likely(
    sketches: dict[int, Sketch], pairs: np.ndarray, pool: ThreadPoolExecutor, progress: Progress
) -> list[_Likely]:
    """The candidates whose thumbnails correlate."""

    @lru_cache(PREPARED)
    def ready(number: int) -> Prepared:
        return prepared(sketches[number].thumbnail)

    def tried(block: np.ndarray) -> list[_Likely]:
        found = []
        for first, second in block.tolist():
            correlation, shift, flip = best_shift(ready(first), ready(second))
            if correlation > THUMBNAILS:
                found.append(_Likely(first, second, shift, flip))
        return found

    blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    results = progress(pool.map(tried, blocks), len(blocks), "candidates")
    return [pair for found in results for pair in found]


def _confirmed(images: Sequence[Reader], likely: _Likely) -> Pair | None:
    first, second = same_size(images[likely.first](), images[likely.second]())
    registration = refined(first, second, likely.shift, likely.flip, least=LARGER)
    copies = registration.correlation > DUPLICATE and registration.edges > DUPLICATE_EDGES
    return Pair(likely.first, likely.second, registration) if copies else None
