"""What five readers make of the same DICOM series, good ones and spoilt ones: two tables in Markdown.

A series has another value in every voxel, so each voxel that a reader returns says by its value where it lies: at the
place that the standard's equation (PS3.3 C.7.6.2.1.1) gives for its file. What is said of a reader is how far from there
its affine puts it, at worst, how many of the slices came through, and whether it said a word. Exit code 1 if ours accepts
what it must refuse, or refuses what is good.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_rescale, pixel_array

from pipeline.defects import DEFECTS
from pipeline.dicom import read_series
from pipeline.errors import InputError
from pipeline.quirks import QUIRKS
from pipeline.synthetic_series import write_series

SIZE = (24, 20, 8)
VOLUME = np.arange(np.prod(SIZE)).reshape(SIZE) - 1000
SPACING_MM, PLACE_MM = (0.9, 0.8, 3.0), (10.0, -20.0, 30.0)
C, S = np.cos(0.2), np.sin(0.2)
DIRECTION = np.array([[-C, S, 0], [-S, -C, 0], [0, 0, 1]])

EQUAL_MM = 0.02
"""Nearer is the same place: positions of one variant are rounded to 0.01 mm."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
EVERYTHING = 1 << 16


class Volume(NamedTuple):
    """What a reader returns: values (X, Y, Z), and index to mm in RAS."""

    values: np.ndarray
    affine: np.ndarray
    resampled: bool = False


class Answer(NamedTuple):
    """Volumes that a reader returns, and whether it warned; or why it returns none."""

    volumes: list[Volume]
    warned: bool = False
    refusal: str = ""


def ours(folder: Path) -> list[Volume]:
    """`pipeline.dicom`."""
    series = read_series(folder)
    return [Volume(series.volume, series.affine)]


def dcm2niix(folder: Path) -> list[Volume]:
    """The converter, with its default settings; what it prints goes to standard error."""
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "%j", "-o", out, folder]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        noise = "Unable to determine manufacturer"  # of every synthetic series
        os.write(2, "\n".join(line for line in told.stdout.splitlines() if noise not in line).encode())
        found = []
        for path in sorted(Path(out).glob("*.nii")):
            image = nib.load(path)
            found.append(
                Volume(np.asarray(image.get_fdata()), image.affine, "_Eq" in path.name or "_Tilt" in path.name)
            )
        return found


def simpleitk(folder: Path) -> list[Volume]:
    """ImageSeriesReader on the names that GDCM sorts, for every series that it finds."""
    import SimpleITK

    volumes = []
    for uid in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder), False):
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid, False, True))
        image = reader.Execute()
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        volumes.append(Volume(SimpleITK.GetArrayFromImage(image).T, LPS_TO_RAS @ affine))
    return volumes


def monai_pydicom(folder: Path) -> list[Volume]:
    """PydicomReader of MONAI."""
    from monai.data import PydicomReader

    return _monai(PydicomReader(), folder)


def monai_itk(folder: Path) -> list[Volume]:
    """ITKReader of MONAI."""
    from monai.data import ITKReader

    return _monai(ITKReader(), folder)


def _monai(reader: object, folder: Path) -> list[Volume]:
    values, meta = reader.get_data(reader.read(str(folder)))
    return [Volume(np.asarray(values), np.asarray(meta["affine"], dtype=float))]


READERS: dict[str, Callable[[Path], list[Volume]]] = {
    "ours": ours,
    "dcm2niix": dcm2niix,
    "SimpleITK": simpleitk,
    "MONAI PydicomReader": monai_pydicom,
    "MONAI ITKReader": monai_itk,
}


def at_hand() -> dict[str, Callable[[Path], list[Volume]]]:
    """The readers that are installed."""
    missing = {"dcm2niix"} if shutil.which("dcm2niix") is None else set()
    if importlib.util.find_spec("SimpleITK") is None:
        missing.add("SimpleITK")
    return {name: reader for name, reader in READERS.items() if name not in missing}


def ask(reader: Callable[[Path], list[Volume]], folder: Path) -> Answer:
    """One reader's answer; a word that begins with "warn" on standard error, or Python's, is a warning."""
    with heard() as said:
        try:
            volumes = reader(folder)
        except InputError as error:
            return Answer([], refusal=str(getattr(error, "rule", "") or "refused"))
        except Exception:
            return Answer([], refusal="error")
    if not volumes:
        return Answer([], refusal="error")
    return Answer(volumes, warned=any(word in said[0].lower() for word in ("warn", "error")))


