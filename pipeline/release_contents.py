"""Checks of what a release computes with: its weights in both formats, and the answer to its reference case."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import tifffile
import torch
from safetensors import SafetensorError

from pipeline import reference_case
from pipeline.bundle import components
from pipeline.errors import InputError, user_error
from pipeline.release_files import REFERENCE_ABOUT, REFERENCE_EXPECTED, STATE, WEIGHTS

MOST_REFERENCE_BYTES = 64 * 1024**2
"""Of a file of the reference case, unpacked; the largest of ours, with three channels, has 2 MB."""

LARGEST_TOLERANCE = 0.05
"""Of a probability; one that allowed more would let other weights pass. Ours are 0.001 on a CPU and 0.03 on CUDA."""


def weights(folder: Path) -> str:
    """model.pt holds tensors alone, the same numbers as model.safetensors, and they fit the network.

    Raises:
        InputError: something else.
    """
    state, other = _state(folder / STATE), _safe(folder / WEIGHTS)
    if state.keys() != other.keys():
        raise InputError(f"{STATE} and {WEIGHTS} name different weights")
    for name, tensor in other.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{WEIGHTS}: {name} holds what is no number (NaN or infinity)")
        if state[name].dtype != tensor.dtype or not torch.equal(state[name], tensor):
            raise InputError(f"{STATE} and {WEIGHTS} differ in {name}")
    _refuse_misfit(folder, other)
    return f"{sum(tensor.numel() for tensor in other.values()):,} numbers, the same in both files; they fit the network"


def reference(folder: Path, device: str) -> str:
    """The reference case gives the expected answer on this device.

    Raises:
        InputError: it does not, or is no case.
    """
    _refuse_odd_reference(folder)
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # a network draws its first weights; a training after this must not notice
            found = reference_case.reproduce(folder, device)
    except Exception as error:  # whatever the release's own configs run into
        raise InputError(f"the reference case cannot be run: {_why(error)}") from None
    distance = f"largest difference of a probability {found.largest_difference:.2g}, {found.tolerance:g} is allowed"
    if not found.passed:
        raise InputError(
            f"the reference case is not reproduced on {device} ({distance}): do not use these weights here"
        )
    return f"reproduced on {device}: {distance}"


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of model.pt by name; no code in it is run."""
    try:
        with zipfile.ZipFile(path) as file:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
        if packed:
            raise InputError(f"{STATE}: is compressed, which PyTorch's own files never are")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{STATE}: holds more than tensors; loading it could run code") from None
    except (zipfile.BadZipFile, RuntimeError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError):
        raise InputError(f"{STATE}: not a readable file of weights") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError(f"{STATE}: holds something else than weights by name")
    return state


def _safe(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise InputError(f"{WEIGHTS}: not a readable file of weights") from None


def _refuse_misfit(folder: Path, found: dict[str, torch.Tensor]) -> None:
    """The network is built without memory: its configured size is not to be believed before it fits the weights."""
    try:
        with torch.device("meta"):
            [network] = components(folder, "predicting", {}, ["network_def"])
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    except Exception as error:
        raise InputError(f"the network cannot be built: {_why(error)}") from None
    for name in sorted(wanted.keys() | found.keys()):
        shape = tuple(found[name].shape) if name in found else "missing"
        if wanted.get(name) != shape:
            raise InputError(
                f"{WEIGHTS} does not fit the network of the configs: {name} is {shape}, "
                f"{wanted.get(name, 'nothing')} is needed"
            )


def _why(error: BaseException) -> str:
    """What went wrong at the bottom of it: MONAI wraps what a component raises."""
    told = user_error(error)
    while told is None and error.__cause__ is not None:
        error = error.__cause__
    return str(told or f"{type(error).__name__}: {error}")


def _refuse_odd_reference(folder: Path) -> None:
    """The files of the case are small, and reference.json names no other."""
    try:
        about = json.loads((folder / REFERENCE_ABOUT).read_bytes())
        image, tolerances = about["image"], [float(value) for value in about["tolerance"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{REFERENCE_ABOUT}: missing, or says neither image nor tolerance") from None
    if image not in reference_case.IMAGES.values() or not (folder / image).is_file():
        raise InputError(f"{REFERENCE_ABOUT}: names an image that is not the release's own")
    if not all(0 <= tolerance <= LARGEST_TOLERANCE for tolerance in tolerances):
        raise InputError(f"{REFERENCE_ABOUT}: allows a difference of more than {LARGEST_TOLERANCE}")
    try:
        sizes = [*_array_bytes(folder / REFERENCE_EXPECTED), _image_bytes(folder / image)]
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile, tifffile.TiffFileError):
        raise InputError("the files of the reference case cannot be read") from None
    if max(sizes) > MOST_REFERENCE_BYTES:
        raise InputError(f"a file of the reference case unpacks to more than {MOST_REFERENCE_BYTES // 1024**2} MiB")


def _array_bytes(path: Path) -> list[int]:
    """Of every array of an .npz: what unpacks, and what its header says."""
    sizes = []
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            with file.open(entry) as array:
                numbers = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if numbers == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(array)
            sizes += [entry.file_size, int(np.prod(shape, dtype=object)) * kind.itemsize]
    return sizes


def _image_bytes(path: Path) -> int:
    """Of a TIFF by its tags, of a compressed NIfTI by counting what comes out."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            return len(file.read(MOST_REFERENCE_BYTES + 1))
    with tifffile.TiffFile(path) as file:
        return sum(page.nbytes for page in file.pages)
