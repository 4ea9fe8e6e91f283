"""A public dataset's archives, downloaded with checksums and unpacked as a recipe says."""

from __future__ import annotations

import logging
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pooch
import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError
from pipeline.progress import Progress, silent
from pipeline.recipe import read_recipe, recipe

CHUNK = 2**20
"""Bytes written at a time, one step of the progress."""

PATIENCE = 30
"""Seconds without a byte after which a server is given up."""


class Download(BaseModel):
    """One file of a dataset.

    Args:
        url: http or https.
        checksum: `md5:`, `sha1:`, `sha256:` or `sha512:` and the digest in hexadecimal figures.
        unpack: the folder to take out of the file, a tar or zip archive; None leaves the file as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern="^https?://[^/]+/.*[^/]$")
    checksum: str = Field(pattern="^(md5|sha1|sha256|sha512):[0-9a-f]+$")
    unpack: str | None = Field(default=None, pattern=r"^[^/.\\][^/\\]*$")

    @property
    def name(self) -> str:
        """Of the file."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name


def fetch(recipe_path: Path, folder: Path, progress: Progress = silent) -> list[Path]:
    """Download what a recipe names. What is there already, complete and with the right checksum, stays.

    Args:
        recipe_path: a recipe with `downloads`.
        folder: for the files and what is unpacked from them.
        progress: told about every file's mebibytes.

    Returns:
        The files and unpacked folders, in the recipe's order.

    Raises:
        InputError: the recipe names none, a server does not deliver, or delivers something else. Nothing of that
            file is left then; those before it are.
    """
    results = []
    for download in downloads(recipe_path):
        archive = _download(download, folder, progress)
        results.append(_unpack(archive, download.unpack) if download.unpack else archive)
    return results


def downloads(recipe_path: Path) -> list[Download]:
    """The downloads that a recipe names.

    Raises:
        InputError: it names none, two of one name, or one that is not told as `Download` says.
    """
    entries = recipe(read_recipe(recipe_path), str(recipe_path)).downloads
    if not entries:
        raise InputError(f"{recipe_path}: names no `downloads`; get the files as its text says")
    try:
        found = [Download.model_validate(entry) for entry in entries]
    except ValidationError as error:
        first = error.errors()[0]
        place = f"download `{first['loc'][0]}`" if first["loc"] else "a download"
        raise InputError(f"{recipe_path}: {place}: {first['msg']}, got {first['input']!r}") from None
    if len({download.name for download in found}) < len(found):
        raise InputError(f"{recipe_path}: two downloads of one file name; the second would overwrite the first")
    return found


def _download(download: Download, folder: Path, progress: Progress) -> Path:
    """The file, with the right checksum."""
    pooch.get_logger().setLevel(logging.WARNING)

    def stream(url: str, output_file: str, _: object) -> None:
        headers = {"Accept-Encoding": "identity"}  # the checksum is that of the file as it is stored
        with requests.get(url, stream=True, timeout=PATIENCE, headers=headers) as response:
            response.raise_for_status()
            steps = -(-int(response.headers.get("content-length", 0)) // CHUNK)
            with Path(output_file).open("wb") as file:
                for chunk in progress(response.iter_content(CHUNK), steps, download.name):
                    file.write(chunk)

    try:
        return Path(pooch.retrieve(download.url, download.checksum, download.name, folder, downloader=stream))
    except requests.RequestException as error:
        raise InputError(f"{download.url}: {_reason(error)}; nothing of it is kept, try again") from None
    except ValueError:  # what pooch raises where the hashes differ
        raise InputError(
            f"{download.url}: delivers another file than the recipe expects ({download.checksum}); nothing of it is"
            " kept. Try again; if it stays so, the publisher has changed the file"
        ) from None


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"the server says nothing for {PATIENCE} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off before the end of the file"
    return f"no connection ({type(error).__name__})"


def _unpack(archive: Path, wanted: str) -> Path:
    """The folder `wanted` of an archive, beside it: whole or not at all, and nothing outside it."""
    target = archive.parent / wanted
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{wanted}.") as temporary:
        try:
            is_tar = tarfile.is_tarfile(archive)  # a zip cannot leave its folder, a tar must be told not to
            shutil.unpack_archive(archive, temporary, filter="data" if is_tar else None)
        except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{archive}: cannot be unpacked safely ({error})") from None
        if not (Path(temporary) / wanted).is_dir():
            raise InputError(f"{archive}: has no folder {wanted!r} in it; correct the recipe's `unpack`")
        (Path(temporary) / wanted).replace(target)
    return target
