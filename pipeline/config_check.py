"""What is wrong with a bundle's configs, seen without running them."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import yaml
from monai.utils import optional_import

Locate = Callable[[str], str | None]

EXPRESSION_GLOBALS = ("monai", "torch", "np", "numpy", *dir(builtins))
"""Names that MONAI lets every `$` expression see."""

REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
"""`@id` and `@a#b#0` inside a string; MONAI writes the latter `@a::b::0` once it has read it."""

EXPONENT = re.compile(r"([-+]?\d+)(?:\.(\d*))?[eE]([-+]?)(\d+)")
"""A number with an exponent, which YAML 1.1 takes for text unless it has both a point and the exponent's sign."""


def breaks(config: Mapping[str, Any], defined: Callable[[str], bool], locate: Locate) -> Iterator[str]:
    """What would fail when the config runs: targets, arguments, expressions, references, imports.

    Args:
        config: with its macros expanded.
        defined: whether an id such as `a#b` exists.
        locate: the dotted path of a `_target_` without a dot, None where MONAI has none.
    """
    imported = _imported_names(config)
    yield from (problem for problem in imported if problem.startswith("imports"))
    names = {*EXPRESSION_GLOBALS, *imported}
    for place, value in walk(config):
        if isinstance(value, Mapping) and "_target_" in value:
            yield from _target_problems(place, value, locate)
        elif isinstance(value, str):
            for reference in _references(value):
                if not defined(reference):
                    yield f"{place}: @{reference} is defined nowhere"
            if value.startswith("$") and not place.startswith("imports"):
                yield from _expression_problems(place, value, names)


def text_numbers(config: Mapping[str, Any], *, but: Collection[str] = ()) -> Iterator[str]:
    """Numbers that YAML 1.1 reads as text, such as `1e-3`, or that stand in quotation marks.

    Args:
        config: as it is written.
        but: keys whose values are names, even where a name is made of digits.
    """
    for place, value in walk(config):
        if isinstance(value, str) and place not in but:
            number = _number(value)
            if number is not None:
                yield f"{place}: {value!r} is text, not a number; write {number}"


def references(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every `@` reference: the `a#b#0` where it stands, and the `a#b` that it means."""
    for place, value in walk(config):
        if isinstance(value, str):
            yield from ((place, reference.replace("::", "#")) for reference in _references(value))


def unreferenced(
    config: Mapping[str, Any], known: Iterable[tuple[str, str]], *, but: Collection[str] = ()
) -> Iterator[str]:
    """Keys, and keys of sections, that can be changed without any effect.

    A key counts as used where a reference from outside it means it, a part of it or a section that it is in.

    Args:
        config: as it is written.
        known: references, from `references` and from macros.
        but: keys that need none.
    """
    known = list(known)
    for key, value in config.items():
        name = key.lstrip("+").replace("::", "#")
        if name in (*but, "_meta_"):
            continue
        section = isinstance(value, Mapping) and "_target_" not in value
        parts = [f"{name}#{part}" for part in value] if section else []
        dead = [item for item in (name, *parts) if not _used(item, known)]
        yield from (f"key {item!r} is referenced nowhere" for item in (dead[:1] if name in dead else dead))


def walk(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below the root with its `a#b#0`, the metadata left out."""
    if place:
        yield place, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if key != "_meta_":
            yield from walk(part, f"{place}#{key}" if place else str(key))


def _used(item: str, known: Iterable[tuple[str, str]]) -> bool:
    return any(
        not f"{place}#".startswith(f"{item}#") and (f"{meant}#".startswith(f"{item}#") or item.startswith(f"{meant}#"))
        for place, meant in known
    )


def _references(value: str) -> list[str]:
    return REFERENCE.findall(value) if value.startswith(("$", "@")) else []


def _number(text: str) -> str | None:
    """The number that a text spells, as YAML 1.1 wants it; None if it spells none."""
    number: float
    try:
        number = int(text, 0)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return None
    exponent = EXPONENT.fullmatch(text)
    if exponent:
        whole, fraction, sign, power = exponent.groups()
        return f"{whole}.{fraction or 0}e{sign or '+'}{power}"
    return str(yaml.safe_dump(number).split()[0])


def _imported_names(config: Mapping[str, Any]) -> set[str]:
    """Names that the config's `imports` bind; a sentence that starts with `imports` for each that fails."""
    scope: dict[str, Any] = {}
    for line in config.get("imports", []):
        try:
            exec(str(line).removeprefix("$"), scope)
        except (ImportError, SyntaxError, AttributeError) as error:
            scope[f"imports: {line!r} fails: {error}"] = None
    return set(scope) - {"__builtins__"}


def _target_problems(place: str, component: Mapping[str, Any], locate: Locate) -> Iterator[str]:
    target = component["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return
    located = target if "." in target else locate(target)
    module, _, name = (located or "").rpartition(".")
    thing: Any
    thing, found = optional_import(module, name=name) if module else (None, False)
    if not found:
        yield f"{place}: _target_ {target!r} cannot be imported"
        return
    arguments = {key: None for key in component if not re.fullmatch(r"_\w+_", key)}
    try:
        inspect.signature(thing).bind(**arguments)
    except TypeError as error:
        yield f"{place}: {target}: {error}"


def _expression_problems(place: str, value: str, names: set[str]) -> Iterator[str]:
    source = REFERENCE.sub("None", value[1:])
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except SyntaxError as error:
        yield f"{place}: {value!r} is no expression: {error.msg}"
        return
    nodes = list(ast.walk(tree))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Name) and node.id not in names | bound:
            yield f"{place}: {value!r} uses {node.id!r}, which nothing imports"
