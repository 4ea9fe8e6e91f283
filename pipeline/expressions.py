"""What a `$` expression, a reference or an import of a release's configs may be, told from its text alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import InputError

LONGEST_EXPRESSION = 200
"""Characters; the longest of ours has 80. Python's parser can be made to use up memory by a long one."""

SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Attribute, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.Subscript,
    ast.IfExp, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot,
    ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add,
)  # fmt: skip
"""Of Python, in an expression. `+` joins a path to the bundle's folder and `[]` stands for a reference, no more."""

GLOBALS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}
"""Names that MONAI binds before it reads a config."""

REFERENCES = "__local_refs"
"""What MONAI makes of `@a::b` in an expression: `__local_refs['a::b']`."""

REFERENCE = re.compile(r"@\w*(?:::\w*)*", re.ASCII)
"""What MONAI takes for a reference."""

SOUND_REFERENCE = re.compile(r"[A-Za-z]\w*(?:::\w+)*", re.ASCII)
"""What a reference of ours looks like: absolute, and never to the metadata."""

ROOTS = ("bundle_root", "output_dir")
"""Keys that hold a folder, to which `+` may join a path."""

ELSEWHERE = re.compile(r"^[/~]|\\|://|^[A-Za-z]:|(^|/)\.\.(/|$)")
"""A text that would, as a path or address, lead out of the bundle's folder."""


@dataclass(frozen=True)
class Allowed:
    """What a release's configs may use.

    Attributes:
        targets: dotted name of each `_target_` -> its arguments.
        imports: dotted names.
        calls: dotted names that an expression may call.
        attributes: names after the point behind a reference or a call.
        logging_sha256: of the one logging.conf; Python evaluates parts of such a file.
    """

    targets: Mapping[str, Collection[str]]
    imports: Collection[str]
    calls: Collection[str]
    attributes: Collection[str]
    logging_sha256: str


def imported(line: object) -> str | None:
    """The dotted name that `$import a` or `$from a import b` imports; None where a line does another thing."""
    if not isinstance(line, str) or not line.startswith("$") or len(line) > LONGEST_EXPRESSION:
        return None
    try:
        [statement] = ast.parse(line[1:]).body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(statement, ast.Import | ast.ImportFrom) or len(statement.names) != 1:
        return None
    [alias] = statement.names
    if alias.asname or (isinstance(statement, ast.ImportFrom) and (statement.level or not statement.module)):
        return None
    return f"{statement.module}.{alias.name}" if isinstance(statement, ast.ImportFrom) else alias.name


def parsed(value: str) -> ast.Expression:
    """An expression as MONAI evaluates it: with its references replaced.

    Raises:
        InputError: it is none, or longer or with other characters than ours.
    """
    if len(value) > LONGEST_EXPRESSION:
        raise InputError(f"has {len(value)} characters; {LONGEST_EXPRESSION} are the most")
    if not value.isascii() or not value.isprintable():
        raise InputError("has characters that no expression needs")
    text = value.replace("#", "::")
    for reference in sorted(set(REFERENCE.findall(text)), key=len, reverse=True):
        text = text.replace(reference, f"{REFERENCES}['{reference[1:]}']")
    try:
        return ast.parse(text[1:], mode="eval")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise InputError("is no expression") from None


def dotted(node: ast.AST) -> str | None:
    """`torch.cuda.is_available` of a name and the attributes behind it; None for attributes of anything else."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def full_name(name: str, scope: Mapping[str, str]) -> str:
    """The dotted name with its first part as the imports, MONAI or Python bind it."""
    first, point, rest = name.partition(".")
    return ({**GLOBALS, **scope}.get(first) or f"builtins.{first}") + point + rest


def expression_problems(tree: ast.Expression, scope: Mapping[str, str], listed: Allowed) -> Iterator[str]:
    """What an expression uses that is not on the list."""
    nodes = list(ast.walk(tree))
    for node in nodes:
        if not isinstance(node, SYNTAX):
            yield f"holds a {type(node).__name__}, which no config needs"
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    within = _within(nodes)
    for node in nodes:
        name = dotted(node)
        if isinstance(node, ast.Name | ast.Attribute) and name is not None:
            if id(node) not in within and (id(node) not in called or full_name(name, scope) not in listed.calls):
                yield f"uses {name!r}, which is not on the list"
        elif isinstance(node, ast.Attribute) and node.attr not in listed.attributes:
            yield f"uses the attribute {node.attr!r}, which is not on the list"
        else:
            yield from _form_problems(node)
    yield from _constant_problems(nodes)


def _within(nodes: Sequence[ast.AST]) -> set[int]:
    """Which nodes are the beginning of a longer dotted name, or part of a reference: those are looked at as a whole."""
    names = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and dotted(node)}
    references = [node for node in nodes if isinstance(node, ast.Subscript) and _reference(node)]
    return names | {id(part) for node in references for part in (node.value, node.slice)}


def _form_problems(node: ast.AST) -> Iterator[str]:
    """Forms that are allowed for one purpose alone."""
    if isinstance(node, ast.Subscript) and _reference(node) is None:
        yield "uses [] for something else than a list"
    elif isinstance(node, ast.Call) and not isinstance(node.func, ast.Name | ast.Attribute):
        yield "calls what is no name"
    elif isinstance(node, ast.BinOp) and not joins(node):
        yield f"uses + for something else than a path below {' or '.join(ROOTS)}"


def _constant_problems(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Of the numbers and texts in an expression, those in references left out."""
    joined = {id(node.right) for node in nodes if isinstance(node, ast.BinOp) and joins(node)}
    within = _within(nodes)
    for node in nodes:
        if not isinstance(node, ast.Constant) or id(node) in within:
            continue
        value = node.value
        if not isinstance(value, str | int | float | None):
            yield f"holds a {type(value).__name__}"
        if isinstance(value, str) and ELSEWHERE.search(value[1:] if id(node) in joined else value):
            yield "leads out of the bundle's folder"
        if isinstance(value, str) and is_code(value):
            yield "makes code of a text"


def _reference(node: ast.AST) -> str | None:
    """The key that `__local_refs['a::b']` means; None for any other use of []."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name) or node.value.id != REFERENCES:
        return None
    key = node.slice.value if isinstance(node.slice, ast.Constant) else None
    return key if isinstance(key, str) and is_sound(key) else None


def joins(node: ast.BinOp) -> bool:
    """Whether this is `@bundle_root + '/a path'`."""
    right = node.right.value if isinstance(node.right, ast.Constant) else None
    return (
        isinstance(node.op, ast.Add)
        and _reference(node.left) in ROOTS
        and isinstance(right, str)
        and right.startswith("/")
    )


def is_sound(key: str) -> bool:
    """Whether a reference is absolute, and to no import, whose value would be a module."""
    key = key.replace("#", "::")
    return bool(SOUND_REFERENCE.fullmatch(key)) and key.partition("::")[0] != "imports" and "::_" not in key


def is_code(value: str) -> bool:
    """Whether MONAI would make more of a text than a text."""
    return value.startswith(("$", "@", "%")) or bool(re.search("[@%](#|::)", value))


def short(value: object) -> str:
    """A value as Python writes it, cut off where it fills a sentence."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
