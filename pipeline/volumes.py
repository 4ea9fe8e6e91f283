"""NIfTI, NRRD and MetaImage files: voxels and how they lie in the patient, and volumes out.

Arrays are ``(X, Y, Z)``, or ``(C, X, Y, Z)``, as they are stored; an affine maps an index to mm in RAS. What does not
say how it lies is refused: most readers guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import atomic
from pipeline.errors import InputError
from pipeline.orientation import spacing_mm
from pipeline.scratch import scratch

NIFTI_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
"""Files that hold a volume."""

TO_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
"""Units of length in a NIfTI header; who leaves them out means mm."""

SPACE = re.compile(rb"^space(?: directions)?:", re.MULTILINE)
"""How a line of an NRRD header begins that says how the volume lies."""

AT_ONCE = 2**24
"""Values up to which a volume is read or looked at in one go, 0.1 GB in float64; a larger one slice by slice."""

SCANNER = 1
"""NIfTI's code for "mm in the scanner", of what is written."""


class Geometry(NamedTuple):
    """What the header of a volume says."""

    shape: tuple[int, ...]
    """Voxels along X, Y and Z."""
    affine: NDArray[np.float64]
    """(4, 4), index to mm in RAS."""
    channels: int
    """Values per voxel."""


def is_volume(path: Path) -> bool:
    """Whether the file's name says volume; macOS leaves a `._x.nii` that is none beside x.nii on foreign disks."""
    return path.name.lower().endswith(VOLUME_SUFFIXES) and not path.name.startswith("._")


