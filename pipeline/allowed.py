"""What the configs of our own bundles use: the list that a release's configs are held against (`pipeline.restricted`).

After a change of a bundle: `python -m pipeline.allowed bundles/*`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.atomic import atomic
from pipeline.bundle import configs, fully_named, written
from pipeline.config_check import walk
from pipeline.errors import InputError
from pipeline.expressions import SYNTAX, Allowed, dotted, full_name, imported, parsed
from pipeline.release_files import LOGGING
from pipeline.restricted import LIST


def collected(bundles: Sequence[Path]) -> Allowed:
    """Everything that the configs of some bundles use.

    Raises:
        InputError: they use what may be on no list, or their logging.conf are not one and the same.
    """
    files = [fully_named(written(bundle, name)) for bundle in bundles for name in configs(bundle)]
    scope = {name.rpartition(".")[2]: name for file in files for name in _imports(file)}
    targets: dict[str, set[str]] = {}
    calls, attributes = set(), set()
    for file in files:
        for place, value in walk(file):
            if isinstance(value, Mapping) and "_target_" in value:
                targets.setdefault(value["_target_"], set()).update(key for key in value if key != "_target_")
            if isinstance(value, str) and value.startswith("$") and not _is_import(place):
                tree = parsed(value)
                _refuse_unlisted_syntax(value, tree)
                calls |= {full_name(name, scope) for name in _called(tree)}
                attributes |= set(_attributes(tree))
    return Allowed(
        targets={name: sorted(targets[name]) for name in sorted(targets)},
        imports=sorted(set(scope.values())),
        calls=sorted(calls),
        attributes=sorted(attributes),
        logging_sha256=_logging(bundles),
    )


def dumps(listed: Allowed) -> str:
    """The list as its file has it."""
    return json.dumps(asdict(listed), indent=1) + "\n"


def _imports(file: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names, of the file's own imports and of those that an overlay adds."""
    for line in [*file.get("imports", []), *file.get("+imports", [])]:
        name = imported(line)
        if name is None:
            raise InputError(f"{line!r}: no import that a release may have; write $import a or $from a import b")
        yield name


def _is_import(place: str) -> bool:
    return place.lstrip("+").startswith("imports#")


def _refuse_unlisted_syntax(value: str, tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, SYNTAX):
            raise InputError(f"{value!r}: no release may have a {type(node).__name__}; write a function in pipeline/")


def _called(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are called."""
    names = (dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    yield from (name for name in names if name)


def _attributes(tree: ast.AST) -> Iterator[str]:
    """Names behind the point of a reference or a call."""
    yield from (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not dotted(node))


def _logging(bundles: Sequence[Path]) -> str:
    """The digest of the one logging.conf that all bundles have."""
    digests = {hashlib.sha256((bundle / LOGGING).read_bytes()).hexdigest() for bundle in bundles}
    if len(digests) != 1:
        raise InputError(f"{LOGGING} is not the same in {', '.join(bundle.name for bundle in bundles)}")
    return digests.pop()


if __name__ == "__main__":
    with atomic(LIST) as temporary:
        temporary.write_text(dumps(collected([Path(name) for name in sys.argv[1:]])))
