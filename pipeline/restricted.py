"""Which configs may be evaluated: a static check of a release's configs, which are code to MONAI.

MONAI imports and calls every `_target_`, evaluates every text that begins with `$` and imports what an import among
them says, in every file of the configs, the metadata included. So everything that is not on the list of what our own
bundles use (`pipeline/allowed.json`, made by `pipeline.allowed`) is refused, before MONAI sees any of it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.expressions import (
    ELSEWHERE,
    ROOTS,
    Allowed,
    expression_problems,
    imported,
    is_code,
    is_sound,
    joins,
    parsed,
    short,
)
from pipeline.release_files import (
    BILL,
    CARD,
    LICENCE,
    LOGGING,
    METADATA,
    RECIPE,
    REFERENCE_ABOUT,
    REFERENCE_EXPECTED,
    SIGNATURE,
    STATE,
    SUMS,
    WEIGHTS,
    WORKFLOWS,
)

LIST = Path(__file__).with_name("allowed.json")
"""The list, as `python -m pipeline.allowed` writes it."""

FILES = frozenset(
    {BILL, CARD, LICENCE, LOGGING, METADATA, RECIPE, REFERENCE_ABOUT, REFERENCE_EXPECTED, SIGNATURE, STATE, SUMS}
    | {WEIGHTS, *(f"configs/{name}" for name in WORKFLOWS.values())}
)
"""What a release consists of. A bundle's folder is searched for Python modules when it runs: a stray torch.py in it
would be imported instead of PyTorch."""

NAMED_FREELY = re.compile(r"wheels/overtile-[0-9A-Za-z.+]+-py3-none-any\.whl|reference/image\.(tif|nii\.gz)")
"""Files of a release whose names depend on its contents."""

LARGEST_CONFIG = 1024**2
"""Bytes; the largest of ours has 20,000."""

KEY = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)
"""A config's key: MONAI gives a meaning to `+`, `#`, `::` and to underscores at the start."""

SPECIAL = ("_target_", "_disabled_")
"""Keys with underscores that our bundles need. `_mode_` starts a debugger, `_requires_` hides an evaluation."""

PATHS = (
    "manifest", "dataset_dir", "output_dir", "checkpoint", "encoder_weights", "start_from", "source", "metadata",
)  # fmt: skip
"""Keys that hold a path: none, or one below the bundle's folder."""

FIXED = {("pipeline.tracking.TrackingHandler", "store"): "@tracking_uri"}
"""Arguments that could name a server, and the one value that they may have; `tracking_uri` itself must be null."""


def allowed(path: Path = LIST) -> Allowed:
    """The list that is part of this package."""
    return Allowed(**json.loads(path.read_text()))


def problems(folder: Path, listed: Allowed | None = None) -> Iterator[str]:
    """What in an unpacked release is not on the list. Nothing is evaluated or imported.

    Args:
        folder: of the release.
        listed: the list; None: this package's.

    Yields:
        Sentences, each with file and place.
    """
    listed = listed or allowed()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    for name in files:
        if name not in FILES and not NAMED_FREELY.fullmatch(name):
            yield f"{name}: is no file of a release"
    for name in (METADATA, *(f"configs/{name}" for name in WORKFLOWS.values())):
        try:
            config = read(folder / name)
        except InputError as error:
            yield f"{name}: {error}"
            continue
        found = metadata_problems(config) if name == METADATA else config_problems(config, listed)
        yield from (f"{name}: {problem}" for problem in found)
    logging = folder / LOGGING
    if logging.exists() and hashlib.sha256(logging.read_bytes()).hexdigest() != listed.logging_sha256:
        yield f"{LOGGING}: is not the one that comes with every bundle; parts of such a file are evaluated"


def read(path: Path) -> dict[str, Any]:
    """A mapping in JSON, in which no key stands twice.

    Raises:
        InputError: without the file's name.
    """
    if not path.is_file():
        raise InputError("is missing")
    if path.stat().st_size > LARGEST_CONFIG:
        raise InputError(f"has more than {LARGEST_CONFIG} bytes")
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError("holds no mapping")
    return found


def metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What MONAI would evaluate in the metadata: it reads them as a config."""
    for place, value in _everything(metadata):
        keys = value if isinstance(value, Mapping) else ()
        if any(re.match(r"[_+~]|.*(#|::)", key) for key in keys):
            yield f"{place or 'metadata'}: has a key that means something else in a config"
        if isinstance(value, str) and is_code(value):
            yield f"{place}: {short(value)} would be taken for an expression, a reference or a macro"


def config_problems(config: Mapping[str, Any], listed: Allowed) -> Iterator[str]:
    """What a workflow's config uses that is not on the list, and where it leads out of the bundle's folder."""
    scope: dict[str, str] = {}
    for number, line in enumerate(_list(config.get("imports"))):
        name = imported(line)
        if name is None or name not in listed.imports:
            yield f"imports#{number}: {short(line)} is no import on the list"
        else:
            scope[name.rpartition(".")[2] if str(line).startswith("$from") else name] = name
    yield from _place_problems(config)
    for place, value in _everything(config):
        if place == "imports" or place.startswith("imports#"):
            if not isinstance(value, list if place == "imports" else str):
                yield f"{place}: is no import"
            continue
        found: Iterator[str] = iter(())
        if isinstance(value, Mapping):
            found = _mapping_problems(value, listed)
        elif isinstance(value, str):
            found = _text_problems(value, scope, listed)
        yield from (f"{place}: {problem}" if place else problem for problem in found)


def _mapping_problems(value: Mapping[str, Any], listed: Allowed) -> Iterator[str]:
    """Keys, and of a component its target and arguments."""
    for key in value:
        if not KEY.fullmatch(key) and key not in SPECIAL:
            yield f"{key!r} is no key"
    if "_target_" not in value:
        return
    target = value["_target_"]
    if not isinstance(target, str) or target not in listed.targets:
        yield f"_target_ {short(target)} is not on the list"
        return
    for key in value:
        if key != "_target_" and key not in listed.targets[target]:
            yield f"argument {key!r} of {target} is not on the list"
        if value[key] != FIXED.get((target, key), value[key]):
            yield f"argument {key!r} of {target} must be {FIXED[target, key]!r}"


def _text_problems(value: str, scope: Mapping[str, str], listed: Allowed) -> Iterator[str]:
    """A text: an expression, a reference or neither."""
    if value.startswith("$"):
        try:
            tree = parsed(value)
        except InputError as error:
            yield f"{short(value)} {error}"
            return
        yield from (f"{short(value)} {problem}" for problem in expression_problems(tree, scope, listed))
    elif value.startswith("@"):
        if not is_sound(value.removeprefix("@")):
            yield f"{short(value)} is no reference to a key of the config"
    elif is_code(value):
        yield f"{short(value)} is a macro or a relative reference; a release has none"
    elif ELSEWHERE.search(value):
        yield f"{short(value)} leads out of the bundle's folder"


def _place_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Keys that say where a workflow reads and writes."""
    if config.get("bundle_root") != ".":
        yield "bundle_root: must be '.', the bundle's own folder"
    if config.get("tracking_uri") is not None:
        yield "tracking_uri: must be null; only who runs a release says where runs are written down"
    for key in PATHS:
        value = config.get(key)
        if value in (None, "") and key not in ROOTS:
            continue
        if key in config and not _is_below_root(value):
            yield f"{key}: {short(value)} must be a path below bundle_root, as $@bundle_root + '/models'"


def _is_below_root(value: object) -> bool:
    try:
        tree = parsed(value) if isinstance(value, str) and value.startswith("$") else None
    except InputError:
        return False
    return tree is not None and isinstance(tree.body, ast.BinOp) and joins(tree.body)


def _everything(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The root and every value below it, each with its `a#b#0`."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        place, value = waiting.pop(0)
        yield place, value
        parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        waiting += [(f"{place}#{key}" if place else str(key), part) for key, part in parts]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
