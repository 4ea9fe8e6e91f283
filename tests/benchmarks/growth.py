"""How time and memory of index, split, audit and the start of a training grow with the cases of a manifest.

Each kind of work runs in a process of its own, on manifests of 100 to 100,000 cases, smallest first; an exponent is the
slope of time over cases in a plot of logarithms, from 1,000 cases on, where what costs the same at any size no longer
hides it. The files are real up to `FILES` of 16 x 16 pixels. What reads pixels beyond that would measure the disk:
near-duplicates are searched among stand-in thumbnails, all mixed from a few pictures, so that they look alike as images
of one kind do; their registration, linear in the candidates, is measured up to `REGISTERED` of them.
"""

import multiprocessing
import resource
import struct
import tempfile
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import Row, Scale

COUNTS = {Scale.FULL: (100, 1_000, 10_000, 100_000), Scale.QUICK: (50, 100)}
"""Cases; each of a patient of its own."""

FILES = 10_000
"""Cases of the thorough audit at most, which decodes them."""

REGISTERED = 10_000
"""Thumbnails at most of which candidates are also registered; a registration takes milliseconds."""

PICTURES = 10
"""Of which stand-in thumbnails are mixed: so few that each has as many candidates as an image may have."""

FITTED = 1_000
"""Cases from which on an exponent is fitted."""

LEAST = 1.0
"""MB from which on memory is fitted: less is what the process happened to have at hand."""

MOST = 1.15
"""Exponent that is still called linear: caches of the processor that no longer suffice bend a line a little."""

PICTURE = Path(__file__).with_name("growth.png")
SIDE = 16

Points = list[tuple[int, float, float]]
"""Cases, seconds, MB beyond what the process had before."""


def rows(scale: Scale) -> Iterator[Row]:
    """An exponent for each kind of work; the picture of the full scale."""
    curves: dict[str, Points] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), max(COUNTS[scale]))
        for name, work in WORKS.items():
            curves[name] = _measured(work, Path(folder), COUNTS[scale])
            yield _row(name, curves[name])
    if scale == Scale.FULL:
        draw(curves, PICTURE)


def _row(name: str, points: Points) -> Row:
    cases, seconds, megabytes = points[-1]
    note = f"{seconds:.3g} s and {megabytes:,.0f} MB at {cases:,} cases; memory grows with {in_words(points, 2)}"
    work = f"growth of {name}, {points[0][0]:,} to {cases:,} cases: exponent of time"
    return Row(work, "", [slope(points, 1)], aim={"absolute": MOST}, note=note)


def slope(points: Points, column: int) -> float:
    """The exponent of time (1) or memory (2)."""
    large = [point for point in points if point[0] >= FITTED and (column == 1 or point[2] >= LEAST)] or (
        points if column == 1 else []
    )
    values = np.log([[point[0], max(point[column], 1e-6)] for point in large])
    return float(np.polyfit(values[:, 0], values[:, 1], 1)[0]) if len(large) > 1 else float("nan")


def in_words(points: Points, column: int) -> str:
    """The exponent of time (1) or memory (2), where there is one."""
    found = slope(points, column)
    return f"exponent {found:.2f}" if np.isfinite(found) else "an exponent that cannot be told"


def _measured(work: Callable[..., Any], folder: Path, counts: tuple[int, ...]) -> Points:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(work, folder, counts, sender))
    process.start()
    sender.close()
    try:
        return list(receiver.recv())
    except EOFError:
        raise RuntimeError(f"{work.__name__} ended without a word") from None
    finally:
        process.join()


def _measure(work: Callable[..., Any], folder: Path, counts: tuple[int, ...], sender: Any) -> None:
    """The other process: each work is two functions, one that prepares and one that is measured."""
    points = []
    before = None
    for count in counts:
        if (call := work(folder, count)) is None:
            continue
        before = _resident() if before is None else before
        start = time.perf_counter()
        call()
        points.append((count, time.perf_counter() - start, max(_resident() - before, 0.01)))
    sender.send(points)


