"""What is wrong with series in archives: each defect takes a folder with a good one and spoils it.

Every function takes a folder with one series as `synthetic_series.write_series` writes it, of at least six slices, and
returns the file at fault, where there is one. `DEFECTS` names them all and says by which rule a reader must refuse
what they leave, so that a test or a benchmark runs over every one. What is odd and yet good is in `quirks`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedMRImage
from pydicom import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MediaStorageDirectoryStorage

from pipeline.quirks import slices
from pipeline.synthetic_series import decimal, uid, write

AT_FAULT = 3
"""The slice that is spoilt, where it is one: in the middle, so that both neighbours are there."""

Place = Path | None
"""The file at fault; None where the series as a whole is."""


def text_file(folder: Path) -> Place:
    """A file that is not DICOM lies among the slices."""
    (folder / "notes.txt").write_text("The patient moved.\n")
    return folder / "notes.txt"


def empty_file(folder: Path) -> Place:
    """A file of no bytes lies among the slices, as a copy leaves it that ran out of space."""
    (folder / "99999.dcm").touch()
    return folder / "99999.dcm"


def directory(folder: Path) -> Place:
    """A DICOMDIR without records lies among the slices."""
    catalogue = Dataset()
    catalogue.FileSetID, catalogue.FileSetConsistencyFlag, catalogue.DirectoryRecordSequence = "", 0, []
    catalogue.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    catalogue.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    catalogue.file_meta = FileMetaDataset()
    catalogue.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    catalogue.file_meta.MediaStorageSOPInstanceUID = uid("DICOMDIR")
    catalogue.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    write(catalogue, folder / "DICOMDIR")
    return folder / "DICOMDIR"


def header_cut(folder: Path) -> Place:
    """A file ends in the middle of its header."""
    path = slices(folder)[AT_FAULT][0]
    path.write_bytes(path.read_bytes()[:400])
    return path


def pixels_cut(folder: Path) -> Place:
    """A file ends in the middle of its pixels."""
    path, dataset = slices(folder)[AT_FAULT]
    path.write_bytes(path.read_bytes()[: -len(dataset.PixelData) // 2])
    return path


def no_pixels(folder: Path) -> Place:
    """A file holds a header alone."""
    return _changed(folder, _without("PixelData"))


def no_position(folder: Path) -> Place:
    """A slice does not say where it lies."""
    return _changed(folder, _without("ImagePositionPatient"))


def no_pixel_spacing(folder: Path) -> Place:
    """A slice does not say how large its pixels are."""
    return _changed(folder, _without("PixelSpacing"))


def multi_frame(folder: Path) -> Place:
    """The whole series is one enhanced multi-frame file."""
    found = slices(folder)
    first = found[0][1]
    convert = {"CT": LegacyConvertedEnhancedCTImage, "MR": LegacyConvertedEnhancedMRImage}[first.Modality]
    enhanced = convert(
        [dataset for _, dataset in found],
        series_instance_uid=first.SeriesInstanceUID,
        series_number=1,
        sop_instance_uid=uid(first.SeriesInstanceUID, "enhanced"),
        instance_number=1,
    )
    for path, _ in found:
        path.unlink()
    write(enhanced, folder / "enhanced.dcm")
    return folder / "enhanced.dcm"


def undecodable(folder: Path) -> Place:
    """A file claims JPEG 2000 and holds something else."""

    def change(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + b"garbage " * 16])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless

    return _changed(folder, change)


def localizer(folder: Path) -> Place:
    """A coronal overview of the same series, of another size, lies among the axial slices."""
    _, dataset = slices(folder)[AT_FAULT]
    pixels = np.tile(pixel_array(dataset), (2, 2))
    scout = _another(dataset, "localizer")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    _turn(scout)
    scout.Rows, scout.Columns = pixels.shape
    scout.PixelData = pixels.tobytes()
    write(scout, folder / "00099.dcm")
    return folder / "00099.dcm"


def copied_slice(folder: Path) -> Place:
    """A file is there twice, under two names."""
    return Path(shutil.copy(slices(folder)[AT_FAULT][0], folder / "copy.dcm"))


def slice_scanned_twice(folder: Path) -> Place:
    """Two instances lie at the same place."""
    write(_another(slices(folder)[AT_FAULT][1], "again"), folder / "again.dcm")
    return folder / "again.dcm"


def mixed_orientation(folder: Path) -> Place:
    """A slice lies across the others."""
    return _changed(folder, _turn)


def two_series(folder: Path) -> Place:
    """The slices of a second series of the study lie in the same folder, at the same places."""
    for number, (_, dataset) in enumerate(slices(folder)):
        other = _another(dataset, "second series")
        other.SeriesInstanceUID = uid(dataset.SeriesInstanceUID, "second series")
        other.SeriesNumber = int(dataset.SeriesNumber) + 1
        write(other, folder / f"second_{number:03d}.dcm")
    return None


def missing_slice(folder: Path) -> Place:
    """A slice is gone; the file at fault is the one before the gap."""
    found = slices(folder)
    found[AT_FAULT][0].unlink()
    return found[AT_FAULT - 1][0]


def tilted_gantry(folder: Path, degrees: float = 20.0) -> Place:
    """Slices are shifted along their columns as they follow each other."""
    found = slices(folder)
    start_mm = np.array(found[0][1].ImagePositionPatient, float)
    for path, dataset in found:
        place_mm = np.array(dataset.ImagePositionPatient, float)
        column = np.array(dataset.ImageOrientationPatient, float)[3:]
        shift_mm = np.linalg.norm(place_mm - start_mm) * np.tan(np.radians(degrees))
        dataset.ImagePositionPatient = [decimal(value) for value in place_mm + shift_mm * column]
        dataset.GantryDetectorTilt = degrees
        write(dataset, path)
    return None


def slightly_tilted_gantry(folder: Path) -> Place:
    """The same at 2.5 degrees, which highdicom alone takes for upright."""
    return tilted_gantry(folder, 2.5)


def other_size(folder: Path) -> Place:
    """A slice has half the rows."""

    def change(dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // int(dataset.Rows) * (int(dataset.Rows) // 2)]
        dataset.Rows = int(dataset.Rows) // 2

    return _changed(folder, change)


def other_spacing(folder: Path) -> Place:
    """A slice has pixels of twice the size."""

    def change(dataset: Dataset) -> None:
        dataset.PixelSpacing = [decimal(2 * float(step)) for step in dataset.PixelSpacing]

    return _changed(folder, change)


def uneven_slices(folder: Path) -> Place:
    """The last slice lies half a gap too far."""
    found = slices(folder)
    (_, before), (path, last) = found[-2:]
    places_mm = np.array([before.ImagePositionPatient, last.ImagePositionPatient], float)
    last.ImagePositionPatient = [decimal(value) for value in places_mm[1] + 0.5 * (places_mm[1] - places_mm[0])]
    write(last, path)
    return path


def single_slice(folder: Path) -> Place:
    """All slices but one are gone."""
    found = slices(folder)
    for path, _ in found[1:]:
        path.unlink()
    return found[0][0]


class Defect(NamedTuple):
    """How to spoil a series, and by which rule what is left is refused.

    Attributes:
        spoil: takes the folder, returns the file at fault.
        rule: of `dicom.read_series`, or of the volume that it reads; None where that must still be read.
        indexed: of `studies.find`, which looks at headers alone and at every file under a folder; None where it makes
            one case of the series, or two of two.
    """

    spoil: Callable[[Path], Place]
    rule: str | None
    indexed: str | None


def _alike(spoil: Callable[[Path], Place], rule: str) -> Defect:
    return Defect(spoil, rule, rule)


DEFECTS: dict[str, Defect] = {
    "text file": Defect(text_file, None, None),
    "empty file": Defect(empty_file, None, "damaged file"),
    "bare DICOMDIR": Defect(directory, None, None),
    "header cut": Defect(header_cut, "missing attribute", "damaged file"),
    "pixels cut": Defect(pixels_cut, "cut short", "damaged file"),
    "no pixels": Defect(no_pixels, "cut short", "damaged file"),
    "undecodable pixels": Defect(undecodable, "damaged pixels", None),
    "no position": _alike(no_position, "missing attribute"),
    "no pixel spacing": _alike(no_pixel_spacing, "missing attribute"),
    "enhanced multi-frame": _alike(multi_frame, "multi-frame"),
    "localizer": _alike(localizer, "mixed orientation"),
    "file copied": Defect(copied_slice, None, None),
    "slice scanned twice": _alike(slice_scanned_twice, "slice twice"),
    "mixed orientation": _alike(mixed_orientation, "mixed orientation"),
    "two series": Defect(two_series, "two series", None),
    "missing slice": _alike(missing_slice, "missing slice"),
    "gantry tilt of 20 degrees": _alike(tilted_gantry, "tilted gantry"),
    "gantry tilt of 2.5 degrees": _alike(slightly_tilted_gantry, "tilted gantry"),
    "other size": _alike(other_size, "different sizes"),
    "other pixel spacing": _alike(other_spacing, "different spacings"),
    "uneven slices": _alike(uneven_slices, "uneven slices"),
    "single slice": _alike(single_slice, "single slice"),
}
"""Short words for each defect."""


def _changed(folder: Path, change: Callable[[Dataset], object]) -> Path:
    """Change the slice at fault, and say which file it is."""
    path, dataset = slices(folder)[AT_FAULT]
    change(dataset)
    write(dataset, path)
    return path


def _without(keyword: str) -> Callable[[Dataset], object]:
    return lambda dataset: dataset.pop(keyword)


def _turn(dataset: Dataset) -> None:
    """Let an image lie across: its columns run along the old normal."""
    row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    dataset.ImageOrientationPatient = [decimal(value) for value in (*row, *np.cross(row, column))]


def _another(dataset: Dataset, name: str) -> Dataset:
    """The same image as another instance."""
    other = Dataset(dataset)
    other.SOPInstanceUID = uid(dataset.SOPInstanceUID, name)
    other.file_meta = FileMetaDataset(dataset.file_meta)
    other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
    return other
