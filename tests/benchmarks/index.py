"""Headers a second that `pipeline.headers.scan` reads, beside a plain pydicom loop.

A tree of synthetic CT slices, both timed over all of it in turns; the starting of further processes counts.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread

from pipeline.headers import scan
from pipeline.synthetic_series import write_series
from tests.benchmarks.harness import Row, Scale, in_turns

SIZES = {Scale.FULL: (100, 200, 3), Scale.QUICK: (4, 10, 1)}
"""Series, slices in each, and turns."""

SIZE, LEAST = 64, 3.0


def make_tree(root: Path, series: int, slices: int) -> Path:
    """One file of a synthetic series, again and again with other identifiers of the same length; the folder."""
    volume = np.zeros((SIZE, SIZE, 2))
    original = write_series(volume, root / "original", spacing_mm=(1.0, 1.0, 2.0), patient_id="P")[0]
    header, content = dcmread(original), original.read_bytes()
    for one in range(series):
        folder = root / "tree" / f"patient-{one:03d}" / "study" / f"series-{one:03d}"
        folder.mkdir(parents=True)
        own = content.replace(*(_other(header.SeriesInstanceUID, one)))
        for number in range(slices):
            renamed = own.replace(*_other(header.SOPInstanceUID, one * slices + number))
            (folder / f"IM{number:05d}").write_bytes(renamed)
    return root / "tree"


def _other(uid: str, number: int) -> tuple[bytes, bytes]:
    """A UID and another of its length."""
    return uid.encode(), f"{uid[:-6]}{number + 100000}".encode()


def plain(root: Path) -> int:
    """What one writes without thinking; the headers are not even kept."""
    count = 0
    for path in root.rglob("*"):
        if path.is_file():
            dcmread(path, stop_before_pixels=True)
            count += 1
    return count


def ours(root: Path) -> int:
    """The same files through the scan of an index."""
    return len(scan(root).headers)


def rows(scale: Scale) -> Iterator[Row]:
    """Seconds for the whole tree."""
    series, slices, turns = SIZES[scale]
    with tempfile.TemporaryDirectory() as temporary:
        root = make_tree(Path(temporary), series, slices)
        if not ours(root) == plain(root) == series * slices:
            raise ValueError(f"{ours(root)} files were found where {series * slices} were written")
        taken = in_turns({"ours": lambda: ours(root), "pydicom loop": lambda: plain(root)}, turns, warmup=0)
    work = f"headers of {series * slices:,} DICOM files"
    same = "both found every file"
    yield Row(work, "s", taken.pop("ours"), taken, aim={"pydicom loop": LEAST}, same=same)