@contextmanager
def heard() -> Iterator[list[str]]:
    """What is said meanwhile: the text of standard error, of C++ too, and Python's warnings, as its one element."""
    said = [""]
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said[0] = file.read().decode(errors="replace")
            said[0] += "".join(
                f"warning: {w.message}" for w in caught if not issubclass(w.category, DeprecationWarning)
            )


def places(folder: Path, known: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """File -> (value, 3) mm in RAS where the file has that value, NaN where it does not.

    Args:
        folder: of the series.
        known: places to take for files that no longer say theirs.
    """
    found = dict(known or {})
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = dcmread(path, force=path.suffix == ".dcm")
            values = apply_rescale(pixel_array(header), header).astype(int) + EVERYTHING // 2
            row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            first = np.array(header.ImagePositionPatient, float)
            between_rows, between_columns = map(float, header.PixelSpacing)
        except (AttributeError, InvalidDicomError, KeyError, NotImplementedError, RuntimeError, ValueError):
            continue
        i, j = np.indices(values.shape)
        lps = first + i[..., None] * between_rows * column + j[..., None] * between_columns * row
        found[path.name] = np.full((EVERYTHING, 3), np.nan)
        found[path.name][values] = lps * [-1, -1, 1]
    return found


def off_mm(volume: Volume, truth: dict[str, np.ndarray]) -> np.ndarray:
    """Of each voxel, how far it is put from the nearest place of its value, mm; NaN for values of no file."""
    whole = np.clip(np.nan_to_num(volume.values), -EVERYTHING // 2, EVERYTHING // 2 - 1).astype(int) + EVERYTHING // 2
    claimed = nib.affines.apply_affine(volume.affine, np.argwhere(np.ones(whole.shape, bool)))
    away = [np.linalg.norm(place[whole.ravel()] - claimed, axis=1) for place in truth.values()]
    return np.fmin.reduce(away)


def words(answer: Answer, truth: dict[str, np.ndarray]) -> str:
    """An answer in a few words."""
    if answer.refusal:
        return answer.refusal
    volumes = [volume for volume in answer.volumes if not volume.resampled]
    if any(volume.values.ndim != 3 for volume in volumes):
        return f"{volumes[0].values.ndim}D"
    told = [f"{len(volumes)} volumes"] if len(volumes) > 1 else []
    slices = "/".join(str(volume.values.shape[2]) for volume in volumes)
    if set(slices.split("/")) != {str(SIZE[2])}:
        told.append(f"{slices} of {SIZE[2]} slices")
    away = np.concatenate([off_mm(volume, truth) for volume in volumes])
    if np.isnan(away).any():
        told.append("other values")
    if (worst := np.nanmax(away, initial=0)) > EQUAL_MM:
        told.append(f"{worst:.1f} mm off")
    if len(volumes) < len(answer.volumes):
        told.append("and one resampled")
    return ("warns: " if answer.warned else "") + (", ".join(told) or "equal")


def table(title: str, changes: dict[str, Callable[[Path], object]]) -> list[list[str]]:
    """One row for each change of a good series: its name, and a cell for each reader."""
    readers = at_hand()
    rows = []
    for name, change in changes.items():
        with tempfile.TemporaryDirectory() as home:
            folder = good_series(Path(home) / "series")
            before = places(folder)
            change(folder)
            truth = places(folder, before)
            rows.append([name, *(words(ask(reader, folder), truth) for reader in readers.values())])
    for cells in ([title, *readers], ["---"] * (len(readers) + 1), *rows):
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.write("\n")
    return rows


def good_series(folder: Path) -> Path:
    """A CT of 8 slices, turned by 11 degrees in its plane."""
    place = {"direction": DIRECTION, "spacing_mm": SPACING_MM, "position_mm": PLACE_MM}
    write_series(VOLUME, folder, patient_id="PHANTOM", **place)
    return folder


def main() -> int:
    """Print both tables, and say where ours fails."""
    good = table("good", {"as written": lambda _: None, **QUIRKS})
    bad = table("spoilt", {name: defect.spoil for name, defect in DEFECTS.items()})
    wrong = [name for name, cell, *_ in good if cell != "equal"]
    wrong += [name for name, cell, *_ in bad if cell != (DEFECTS[name].rule or "equal")]
    if wrong:
        sys.stdout.write(f"ours is wrong on: {', '.join(wrong)}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
