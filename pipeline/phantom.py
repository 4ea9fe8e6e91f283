"""Synthetic patients with exactly known labels: EM-like TIFF stacks, a CT-like DICOM series, chest-like projections.

Every patient has a tissue of its own (cell size, contrast, noise, illumination), all of it from a seed. Nothing
here is a model of real tissue: it is hard where real images are hard (dark organelles, uneven light, noise), so
that a threshold fails and a small network succeeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from pipeline.errors import InputError
from pipeline.progress import Progress, silent
from pipeline.synthetic_projection import write_projection
from pipeline.synthetic_series import write_series

MEMBRANE, CELL = 0, 255
"""Raw label values, inverted with respect to "membrane is foreground" as in the ISBI 2012 challenge."""

SECTION_STEP = 1.5
"""Pixels that a cell moves from one section to the next: neighbours look alike, as in a real stack."""

CHEST_MM = 350.0
"""Side of the detector behind a chest-like phantom."""

AIR_HU, BODY_HU, LESION_HU = -1000.0, 40.0, 180.0
"""Hounsfield units of the CT-like phantom."""


def em_section(
    rng: np.random.Generator, cells: np.ndarray, size: int, style: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """One section of an EM-like tissue.

    Args:
        rng: source of texture and noise.
        cells: (cells, 2) centres in pixels.
        size: of the square section, in pixels.
        style: the patient's `thickness` of membranes in pixels, `contrast`, `noise` and `tilt` of the light.

    Returns:
        Image (H, W) uint8, and its label (H, W) uint8 of `MEMBRANE` and `CELL`.
    """
    rows, columns = np.mgrid[:size, :size].astype(float)
    bend = [gaussian_filter(rng.normal(size=(size, size)), 10) for _ in range(2)]
    bent = [axis + 5 * field / field.std() for axis, field in zip((rows, columns), bend, strict=True)]
    distance, nearest = cKDTree(cells).query(np.stack(bent, -1).reshape(-1, 2), k=2)
    first, second = distance.reshape(size, size, 2).transpose(2, 0, 1)
    membrane = second - first < style["thickness"]
    owner = nearest[:, 0].reshape(size, size)

    brightness = 150 + 24 * np.sin(owner * 2.4)
    image = np.where(membrane, brightness - style["contrast"], brightness)
    image = np.where(
        _organelles(rng, size) & (second - first > 3 * style["thickness"]), image - 0.9 * style["contrast"], image
    )
    image += style["tilt"] * ((rows + columns) / size - 1)
    image += 12 * _smooth(rng, size, 2)
    image = gaussian_filter(image, 0.8) + style["noise"] * rng.normal(size=(size, size))
    label = np.where(membrane, MEMBRANE, CELL).astype(np.uint8)
    return np.clip(image, 0, 255).astype(np.uint8), label


def em_stack(seed: int, sections: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One synthetic patient: image and label stacks, (sections, H, W) uint8."""
    rng = np.random.default_rng(seed)
    style = {
        "thickness": rng.uniform(2.6, 3.6),
        "contrast": rng.uniform(45, 65),
        "noise": rng.uniform(14, 24),
        "tilt": rng.uniform(-35, 35),
    }
    spacing = rng.uniform(24, 34)
    grid = np.arange(-spacing, size + 2 * spacing, spacing)
    cells = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    cells = cells + rng.uniform(-0.4, 0.4, cells.shape) * spacing
    drift = rng.normal(size=cells.shape) * SECTION_STEP
    pairs = [em_section(rng, cells + number * drift, size, style) for number in range(sections)]
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def write_em_patients(
    folder: Path, *, patients: int, sections: int, size: int, seed: int, progress: Progress = silent
) -> None:
    """Write `patient-NN/image.tif` and `patient-NN/label.tif` for every synthetic patient.

    Raises:
        InputError: a number is too small to make an image.
    """
    if patients < 1 or sections < 1 or size < 32:
        raise InputError(f"cannot make {patients} patients of {sections} sections of {size} px: at least 1, 1 and 32")
    for number in progress(range(patients), patients, "patients"):
        images, labels = em_stack(seed * 1000 + number, sections, size)
        home = folder / f"patient-{number + 1:02d}"
        home.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(home / "image.tif", images, photometric="minisblack", compression="zlib")
        tifffile.imwrite(home / "label.tif", labels, photometric="minisblack", compression="zlib")


