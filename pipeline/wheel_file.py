"""Our own package as a wheel, made of the package that runs: no source tree, no build tool and no network is needed.

What `pip install` made of it once is turned back: the files of the package, and its metadata. A container has neither
pip nor setuptools, and an editable checkout no built files, so `pip wheel` works in neither. The format is that of
https://packaging.python.org/en/latest/specifications/binary-distribution-format/.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pipeline
from pipeline.errors import InputError
from pipeline.release_archive import write_zip

DISTRIBUTION = "overtile"

SUFFIXES = (".py", ".html", ".css", ".js", ".json")
"""Files of the package; whatever else lies in a checkout is left out."""

TAG = "py3-none-any"

WHEEL = f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION}\nRoot-Is-Purelib: true\nTag: {TAG}\n"


def write(folder: Path) -> Path:
    """Write `overtile-X-py3-none-any.whl` into a folder; the same package makes the same bytes.

    Raises:
        InputError: the package runs without having been installed, so nothing says what it needs.
    """
    installed = _installed()
    name = f"{DISTRIBUTION}-{installed.version}"
    about = f"{name}.dist-info"
    files = {f"{pipeline.__name__}/{file}": content for file, content in package().items()}
    files |= {f"{about}/{file}": text.encode() for file, text in _metadata(installed).items()}
    files |= _licences(installed, about)
    record = f"{about}/RECORD"
    files[record] = _record(files, record)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{TAG}.whl"
    write_zip(files, path)
    return path


def package() -> dict[str, bytes]:
    """The files of the package, by their names."""
    home = Path(pipeline.__file__).parent
    files = sorted(path for path in home.iterdir() if path.suffix in SUFFIXES and path.is_file())
    return {path.name: path.read_bytes() for path in files}


def _installed() -> Distribution:
    """What pip installed; in a checkout, what setuptools left there is found before it and lacks half."""
    found = [one for one in distributions(name=DISTRIBUTION) if one.read_text("METADATA")]
    if not found:
        raise InputError(f"{DISTRIBUTION} is not installed, so a release cannot take it along; pip install it")
    return found[0]


def _metadata(installed: Distribution) -> dict[str, str]:
    """What the package needs, and its commands."""
    texts = {name: installed.read_text(name) for name in ("METADATA", "entry_points.txt")}
    found = {name: text for name, text in texts.items() if text}
    return found | {"WHEEL": WHEEL, "top_level.txt": f"{pipeline.__name__}\n"}


def _licences(installed: Distribution, about: str) -> dict[str, bytes]:
    files = [file for file in installed.files or () if file.parent.name == "licenses"]
    return {f"{about}/licenses/{file.name}": Path(str(file.locate())).read_bytes() for file in sorted(files)}


def _record(files: dict[str, bytes], own: str) -> bytes:
    """Every file with its digest and size, by which an installer checks them; of the list itself there is none."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((own, "", ""))
    return text.getvalue().encode()
