"""Synthetic single projections (DX, CR) as DICOM: inverted or not, with look-up tables, windows and magnification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from pipeline.errors import InputError
from pipeline.synthetic_series import decimal, identity, uid, with_pixels, write

SOP_CLASSES = {"DX": DigitalXRayImageStorageForPresentation, "CR": ComputedRadiographyImageStorage}
"""What a projection of each modality is stored as."""

CHEST = Code("43799004", "SCT", "Chest")
POSTERO_ANTERIOR = Code("399348003", "SCT", "postero-anterior")


def write_projection(
    picture: NDArray[np.integer],
    path: Path,
    *,
    patient_id: str,
    modality: str = "DX",
    seed: int = 0,
    series: int = 1,
    bits: int = 12,
    photometric: str = "MONOCHROME2",
    detector_spacing_mm: tuple[float, float] | None = (0.2, 0.2),
    voi_lut: Sequence[int] | None = None,
    modality_lut: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write one chest-like projection as DX or CR, the same bytes for the same arguments.

    Args:
        picture: ``(H, W)`` whole numbers from 0 to ``2 ** bits - 1``, high where a viewer shows white, before window
            and tables. MONOCHROME1 stores ``2 ** bits - 1 - picture``, so that a reader gets the same picture.
        path: the file.
        patient_id: also the patient's family name.
        modality: DX or CR.
        seed: another seed makes another study of the same patient.
        series: another number makes another series of the same study.
        bits: BitsStored, 8 to 16.
        photometric: MONOCHROME1 or MONOCHROME2.
        detector_spacing_mm: ImagerPixelSpacing, between rows and between columns; None leaves it out.
        voi_lut: table of 16-bit values for the stored values from 0 on, at most 65535 entries; without one there is
            a window over all values.
        modality_lut: likewise, before window and VOI table.
        attributes: further ones by DICOM keyword (WindowCenter and WindowWidth, PixelSpacing,
            EstimatedRadiographicMagnificationFactor, ...); they win.

    Returns:
        The file.

    Raises:
        InputError: the picture does not fit the bits, or the modality or photometric interpretation is another.
    """
    if modality not in SOP_CLASSES or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"no synthetic projection as {modality}, {photometric}: take DX or CR, MONOCHROME1 or 2")
    highest = 2**bits - 1
    if picture.ndim != 2 or picture.dtype.kind not in "ui" or picture.min() < 0 or picture.max() > highest:
        raise InputError(f"a projection of {bits} bits needs whole numbers (H, W) from 0 to {highest}: scale it first")
    header = identity(patient_id, modality, seed=seed, series=series)
    header.SOPClassUID, header.PhotometricInterpretation = SOP_CLASSES[modality], photometric
    header.BitsStored, header.HighBit, header.PixelRepresentation = bits, bits - 1, 0
    _describe(header, modality)
    if detector_spacing_mm is not None:
        header.ImagerPixelSpacing = [decimal(step) for step in detector_spacing_mm]
    if modality_lut is not None:
        header.ModalityLUTSequence = [_table(modality_lut, ModalityLUTType="US")]
    if voi_lut is not None:
        header.VOILUTSequence = [_table(voi_lut)]
    else:
        header.WindowCenter, header.WindowWidth = 2 ** (bits - 1), 2**bits  # changes nothing
    for keyword, value in (attributes or {}).items():
        setattr(header, keyword, value)
    stored = highest - picture.astype(np.uint16) if photometric == "MONOCHROME1" else picture.astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(with_pixels(header, stored.astype(np.uint16), uid(header.SeriesInstanceUID, 0)), path)
    return path


def _describe(header: Dataset, modality: str) -> None:
    """A frontal view of the chest, with what the standard demands of the modality."""
    header.InstanceNumber, header.SeriesDescription = 1, "Chest PA"
    header.BodyPartExamined, header.ViewPosition, header.PatientOrientation = "CHEST", "PA", ["L", "F"]
    header.ImageType, header.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "NO"
    if modality == "CR":
        return
    header.ImageLaterality, header.PositionerType = "U", ""
    header.PresentationIntentType, header.PresentationLUTShape = "FOR PRESENTATION", "IDENTITY"
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, 0, "US"
    header.PixelIntensityRelationship, header.PixelIntensityRelationshipSign = "LOG", -1
    header.LossyImageCompression, header.DetectorType = "00", "DIRECT"
    header.AcquisitionContextSequence = []
    header.AnatomicRegionSequence = [_coded(CHEST)]
    view = _coded(POSTERO_ANTERIOR)
    view.ViewModifierCodeSequence = []
    header.ViewCodeSequence = [view]


def _table(values: Sequence[int], **attributes: str) -> Dataset:
    """One item of a look-up table from stored value 0 on, to 16 bits."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), 0, 16], np.array(values, "<u2").tobytes()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _coded(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
