"""Pixels of DICOM files that hold one grey frame each: decoded, and brought to the values that they stand for."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID

from pipeline.dicom_files import REFUSALS, read_file
from pipeline.regular import Refused
from pipeline.scratch import scratch

INT16 = np.iinfo(np.int16)
"""The type in which the whole numbers of CT and MR fit."""

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Where pixels are stored: whole numbers in the first, others in the rest."""


logging.getLogger("pydicom.pixels").setLevel(logging.CRITICAL)  # its tracebacks are told here, as sentences


def read_stack(headers: Sequence[FileDataset]) -> NDArray[np.int16 | np.float32]:
    """The slices of a series, ``(Z, Y, X)``, with the rescale (or modality look-up table) of each slice applied.

    Frames are decoded one after the other into an array that lies in a file where it is large, so that a second copy
    is never in memory. Pixels that stand for padding (PixelPaddingValue) are values as any other.

    Args:
        headers: of files of one frame and one size, read from these files without their pixels, in the order of Z.

    Returns:
        int16 where the rescaled values are whole numbers that fit, else float32 (which holds whole numbers up to
        2 ** 24 exactly).

    Raises:
        Refused: the pixels of a file are in colour, cut short, missing or damaged, or in a transfer syntax that cannot
            be read.
    """
    kind = np.int16 if all(_is_whole(header) for header in headers) else np.float32
    stack = scratch((len(headers), int(headers[0].Rows), int(headers[0].Columns)), kind)
    for z, header in enumerate(headers):
        values = read_values(header)
        if stack.dtype == np.int16 and not INT16.min <= values.min() <= values.max() <= INT16.max:
            narrow, stack = stack, scratch(stack.shape, np.float32)
            stack[:z] = narrow[:z]
        stack[z] = values
    return stack


def read_values(header: FileDataset) -> NDArray[np.number]:
    """The pixels ``(H, W)`` of one file with its rescale or modality look-up table applied (Hounsfield units in CT).

    Raises:
        Refused: as `read_stack`.
    """
    file = str(header.filename)
    if "PhotometricInterpretation" not in header:
        raise Refused(f"{file} holds no image: give a DICOM image", "no image", file)
    if not str(header.PhotometricInterpretation).startswith("MONOCHROME"):
        raise Refused(f"{file} is in colour: give an image with one value per pixel", "colour", file)
    try:
        return apply_modality_lut(_stored(file), header)
    except (EOFError, *REFUSALS) as error:
        told = (str(error) or type(error).__name__).splitlines()[:2][-1].strip()  # the first decoder's own words
        sentence = f"the pixels of {file} are damaged ({told}): export it again, uncompressed if need be"
        raise Refused(sentence, "damaged pixels", file) from error


def _stored(file: str) -> NDArray[np.number]:
    """The pixels ``(H, W)`` of the first frame as they are stored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="End of file reached before delimiter")  # told below, as a sentence
        dataset = read_file(Path(file))
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not can_decode(syntax):
        sentence = f"{file} is in the transfer syntax {syntax.name or 'without a name'} ({syntax!s}), which is not read"
        raise Refused(f"{sentence} here: export it uncompressed", "transfer syntax", file)
    if not any(keyword in dataset for keyword in PIXELS):
        raise Refused(f"{file} has no pixels, or is cut short within them: export it again", "cut short", file)
    there, expected = len(dataset.get("PixelData", b"")), get_expected_length(dataset)
    if "PixelData" in dataset and not syntax.is_compressed and there < expected:
        sentence = f"{file} is cut short, it has {there} of {expected} bytes of pixels: export it again"
        raise Refused(sentence, "cut short", file)
    return pixel_array(dataset, index=0)


def presented(values: NDArray[np.number], header: FileDataset) -> NDArray[np.float32]:
    """Values as a reader sees them, brighter where more of the beam was stopped, if the header says so.

    The first VOI look-up table, else the first window, is applied (DICOM PS3.3 C.11.2). MONOCHROME1, in which the
    lowest value is white, is inverted within the range of values that the header allows, not within those that occur:
    the same stored value gives the same grey in every image.

    Args:
        values: ``(H, W)`` of `read_values`.
        header: of the same file.

    Raises:
        Refused: the table or window breaks DICOM's rules.
    """
    try:
        shown = apply_voi_lut(values, header).astype(np.float32)
        if header.PhotometricInterpretation == "MONOCHROME1":
            shown = np.float32(sum(_range(header))) - shown
    except REFUSALS as error:
        file = str(header.filename)
        sentence = f"the window or look-up table of {file} cannot be applied ({error}): export it again"
        raise Refused(sentence, "unreadable attribute", file) from error
    return shown


def can_decode(transfer_syntax: str) -> bool:
    """Whether pixels in a transfer syntax, given by its UID, can be read here."""
    try:
        return get_decoder(UID(transfer_syntax)).is_available
    except NotImplementedError:
        return False


def _is_whole(header: FileDataset) -> bool:
    """Whether the rescaled values are whole numbers, whatever the pixels."""
    if any(keyword in header for keyword in PIXELS[1:]):
        return False
    rescale = (header.get("RescaleSlope"), header.get("RescaleIntercept"))
    return bool(header.get("ModalityLUTSequence")) or None in rescale or all(float(v).is_integer() for v in rescale)


def _range(header: FileDataset) -> tuple[float, float]:
    """The lowest and the highest value that may be shown: of the look-up table, or of the stored bits, rescaled."""
    for table in ("VOILUTSequence", "ModalityLUTSequence"):
        if header.get(table):
            return 0.0, float(2 ** int(header[table][0].LUTDescriptor[2]) - 1)
    bits, signed = int(header.BitsStored), bool(header.PixelRepresentation)
    stored = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    low, high = apply_modality_lut(stored, header)
    return float(low), float(high)