def _resident() -> float:
    """Most MB that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_files(folder: Path, count: int) -> None:
    """A PNG of noise for each case."""
    noise = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE + 1), np.uint8)
    noise[:, :, 0] = 0  # a row begins with its filter: none
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0))
    for number, pixels in enumerate(noise):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir()
        content = (
            b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(pixels.tobytes(), 1)) + _chunk(b"IEND", b"")
        )
        _path(folder, number).write_bytes(content)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number // 1000:03d}" / f"p{number:06d}.png"


def _manifest(folder: Path, count: int, *, dealt: bool) -> Any:
    """A manifest of the first files as the index makes it, without the reading; digests are stand-ins."""
    from pipeline.manifest import Case, Manifest
    from pipeline.split import split_by_patient

    cases = []
    for number in range(count):
        path, digest = _path(folder, number), f"{number:064x}"
        named = {"id": path.stem, "patient": path.stem, "image": str(path.relative_to(folder))}
        cases.append(Case(**named, label=named["image"], sha256=digest, pixels=digest))
    fields = {"name": "growth", "modality": {"0": "X"}, "labels": {"0": "all"}, "label_values": {}}
    manifest = Manifest(**fields, unassigned=cases, pseudonyms="public")
    return split_by_patient(manifest, (0.6, 0.2, 0.2), seed=0) if dealt else manifest


def indexing(folder: Path, count: int) -> Callable[[], object]:
    """The files of `count` patients into a manifest: names matched, pixels decoded, digests taken."""
    from pipeline.index import index
    from pipeline.recipe import recipe

    part = folder / f"first-{count}"
    part.mkdir()
    for thousand in sorted(folder.glob("[0-9]*"))[: max(1, count // 1000)]:
        (part / thousand.name).mkdir()
        for file in sorted(thousand.iterdir())[:count]:
            (part / thousand.name / file.name).hardlink_to(file)
    how = recipe({"name": "growth", "image": "{case}/{patient}.png", "modality": ["X"]})
    return lambda: index(part, how)


def splitting(folder: Path, count: int) -> Callable[[], object]:
    """Patients to three partitions."""
    from pipeline.split import split_by_patient

    manifest = _manifest(folder, count, dealt=False)
    return lambda: split_by_patient(manifest, (0.6, 0.2, 0.2), seed=0)


def auditing(folder: Path, count: int) -> Callable[[], object] | None:
    """Every case decoded and compared with all others."""
    from pipeline.audit import audit

    if count > FILES:
        return None
    manifest = _manifest(folder, count, dealt=True)
    return lambda: audit(manifest, folder)


def comparing(_: Path, count: int) -> Callable[[], object]:
    """The search of candidates for near-duplicates."""
    from pipeline import duplicates

    sketches = _sketches(count)
    return lambda: duplicates._candidates(sketches, np.arange(count))


def registering(_: Path, count: int) -> Callable[[], object] | None:
    """The same, and the registration of the candidates' thumbnails."""
    from concurrent.futures import ThreadPoolExecutor

    from pipeline import duplicates
    from pipeline.progress import silent

    if count > REGISTERED:
        return None
    sketches = _sketches(count)

    def search() -> object:
        with ThreadPoolExecutor() as pool:
            return duplicates._likely(sketches, duplicates._candidates(sketches, np.arange(count)), pool, silent)

    return search


def _sketches(count: int) -> dict[int, Any]:
    """Thumbnails, each between two of `PICTURES`, and their descriptors; beyond `REGISTERED` the descriptors alone."""
    from scipy import ndimage

    from pipeline import candidates, duplicates

    random = np.random.default_rng(0)
    pictures = ndimage.gaussian_filter(random.normal(size=(PICTURES, 64, 64)), (0, 3, 3)).astype(np.float32)
    shape, sketches = np.empty((64, 64), np.float32), {}
    for number in range(count):
        first, second = random.choice(PICTURES, 2, replace=False)
        image = pictures[first] + np.float32(random.uniform(0.1, 1)) * pictures[second]
        sketches[number] = duplicates.Sketch(candidates.descriptor(image), image if count <= REGISTERED else shape)
    return sketches


def starting(folder: Path, count: int) -> Callable[[], object]:
    """What a training does before its first case: manifest, cheap audit, the order of an epoch."""
    from pipeline import manifest as manifests
    from pipeline.audit import checked_cases
    from pipeline.seeding import CaseSampler

    path = folder / f"{count}.json"
    manifests.write(_manifest(folder, count, dealt=True), path)

    def start() -> object:
        cases = checked_cases(path, None, "training", ["all"], 1)
        return next(iter(CaseSampler(cases, seed=0)))

    return start


WORKS: dict[str, Callable[[Path, int], Callable[[], object] | None]] = {
    "the index": indexing,
    "the split": splitting,
    "the audit": auditing,
    "the candidates for near-duplicates": comparing,
    "the candidates and the registration of their thumbnails": registering,
    "the start of a training": starting,
}


def draw(curves: dict[str, Points], path: Path) -> None:
    """Time and memory over the cases, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, column, what in zip(figure.subplots(1, 2), (1, 2), ("seconds", "MB beyond the start"), strict=True):
        for name, points in curves.items():
            label = textwrap.fill(f"{name}: {in_words(points, column)}", 50)
            shown = [point for point in points if column == 1 or point[column] >= LEAST]
            axes.loglog([point[0] for point in shown], [point[column] for point in shown], marker="o", label=label)
        axes.set(xlabel="cases", ylabel=what)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=110)
