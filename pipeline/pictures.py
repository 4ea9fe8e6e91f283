"""TIFF, PNG and JPEG files: pages in, (C, H, W) as they are stored, and label maps out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from pipeline.atomic import atomic
from pipeline.errors import InputError
from pipeline.labels import JPEG_SUFFIXES

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", *JPEG_SUFFIXES)
"""Files that hold pictures, one or a stack of them."""


def is_image(path: Path) -> bool:
    """Whether the file's name says image; macOS leaves a `._x.png` that is none beside x.png on foreign disks."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def is_tiff(path: Path) -> bool:
    """Whether the file's name says TIFF."""
    return path.suffix.lower() in TIFF_SUFFIXES


def read_pages(path: Path) -> Iterator[np.ndarray]:
    """The pages of an image file, one after the other, each (C, H, W) in the file's own dtype.

    A TIFF stack yields one array per page and is never in memory as a whole; a PNG or JPEG yields one.

    Raises:
        InputError: the file is missing, truncated or of another kind.
    """
    with _readable(path):
        if is_tiff(path):
            with _tiff(path) as tiff:
                for page in tiff.pages:
                    yield _tiff_page(page)
        else:
            yield _read_picture(path)


def read_page(path: Path, page: int | None = None) -> np.ndarray:
    """One page of an image file, (C, H, W) in the file's own dtype.

    Args:
        path: a TIFF, PNG or JPEG file.
        page: index from 0 in a TIFF stack; None for a file of one page.

    Raises:
        InputError: the file cannot be read, has no such page, or has several and `page` is None.
    """
    with _readable(path):
        if not is_tiff(path):
            return _read_picture(path)
        with _tiff(path) as tiff:
            return _tiff_page(tiff.pages[_checked_page(path, page, len(tiff.pages))])


def page_shapes(path: Path) -> list[tuple[int, ...]]:
    """The (H, W) of every page, read from headers alone."""
    with _readable(path):
        if is_tiff(path):
            with _tiff(path) as tiff:
                return [(page.imagelength, page.imagewidth) for page in tiff.pages]  # type: ignore[union-attr]
        with Image.open(path) as image:
            return [(image.height, image.width)]


def write_labels(pages: Iterable[np.ndarray], path: Path, like: Path | None = None) -> None:
    """Write label maps as a PNG or as the pages of a TIFF; atomically.

    Args:
        pages: each (H, W) uint8 of class indices.
        path: whose suffix says the format.
        like: the image, whose resolution (pixels per unit) a TIFF takes over.
    """
    with atomic(path) as temporary:
        if is_tiff(path):
            _write_tiff(pages, temporary, like)
        else:
            (page,) = pages
            Image.fromarray(page).save(temporary, format="PNG")


def write_probabilities(pages: Iterable[np.ndarray], path: Path) -> None:
    """Write class probabilities, each (classes, H, W) float32, as pages of a TIFF; atomically."""
    with atomic(path) as temporary:
        _write_tiff(pages, temporary)


def _write_tiff(pages: Iterable[np.ndarray], path: Path, like: Path | None = None) -> None:
    scale: dict[str, Any] = {}
    if like is not None and is_tiff(like):
        with tifffile.TiffFile(like) as tiff:
            first: Any = tiff.pages.first
            scale = {"resolution": first.resolution, "resolutionunit": first.resolutionunit}
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            planar = "separate" if page.ndim == 3 else None
            writer.write(
                page,
                photometric="minisblack",
                planarconfig=planar,
                compression="zlib",
                contiguous=False,
                metadata=None,
                **scale,
            )


@contextmanager
def _tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """An open TIFF whose pages are all there is in it: ImageJ hides large stacks behind one page."""
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) == 1 and tiff.series and tiff.series[0].size > tiff.pages.first.size:
            hidden = tiff.series[0].size // tiff.pages.first.size
            raise InputError(f"{path}: {hidden} images behind one page header; save it with one header per page")
        yield tiff


def _checked_page(path: Path, page: int | None, pages: int) -> int:
    if page is None and pages != 1:
        raise InputError(f"{path}: a stack of {pages} pages; say which page")
    if page is not None and page >= pages:
        raise InputError(f"{path}: has {pages} pages, page {page} was asked for (counted from 0)")
    return page or 0


def _tiff_page(page: Any) -> np.ndarray:
    """(C, H, W) of a page that is (H, W), (H, W, C) or, stored in planes, (C, H, W)."""
    array = page.asarray()
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and page.axes == "SYX":
        return array
    if array.ndim == 3 and page.axes == "YXS":
        return np.ascontiguousarray(array.transpose(2, 0, 1))
    raise InputError(f"a TIFF page with axes {page.axes} is not an image")


def _read_picture(path: Path) -> np.ndarray:
    """(C, H, W) of a PNG or JPEG: grey or RGB. Pixels as stored: a camera's note on how to turn them is not followed.

    Collections of photographs hold PNGs under the name of a JPEG; since that has no transparency, theirs is dropped.
    """
    if _has_16_bit_colours(path):
        raise InputError(
            f"{path}: its colours are of 16 bits, of which 8 would be lost; save it as 8-bit PNG or as TIFF"
        )
    with Image.open(path) as image:
        if image.mode in ("P", "1", "LA", "CMYK"):
            raise InputError(f"{path}: mode {image.mode!r} is not supported; save it as grey, RGB or RGBA")
        array = np.asarray(image)
    if image.mode == "RGBA":
        if path.suffix.lower() not in JPEG_SUFFIXES and (array[..., 3] != array[0, 0, 3]).any():
            raise InputError(f"{path}: is transparent in places, so its colours are not what one sees; save it as RGB")
        array = array[..., :3]  # an alpha channel that is the same everywhere says nothing
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _has_16_bit_colours(path: Path) -> bool:
    """Whether a PNG's header says RGB or RGBA of 16 bits, which Pillow reads as 8 without a word."""
    with path.open("rb") as file:
        header = file.read(26)
    return header.startswith(b"\x89PNG") and header[24:] in (b"\x10\x02", b"\x10\x06")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a decoder throws at a broken file, or only logs, into one sentence."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: not an image this reads; it reads {', '.join(IMAGE_SUFFIXES)} and DICOM folders")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with _tiff_complaints() as complaints:
            yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a readable {path.suffix} file") from None
    except Exception as error:
        raise InputError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from None
    if complaints:
        raise InputError(f"{path}: damaged or cut short ({complaints[0]}); pages may be missing")


@contextmanager
def _tiff_complaints() -> Iterator[list[str]]:
    """What tifffile logs as an error in this thread: it reads a stack that was cut short as a shorter stack."""
    complaints: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        mine = record.thread == thread and record.levelno >= logging.ERROR
        if mine:
            complaints.append(record.getMessage())
        return not mine

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield complaints
    finally:
        logger.removeFilter(keep)