def stem(path: Path) -> str:
    """A file's name without its suffix, of which a volume may have two: `a.nii.gz` is `a`."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def read_geometry(path: Path) -> Geometry:
    """What the header of a volume says; no voxel is read.

    Raises:
        InputError: the file is missing, damaged or of another kind, no volume, or does not say how it lies.
    """
    with _readable(path):
        return _nifti_geometry(_nifti(path), path) if _is_nifti(path) else _itk_geometry(path)


def read_volume(path: Path) -> tuple[np.ndarray, NDArray[np.float64]]:
    """The voxels of a volume as they are stored, and its affine.

    Returns:
        (X, Y, Z), or (C, X, Y, Z) where a file holds several values per voxel; in the file's own type, in float32 where
        the header scales it or it has 64 bits per real number. A large one lies in a temporary file.

    Raises:
        InputError: as `read_geometry`.
    """
    with _readable(path):
        if not _is_nifti(path):
            return _itk_voxels(path), _itk_geometry(path).affine
        image = _nifti(path)
        affine = _nifti_geometry(image, path).affine
        return _nifti_voxels(image), affine


def write_volume(array: np.ndarray, affine: NDArray[np.floating], path: Path) -> None:
    """Write a volume in the format that the path's suffix says; it appears whole or not at all.

    Args:
        array: (X, Y, Z), or (C, X, Y, Z) for NIfTI.
        affine: (4, 4), index to mm in RAS.
        path: the file; compressed where the format can be.
    """
    suffix = path.name[len(stem(path)) :]
    with atomic(path) as temporary:
        whole = temporary.with_name(temporary.name + suffix)  # the writers go by the name
        try:
            (_write_nifti if _is_nifti(path) else _write_itk)(array, np.asarray(affine, dtype=float), whole)
            whole.replace(temporary)
        finally:
            whole.unlink(missing_ok=True)


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def _nifti(path: Path) -> Any:
    """A NIfTI image whose file stays open: a compressed one is then read in one go, slice after slice."""
    return nib.load(path, keep_file_open=True)


def _nifti_geometry(image: Any, path: Path) -> Geometry:
    header, shape = image.header, tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1 or image.get_data_dtype().fields is not None:
        raise InputError(f"{path}: a volume has three axes, and a fourth for channels; this has the shape {shape}")
    if isinstance(image, nib.Nifti1Pair) and not (int(header["sform_code"]) or int(header["qform_code"])):
        raise InputError(
            f"{path}: its header says neither by sform nor by qform how the volume lies in the patient; convert the "
            "original images again"
        )
    affine = np.diag([*[TO_MM[header.get_xyzt_units()[0]]] * 3, 1.0]) @ image.affine
    return Geometry(shape[:3], _regular(affine, path), shape[3] if len(shape) == 4 else 1)


def _nifti_voxels(image: Any) -> np.ndarray:
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    first = np.asanyarray(image.dataobj[..., 0, 0] if len(image.shape) > 3 else image.dataobj[..., 0])
    kind = np.dtype(np.float32) if first.dtype == np.float64 else first.dtype.newbyteorder("=")
    channels = shape[3] if len(shape) == 4 else 1
    if np.prod(shape) <= AT_ONCE:
        whole = np.asanyarray(image.dataobj).reshape(*shape[:3], channels)
        return np.array(np.moveaxis(whole, 3, 0) if channels > 1 else whole[..., 0], kind, order="C")
    out = scratch((channels, *shape[:3]), kind)
    for c in range(channels):
        for z in range(shape[2]):
            at = (slice(None), slice(None), z, *((c,) if len(image.shape) > 3 else ()), *[0] * (len(image.shape) - 4))
            out[c, :, :, z] = np.asanyarray(image.dataobj[at])
    return out if channels > 1 else out[0]


def _itk_geometry(path: Path) -> Geometry:
    import itk

    if path.suffix.lower() in (".nrrd", ".nhdr") and not SPACE.search(_nrrd_header(path)):
        raise InputError(f"{path}: its header has no `space`, so nobody knows how it lies; save it again with one")
    source = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if source is None:
        raise InputError(f"{path}: not a readable {path.suffix} file")
    source.SetFileName(str(path))
    source.ReadImageInformation()
    if source.GetNumberOfDimensions() != 3:
        raise InputError(f"{path}: a volume has three axes, this has {source.GetNumberOfDimensions()}")
    affine = np.eye(4)
    for axis in range(3):
        affine[:3, axis] = np.array(source.GetDirection(axis)) * source.GetSpacing(axis)
        affine[axis, 3] = source.GetOrigin(axis)
    shape = tuple(int(source.GetDimensions(axis)) for axis in range(3))
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Geometry(shape, _regular(lps_to_ras @ affine, path), source.GetNumberOfComponents())


def _itk_voxels(path: Path) -> np.ndarray:
    from monai.data import ITKReader

    reader = ITKReader(affine_lps_to_ras=True)
    array, _ = reader.get_data(reader.read(str(path)))
    array = np.asarray(array, dtype=np.float32) if array.dtype == np.float64 else np.asarray(array)
    return array if array.ndim == 3 else np.moveaxis(array, -1, 0)


def _write_nifti(array: np.ndarray, affine: NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(np.moveaxis(array, 0, -1) if array.ndim == 4 else array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)
    nib.save(image, path)


def _write_itk(array: np.ndarray, affine: NDArray[np.float64], path: Path) -> None:
    import itk
    from monai.data import ITKWriter

    # Part of MONAI's writer: the whole takes a volume without channels for a 2D image and resamples a turned one.
    image = ITKWriter.create_backend_obj(array, None, affine, array.dtype, affine_lps_to_ras=True)
    itk.imwrite(image, str(path), compression=True)


def _regular(affine: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if volume < 1e-6 * np.prod(np.maximum(spacing_mm(affine), 1e-12)):
        raise InputError(f"{path}: its header describes no volume (a voxel of {volume:g} cubic mm); convert it again")
    return affine


def _nrrd_header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(65536).split(b"\n\n")[0].replace(b"\r\n", b"\n")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a decoder throws at a broken file into one sentence."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be decoded ({type(error).__name__}: {said})") from None
