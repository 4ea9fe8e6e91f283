"""A case's files to one tensor convention, for training and inference alike; and the way back is recorded.

Tensors are channel-first. Images, (C, H, W), stay as they are stored: the first spatial axis is the row. Volumes,
(C, X, Y, Z), are turned to the axes nearest to RAS without resampling. Raw label values become class indices by
declaration, never by guessing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import CommonKeys
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.ndimage import label as connected_components

from pipeline import dicom, orientation, seg
from pipeline.dicom_files import is_dicom
from pipeline.errors import DataError, InputError
from pipeline.labels import to_class_indices
from pipeline.pictures import is_image, read_page
from pipeline.scratch import scratch
from pipeline.volumes import AT_ONCE, is_volume, read_volume


class NotFiniteError(DataError):
    """An image or label with NaN or infinity in it."""


class GridError(DataError):
    """Channels, or an image and its label, that lie on different grids."""


STORED_AFFINE, STORED_SHAPE = "stored_affine", "stored_shape"
"""What a volume's tensor remembers of its file (of channel 0): `pipeline.orientation.as_stored` takes it back there."""


class LoadCased(MapTransform):
    """Load the files that a manifest's case names.

    `image` becomes a float32 MetaTensor: (C, H, W) of a picture or of a single DICOM image, (C, X, Y, Z) in RAS of a
    NIfTI, NRRD or MetaImage file, or of a folder with a DICOM series, with its affine (mm), and with `stored_affine`
    and `stored_shape` of the file in its meta. Several files are its channels. `label` becomes a uint8 MetaTensor
    (1, ...) of class indices on the same grid; `instances`, read from the same file as `label`, an int32 MetaTensor
    (1, H, W) of its raw values.

    Of the item's optional entries `page` selects a page of a stack, `series` a series of a folder by its UID, and
    `resampled` lists the channels that are resampled to channel 0's grid.

    Args:
        keys: of `image`, `label` and `instances`, those to load.
        label_values: raw value, as text -> class index; needed where `label` is loaded.
        allow_missing_keys: pass an item without such a key through.

    Raises:
        InputError: a file cannot be read, or not as what it is said to be.
        GridError: channels lie on different grids, or a label on another one than the image that is loaded already.
        DataError: a value is not finite, or a label's not declared.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_values = label_values

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The item with paths replaced by tensors."""
        item = dict(data)
        for key in self.keys:
            path_key = "label" if key == "instances" else key
            if path_key not in item and self.allow_missing_keys:
                continue
            if key == "label":
                item[key] = self._label(Path(data[path_key]), item)
            elif key == "instances":
                item[key] = _instances(Path(data[path_key]), item.get("page"))
            else:
                item[key] = _image(data)
        return item

    def _label(self, path: Path, item: Mapping[Any, Any]) -> MetaTensor:
        if not self.label_values:
            raise InputError(f"{path}: cannot load a label without declared `label_values`")
        if is_image(path):
            page = item.get("page")
            indices = to_class_indices(read_page(path, page), self.label_values, _place(path, page))
            return _meta_tensor(indices, path, np.eye(4))
        raw, affine = _label_volume(path, item)
        raw, affine = orientation.to_ras(raw, affine)
        image = item.get(CommonKeys.IMAGE)
        if isinstance(image, MetaTensor):
            affine = _on_the_grid_of(image, raw.shape, affine, path)
        return _meta_tensor(to_class_indices(raw[None], self.label_values, str(path)), path, affine)


def _image(item: Mapping[Any, Any]) -> MetaTensor:
    """All channels of a case."""
    images = item[CommonKeys.IMAGE]
    paths = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
    series = item.get("series")
    uids = [series] * len(paths) if series is None or isinstance(series, str) else list(series)
    if len(paths) == 1:
        return _one_image(paths[0], uids[0], item.get("page"))
    parts = [_one_image(path, uid, item.get("page")) for path, uid in zip(paths, uids, strict=True)]
    resampled = set(item.get("resampled") or ())
    first = parts[0]
    stack = scratch((sum(len(part) for part in parts), *first.shape[1:]), np.float32)
    at = 0
    for number, (part, path) in enumerate(zip(parts, paths, strict=True)):
        stack[at : at + len(part)] = _as_channel(part, first, path, resample=number in resampled)
        at += len(part)
    return MetaTensor(torch.as_tensor(stack), meta=first.meta)  # with its affine


def _one_image(path: Path, series: str | None, page: int | None) -> MetaTensor:
    if path.is_dir():
        volume = dicom.read_series(path, series)
        return _volume(volume.volume, volume.affine, path)
    if is_volume(path):
        return _volume(*read_volume(path), path)
    if not is_image(path) and is_dicom(path):
        return _meta_tensor(dicom.read_image(path).pixels[None], path, np.eye(4))
    pixels = read_page(path, page)
    if not np.issubdtype(pixels.dtype, np.number):
        raise InputError(f"{_place(path, page)}: pixels of type {pixels.dtype} are not an image")
    return _meta_tensor(pixels.astype(np.float32), path, np.eye(4))


