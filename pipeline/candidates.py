"""Which of many images may be copies of each other, found without comparing each with all others.

An image is described by how strong its low frequencies are, wherever their waves lie: a move, a mirror and a turn by
180 degrees leave that as it is. Images are halved, and halved again, along lines between two of them, until so few are
left that all of these are compared; that is done `TREES` times by other lines. It takes n log n for n images, however
they lie: exact nearest neighbours in so many dimensions take n^2 (a k-d tree does).
"""

from __future__ import annotations

import numpy as np

FREQUENCIES = 8
"""Waves per side, along each axis, up to which an image is described: what JPEG and noise change is finer."""

DISTANCE = 0.2
"""Length of the difference of two descriptors, each of length 1, up to which they make candidates. Copies of 755
MRI slices and X-rays saved as JPEG of quality 40, or moved by 1 %, are within 0.1, moved by 3 % within 0.15 in 99 of
100, by 6 % within 0.2 in 98; the nearest stranger is at 0.14 in the median."""

NEAREST = 8
"""Candidates of an image at most, so that they grow with the images even where all images look alike. Moved by 3 % the
copy itself is the nearest of 4,900 in 99 of 100; the rest is for pictures of which there are several copies."""

DIMENSIONS = 16
"""In which images are halved, those in which they differ most; in a leaf the whole descriptors are compared. Of copies
moved by 6 % 16 trees find 0.97; 0.94 with 8 dimensions, 0.95 with all 144."""

TREES = 32
"""How often all images are halved down to what is compared. Copies moved by 6 % among 4,900 are found in 0.89 by 8
trees, 0.97 by 16, 0.99 by 32, which take 16 s of one processor for 100,000 images."""

LEAF = 64
"""Images at most that are compared with each other."""

BLOCK = 64
"""Leaves that are compared at once, which bounds memory."""


def descriptor(image: np.ndarray) -> np.ndarray:
    """The strength of an image's low frequencies, the same for all its flips and nearly the same for its moves.

    The window fades the borders, whose jumps would otherwise change with every move; the root keeps the lowest
    frequencies from drowning the rest. Waves along one diagonal and along the other are exchanged in a mirror: sum and
    absolute difference of the two are not.

    Args:
        image: (H, W), finite, not constant.

    Returns:
        (D,) float32 of length 1, zeros only where nothing is left of the image; D depends on the shape alone.
    """
    window = np.sqrt(np.outer(*(np.hanning(length + 2)[1:-1] for length in image.shape)))
    faded = (image - np.average(image, weights=window)) * window
    rows, columns = (np.arange(1 + min(FREQUENCIES, length // 2)) for length in image.shape)
    strength = np.sqrt(np.abs(np.fft.fft2(faded)))
    falling, rising = strength[np.ix_(rows, columns)], strength[np.ix_(rows, -columns)]
    waves = np.concatenate([(falling + rising).ravel()[1:], np.abs(falling - rising)[1:, 1:].ravel()])
    return np.asarray(waves / max(np.linalg.norm(waves), 1e-12), np.float32)


def candidates(descriptors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The pairs of images that may be copies: one is among the `NEAREST` of the other, and within `DISTANCE`.

    Args:
        descriptors: (N, D), of images of one shape.
        groups: (N,); images of one group are no candidates of each other.

    Returns:
        (M, 2) numbers, M at most `NEAREST` N, the smaller first; pairs of images that are alike follow each other.
    """
    points, random = _points(descriptors), np.random.default_rng(0)
    near = np.full((len(points), NEAREST), -1)
    distances = np.full(near.shape, np.inf, np.float32)
    place = np.arange(len(points))
    for _ in range(TREES):
        leaves = _leaves(points, random)
        near, distances = _merged(near, distances, *_compared(leaves, descriptors, groups))
        place[leaves.ravel()] = np.arange(leaves.size)
    rows, columns = np.nonzero(np.isfinite(distances))
    pairs = np.unique(np.sort(np.stack([rows, near[rows, columns]], axis=1), axis=1), axis=0)
    return np.asarray(pairs[np.argsort(place[pairs].min(1), kind="stable")])


def _points(descriptors: np.ndarray) -> np.ndarray:
    """(N, d): the descriptors along the axes of their largest variance."""
    centred = descriptors - descriptors.mean(0)
    return np.asarray(centred @ np.linalg.eigh(centred.T @ centred)[1][:, -DIMENSIONS:])


def _leaves(points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(L, n): the numbers of all points, some twice, halved along random lines until n is no more than `LEAF`."""
    halvings = max(0, int(np.ceil(np.log2(len(points) / LEAF))))
    size = -(-len(points) >> halvings)
    nodes = np.resize(random.permutation(len(points)), (1, size << halvings))
    for _ in range(halvings):
        count, size = nodes.shape
        first = random.integers(0, size, count)
        second = (first + random.integers(1, size, count)) % size
        ends = points[nodes[np.arange(count), first]] - points[nodes[np.arange(count), second]]
        along = (points[nodes] @ ends[:, :, None])[:, :, 0]
        nodes = np.take_along_axis(nodes, np.argpartition(along, size // 2, axis=1), 1).reshape(2 * count, size // 2)
    return nodes


def _compared(leaves: np.ndarray, descriptors: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of every image in its leaf, (N, n) numbers, and their distances, infinite where there is none."""
    size = min(NEAREST, leaves.shape[1])
    near = np.zeros((len(descriptors), size), int)
    distances = np.full(near.shape, np.inf, np.float32)
    for start in range(0, len(leaves), BLOCK):
        block = leaves[start : start + BLOCK]
        waves, own = descriptors[block], groups[block]
        apart = np.sqrt(np.maximum(0, 2 - 2 * waves @ waves.transpose(0, 2, 1)))
        apart[(own[:, :, None] == own[:, None]) | (apart > DISTANCE)] = np.inf
        nearest = np.argpartition(apart, size - 1, axis=2)[:, :, :size]
        near[block] = np.take_along_axis(np.broadcast_to(block[:, None], apart.shape), nearest, 2)
        distances[block] = np.take_along_axis(apart, nearest, 2)
    return near, distances


def _merged(
    near: np.ndarray, distances: np.ndarray, more: np.ndarray, more_distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of two lists of neighbours per image; who is in both counts once."""
    near, distances = np.concatenate([near, more], axis=1), np.concatenate([distances, more_distances], axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    near, distances = np.take_along_axis(near, order, 1), np.take_along_axis(distances, order, 1)
    twice = near[:, 1:] == near[:, :-1]
    distances[:, 1:][twice] = np.minimum(distances[:, 1:], distances[:, :-1])[twice]
    distances[:, :-1][twice] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :NEAREST]
    return np.take_along_axis(near, order, 1), np.take_along_axis(distances, order, 1)
