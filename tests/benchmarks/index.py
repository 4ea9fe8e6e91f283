"""Headers a second that `pipeline.headers.scan` reads, beside a plain pydicom loop; exit code 1 below 3 x.

A tree of 8,000 synthetic CT slices in 40 series, both timed over all of it in the same run, in turns; the starting of
further processes counts. The better of two turns is told: other work on the machine slows both down.
"""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from pydicom import dcmread

from pipeline.headers import scan
from pipeline.synthetic_series import write_series

SERIES, SLICES, SIZE, TURNS, LEAST = 40, 200, 64, 2, 3.0


def make_tree(root: Path) -> None:
    """One file of a synthetic series, again and again with other identifiers of the same length."""
    volume = np.zeros((SIZE, SIZE, 2))
    original = write_series(volume, root / "original", spacing_mm=(1.0, 1.0, 2.0), patient_id="P")[0]
    header, content = dcmread(original), original.read_bytes()
    for series in range(SERIES):
        folder = root / f"patient-{series:02d}" / "study" / f"series-{series:03d}"
        folder.mkdir(parents=True)
        own = content.replace(*(_other(header.SeriesInstanceUID, series)))
        for number in range(SLICES):
            renamed = own.replace(*_other(header.SOPInstanceUID, series * SLICES + number))
            (folder / f"IM{number:05d}").write_bytes(renamed)


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


def main() -> int:
    """Let them take turns and say both rates."""
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder))
        rates: dict[str, list[float]] = {"pipeline.headers": [], "a pydicom loop": []}
        for _ in range(TURNS):
            for name, read in (("a pydicom loop", plain), ("pipeline.headers", ours)):
                start = perf_counter()
                count = read(Path(folder))
                rates[name].append(count / (perf_counter() - start))
    best = {name: max(measured) for name, measured in rates.items()}
    ratio = best["pipeline.headers"] / best["a pydicom loop"]
    for name, rate in best.items():
        sys.stdout.write(f"index: {count} DICOM files, {name}: {rate:,.0f} headers a second\n")
    sys.stdout.write(f"index: {ratio:.1f} x\n")
    return int(ratio < LEAST)


if __name__ == "__main__":
    sys.exit(main())