def _volume(stored: np.ndarray, stored_affine: NDArray[np.floating], path: Path) -> MetaTensor:
    """(X, Y, Z) or (C, X, Y, Z) as stored -> (C, X, Y, Z) in RAS."""
    turned, affine = orientation.to_ras(stored if stored.ndim == 4 else stored[None], stored_affine)
    array = scratch(turned.shape, np.float32)
    array[:] = turned
    tensor = _meta_tensor(array, path, affine)
    tensor.meta |= {STORED_AFFINE: np.asarray(stored_affine), STORED_SHAPE: tuple(stored.shape[-3:])}
    return tensor


def _as_channel(part: MetaTensor, first: MetaTensor, path: Path, *, resample: bool) -> np.ndarray:
    """A channel on the grid of the first one, resampled linearly only if that is declared."""
    one, other = _grid(f"channel 0 ({first.meta['filename_or_obj']})", first), _grid(str(path), part)
    wrong = orientation.different_grids(one, other)
    array: np.ndarray = part.numpy()
    if wrong is None:
        return array
    if not resample:
        remedy = "let the recipe say `resample: true` for this channel" if path.is_dir() else "resample the file to it"
        raise GridError(f"{wrong}: {remedy}, or leave the case out")
    to_other = np.linalg.inv(other.affine) @ one.affine
    inside = {"output_shape": one.shape, "order": 1, "mode": "constant", "cval": float(array.min())}
    return np.stack([affine_transform(channel, to_other, **inside) for channel in array])


def _label_volume(path: Path, item: Mapping[Any, Any]) -> tuple[np.ndarray, NDArray[np.floating]]:
    """(X, Y, Z) raw values; those of a DICOM SEG are segment numbers, on the grid of its series."""
    if not is_volume(path):
        return seg.read_segmentation(path, series=_series_of(item))
    raw, affine = read_volume(path)
    if raw.ndim != 3:
        raise DataError(f"{path}: a label volume has one value per voxel, this has {len(raw)}")
    return raw, affine


def _series_of(item: Mapping[Any, Any]) -> dicom.Series | None:
    """The series that the case's first channel was read from, if it was."""
    image = item.get(CommonKeys.IMAGE)
    source = image.meta["filename_or_obj"] if isinstance(image, MetaTensor) else image
    first = source if isinstance(source, str | Path) else source[0] if source else None
    if first is None or not Path(first).is_dir():
        return None
    series = item.get("series")
    return dicom.read_series(Path(first), series if series is None or isinstance(series, str) else series[0])


def _on_the_grid_of(
    image: MetaTensor, shape: tuple[int, ...], affine: NDArray[np.floating], path: Path
) -> NDArray[np.floating]:
    """The image's affine, where the label's differs by rounding alone."""
    of_image = _grid(str(image.meta.get("filename_or_obj")), image)
    if wrong := orientation.different_grids(of_image, orientation.Grid(str(path), shape, affine)):
        raise GridError(f"{wrong}: a label must be drawn on its image; export both again, or leave the case out")
    return of_image.affine


def _grid(name: str, tensor: MetaTensor) -> orientation.Grid:
    return orientation.Grid(name, tuple(tensor.shape[1:]), tensor.affine.numpy())


def _instances(path: Path, page: int | None) -> MetaTensor:
    raw = read_page(path, page)
    if raw.shape[0] != 1 or not np.issubdtype(raw.dtype, np.integer):
        raise DataError(f"{_place(path, page)}: an instance map has one channel of whole numbers")
    if len(np.unique(raw[raw > 0])) == 1 and (parts := connected_components(raw[0] > 0, np.ones((3, 3)))[1]) > 1:
        raise DataError(
            f"{_place(path, page)}: {parts} separate objects with one number, so this is a mask, not an instance map; "
            "number every object"
        )
    return _meta_tensor(raw.astype(np.int32), path, np.eye(4))


def _meta_tensor(array: np.ndarray, path: Path, affine: NDArray[np.floating]) -> MetaTensor:
    if bad := _not_finite(array):
        raise NotFiniteError(f"{path}: {bad} pixels are NaN or infinite")
    meta = {"filename_or_obj": str(path), "spatial_shape": array.shape[1:], "original_channel_dim": 0}
    contiguous = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return MetaTensor(torch.as_tensor(contiguous), affine=torch.as_tensor(np.array(affine, dtype=float)), meta=meta)


def _not_finite(array: np.ndarray) -> int:
    """The number of values that are NaN or infinite. A large array may not fit into memory twice."""
    if array.dtype.kind in "biu":
        return 0
    parts = [array] if array.size <= AT_ONCE else (part for channel in array for part in channel)
    return sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)


def _place(path: Path, page: int | None) -> str:
    return str(path) if page is None else f"{path}, page {page}"