def ct_volume(seed: int, shape: tuple[int, int, int] = (64, 48, 20)) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like body with one bright, asymmetric lesion.

    Returns:
        Volume (X, Y, Z) float32 in HU, and its label (X, Y, Z) uint8, 1 in the lesion.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    body = (grid[0] / 0.9) ** 2 + (grid[1] / 0.8) ** 2 < 1
    centre = rng.uniform(-0.3, 0.3, 3)
    radii = (0.30, 0.22, 0.35)
    lesion = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)) < 1
    volume = np.where(body, BODY_HU, AIR_HU) + np.where(lesion & body, LESION_HU - BODY_HU, 0)
    volume = volume + np.where(body, rng.normal(0, 8, shape), 0)
    return np.round(volume).astype(np.float32), (lesion & body).astype(np.uint8)


def write_ct_patient(folder: Path, *, seed: int, patient: str = "CT-PHANTOM") -> np.ndarray:
    """Write one CT-like patient as a DICOM series; returns its label (X, Y, Z) uint8."""
    volume, label = ct_volume(seed)
    write_series(volume, folder, spacing_mm=(1.5, 1.5, 3.0), patient_id=patient, seed=seed)
    return label


def chest_picture(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A chest-like projection, its heart to the right of the picture (the patient's left).

    Returns:
        Picture (H, W) uint16 of 0 to 4095, lungs dark, and its label (H, W) uint8, 255 in the lungs.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    height, gap, width = rng.uniform(0.58, 0.68), rng.uniform(0.38, 0.44), rng.uniform(0.27, 0.33)
    wide = width * (1 + 0.35 * rows)  # lungs widen to the foot of the picture
    lungs = [((columns - side * gap) / wide) ** 2 + ((rows + 0.1) / height) ** 2 < 1 for side in (-1, 1)]
    heart = ((columns - 0.18) / 0.33) ** 2 + ((rows - 0.25) / 0.3) ** 2 < 1
    lung = (lungs[0] | lungs[1]) & ~heart
    body = (columns / 0.92) ** 2 + (rows / 1.4) ** 2 < 1
    ribs = np.maximum(0, np.sin(14 * (rows + 0.5 * columns**2))) ** 4
    picture = np.where(body, 2400.0, 150.0) - np.where(lung, rng.uniform(1100, 1500), 0)
    picture = (
        picture + np.where(body, 420 * ribs, 0) + 700 * np.exp(-((columns / 0.09) ** 2)) + 120 * _smooth(rng, size, 6)
    )
    picture = gaussian_filter(picture, size / 128) + rng.uniform(20, 60) * rng.normal(size=picture.shape)
    return np.clip(picture, 0, 4095).astype(np.uint16), np.where(lung, 255, 0).astype(np.uint8)


def write_dx_patients(folder: Path, *, patients: int, size: int, seed: int, progress: Progress = silent) -> None:
    """Write `patient-NN/chest.dcm`, by turns DX and CR, inverted or not, and `patient-NN/lungs.png` for every patient.

    Raises:
        InputError: a number is too small to make a picture.
    """
    if patients < 1 or size < 32:
        raise InputError(f"cannot make {patients} patients of {size} px: at least 1 and 32")
    for number in progress(range(patients), patients, "patients"):
        picture, label = chest_picture(seed * 1000 + number, size)
        home = folder / f"patient-{number + 1:02d}"
        write_projection(
            picture,
            home / "chest.dcm",
            patient_id=home.name.upper(),
            modality=("DX", "CR")[number % 2],
            photometric=("MONOCHROME1", "MONOCHROME2")[number // 2 % 2],
            detector_spacing_mm=(CHEST_MM / size, CHEST_MM / size),
        )
        Image.fromarray(label).save(home / "lungs.png")


def _organelles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark blobs and thin dark threads, as dark as a membrane but not one; (H, W) bool."""
    blobs = _smooth(rng, size, 5) > 1.1
    threads = np.abs(_smooth(rng, size, 6)) < 0.08
    return blobs | threads


def _smooth(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Smooth noise of unit variance, (H, W)."""
    field = gaussian_filter(rng.normal(size=(size, size)), sigma)
    return field / field.std()
