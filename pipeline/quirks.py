"""What vendors and archives do to a good series and may: each quirk takes a folder, and its voxels stay where they are.

Every function takes a folder with one series as `synthetic_series.write_series` writes it. `QUIRKS` names them all, so
that a test or a benchmark runs over every one. What may not be is in `defects`.
"""

from __future__ import annotations

import gc
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom import EMPTY_ALLOWED
from pipeline.synthetic_series import write

PADDING = -2000
"""Stored value outside the circle that a CT reconstructs."""


def slices(folder: Path) -> list[tuple[Path, Dataset]]:
    """Files and contents of a series, in the order of its slices along the normal."""
    read = [(path, dcmread(path)) for path in sorted(folder.iterdir())]

    def along_normal(item: tuple[Path, Dataset]) -> float:
        row, column = np.array(item[1].ImageOrientationPatient, float).reshape(2, 3)
        return float(np.cross(row, column) @ np.array(item[1].ImagePositionPatient, float))

    return sorted(read, key=along_normal)


def no_suffix(folder: Path) -> None:
    """Files named IM000001 and on, as on discs."""
    for number, path in enumerate(sorted(folder.iterdir()), start=1):
        path.rename(folder / f"IM{number:06d}")


def no_preamble(folder: Path) -> None:
    """Files that begin with their first attribute, in implicit value representations, as old exports have them."""
    for path, dataset in slices(folder):
        with path.open("wb") as file:
            dcmwrite(file, Dataset(dataset), implicit_vr=True, little_endian=True)


def subfolders(folder: Path) -> None:
    """The slices spread over two folders, as archives do after every so many files."""
    for number, path in enumerate(sorted(folder.iterdir())):
        home = folder / f"{number % 2}"
        home.mkdir(exist_ok=True)
        path.rename(home / path.name)


def numbered_down(folder: Path) -> None:
    """InstanceNumber falls along the normal."""
    last = len(slices(folder))
    for number, dataset in _edited(folder):
        dataset.InstanceNumber = last + 1 - number


def out_of_order(folder: Path) -> None:
    """Neither the names of the files nor InstanceNumber follow the slices."""
    found = slices(folder)
    numbers = random.Random(0).sample(range(1, len(found) + 1), len(found))
    for number, (path, dataset) in zip(numbers, found, strict=True):
        dataset.InstanceNumber = number
        path.unlink()
        write(dataset, folder / f"{len(found) - number:03d}_shuffled.dcm")


def unsigned(folder: Path) -> None:
    """Stored values without sign and the intercept -1024, as Siemens and Philips write a CT."""
    for _, dataset in _edited(folder):
        values = _pixels(dataset) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.PixelRepresentation = -1024, 1, 0
        dataset.PixelData = (values + 1024).astype("<u2").tobytes()


def padded(folder: Path) -> None:
    """The corners outside the circle that was reconstructed hold -2000, as GE writes a CT: here the first pixel."""
    for _, dataset in _edited(folder):
        pixels = _pixels(dataset)
        pixels[0, 0] = PADDING
        dataset.add_new("PixelPaddingValue", "SS", PADDING)
        dataset.PixelData = pixels.tobytes()


def private_attributes(folder: Path) -> None:
    """Private groups, one with an unknown value representation, as every vendor has."""
    for number, dataset in _edited(folder):
        block = dataset.private_block(0x0009, "GEMS_IDEN_01", create=True)
        block.add_new(0x01, "LO", "CT01")
        dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "UN", bytes([number]) * 64)


def rounded(folder: Path) -> None:
    """Positions to hundredths of a millimetre and cosines to five digits."""
    for _, dataset in _edited(folder):
        dataset.ImagePositionPatient = [f"{float(value):.2f}" for value in dataset.ImagePositionPatient]
        dataset.ImageOrientationPatient = [f"{float(value):.5f}" for value in dataset.ImageOrientationPatient]


def thick_slices(folder: Path) -> None:
    """Slices twice as thick as they are apart, and no SpacingBetweenSlices: a CT reconstructed with overlap."""
    for _, dataset in _edited(folder):
        dataset.SliceThickness = 2 * float(dataset.SliceThickness)


def wrong_spacing_attribute(folder: Path) -> None:
    """SpacingBetweenSlices holds the gap alone, as some MR scanners write it."""
    for _, dataset in _edited(folder):
        dataset.SpacingBetweenSlices = 0.5 * float(dataset.SliceThickness)


def slope_per_slice(folder: Path) -> None:
    """Every other slice is stored at twice the value with half the slope, as PET scales each slice by itself."""
    for number, dataset in _edited(folder):
        if number % 2 == 0:
            intercept = float(dataset.get("RescaleIntercept", 0))
            pixels = 2 * _pixels(dataset)
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelData = 0.5, intercept, pixels.tobytes()


def anonymised(folder: Path) -> None:
    """Attributes that may be empty are gone, and the patient has a family name with an umlaut."""
    for _, dataset in _edited(folder):
        for keyword in EMPTY_ALLOWED:
            dataset.pop(keyword, None)
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^"
        dataset.PatientID = "ANON"


def disc(folder: Path) -> None:
    """A DICOMDIR, with the files where it says: PT000000/ST000000/SE000000/IM000000 and on."""
    catalogue = FileSet()
    for path in sorted(folder.iterdir()):
        catalogue.add(path)
    written = folder.with_name(f"{folder.name} disc")
    catalogue.write(written)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # pydicom leaves its temporary folder to the garbage collector
        del catalogue
        gc.collect()
    shutil.rmtree(folder)
    written.rename(folder)


def implicit(folder: Path) -> None:
    """Implicit value representations, the oldest transfer syntax."""
    _transfer(folder, ImplicitVRLittleEndian)


def deflated(folder: Path) -> None:
    """The whole data set deflated."""
    _transfer(folder, DeflatedExplicitVRLittleEndian)


def rle(folder: Path) -> None:
    """Pixels as run lengths, as ultrasound and PET come."""
    for _, dataset in _edited(folder):
        dataset.compress(RLELossless, generate_instance_uid=False)


def jpeg_lossless(folder: Path) -> None:
    """JPEG lossless, process 14 with selection value 1, the usual compression of CT archives."""
    _compress(folder, JPEGLosslessSV1, imagecodecs.ljpeg_encode)


def jpeg_ls(folder: Path) -> None:
    """JPEG-LS lossless."""
    _compress(folder, JPEGLSLossless, imagecodecs.jpegls_encode)


def jpeg_2000(folder: Path) -> None:
    """JPEG 2000 lossless."""

    def encode(pixels: NDArray[np.uint16]) -> bytes | bytearray:
        return imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="J2K", resolutions=1)

    _compress(folder, JPEG2000Lossless, encode)


QUIRKS: dict[str, Callable[[Path], None]] = {
    "files without suffix": no_suffix,
    "no preamble": no_preamble,
    "in two folders": subfolders,
    "numbered down": numbered_down,
    "out of order": out_of_order,
    "unsigned, intercept -1024": unsigned,
    "padding -2000": padded,
    "private attributes": private_attributes,
    "rounded decimals": rounded,
    "slices overlap": thick_slices,
    "wrong SpacingBetweenSlices": wrong_spacing_attribute,
    "slope per slice": slope_per_slice,
    "anonymised, umlaut": anonymised,
    "DICOMDIR": disc,
    "implicit VR": implicit,
    "deflated": deflated,
    "RLE": rle,
    "JPEG lossless": jpeg_lossless,
    "JPEG-LS": jpeg_ls,
    "JPEG 2000": jpeg_2000,
}
"""Short words for each quirk."""


def _edited(folder: Path) -> Iterator[tuple[int, Dataset]]:
    """Number from 1 on and content of each slice along the normal; what the caller changes is written."""
    for number, (path, dataset) in enumerate(slices(folder), start=1):
        yield number, dataset
        write(dataset, path)


def _pixels(dataset: Dataset) -> NDArray[np.integer]:
    """The stored values ``(rows, columns)``, of the stored type."""
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    return np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns).copy()


def _transfer(folder: Path, syntax: UID) -> None:
    for _, dataset in _edited(folder):
        dataset.file_meta.TransferSyntaxUID = syntax


def _compress(folder: Path, syntax: UID, encode: Callable[..., bytes | bytearray]) -> None:
    """Pixels as one frame of another codec; signed values go as the bits that they are."""
    for _, dataset in _edited(folder):
        dataset.PixelData = encapsulate([bytes(encode(_pixels(dataset).view("<u2")))])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
