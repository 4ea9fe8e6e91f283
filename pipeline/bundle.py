"""Find, check and run a MONAI bundle; the only file that imports monai.bundle."""

from __future__ import annotations

import ast
import builtins
import contextlib
import difflib
import inspect
import logging
import math
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.bundle import run as monai_run
from monai.utils import optional_import

from pipeline.errors import InputError

BASES = {"training": "train.yaml", "evaluating": "evaluate.yaml", "predicting": "inference.yaml"}
"""The workflows of a bundle, and the config that defines each."""

PATH_KEYS = ("manifest", "dataset_dir", "output_dir", "checkpoint", "source")
"""Top-level keys that hold a path; the caller's relative paths are meant from the caller's folder."""

COUNTS = ("epochs", "batch_size", "patch", "patches_per_case", "val_interval", "depth")
"""Top-level keys that must be at least 1."""

SQLITE = "sqlite:///"
"""How a tracking URI begins that names a file."""

EXPRESSION_GLOBALS = ("monai", "torch", "np", "numpy", *dir(builtins))
"""Names that MONAI lets every `$` expression see."""

REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
"""`@id` and `@a#b#0` inside a string; MONAI writes the latter `@a::b::0` once it has read it."""


def find(name: str) -> Path:
    """A bundle's folder, from a path or from a name under `bundles/`.

    Raises:
        InputError: there is no such bundle; lists those that there are.
    """
    homes = [Path("bundles"), Path(__file__).resolve().parents[1] / "bundles"]
    for candidate in (Path(name), *(home / name for home in homes)):
        if (candidate / "configs" / "metadata.json").is_file():
            return candidate.resolve()
    known = sorted({path.parents[1].name for home in homes for path in home.glob("*/configs/metadata.json")})
    raise InputError(f"no bundle {name!r}; there is {', '.join(known) or 'none'}")


def base_config(bundle: Path, workflow: str) -> str:
    """The config, relative to the bundle, that defines a workflow."""
    if workflow not in BASES:
        raise InputError(f"no workflow {workflow!r}{_did_you_mean(workflow, BASES)}; there is {', '.join(BASES)}")
    if not (bundle / "configs" / BASES[workflow]).is_file():
        raise InputError(f"{bundle.name} has no configs/{BASES[workflow]}, so it cannot do {workflow!r}")
    return f"configs/{BASES[workflow]}"


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--epochs 5 --train#trainer#amp=False` -> a dict; values are read as Python literals, else as text.

    Raises:
        InputError: a word is no `--key` or a key has no value.
    """
    overrides: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise InputError(f"{word!r} is not an override; write --KEY VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not queue:
                raise InputError(f"--{key} has no value; write --{key} VALUE")
            value = queue.pop(0)
        overrides[key] = value if key in PATH_KEYS else _literal(value)
    return overrides


def run(bundle: Path, workflow: str, overrides: Mapping[str, Any], overlays: Sequence[str] = ()) -> None:
    """Run a workflow in the bundle's folder, as `python -m monai.bundle run` does there.

    Raises:
        InputError: the workflow or an override is unknown, or what the run itself says to its user.
    """
    files, settings = prepare(bundle, workflow, overrides, overlays)
    for name in ("monai.bundle.scripts", "monai.bundle.workflows"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they repeat the command line
    with contextlib.chdir(bundle), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")  # that configs are code, the README says
        monai_run(run_id=workflow, config_file=files, **settings)


def command(bundle: Path, workflow: str, overrides: Mapping[str, Any], overlays: Sequence[str] = ()) -> str:
    """The shell command that does what `run` does."""
    files, settings = prepare(bundle, workflow, overrides, overlays)
    configs = files[0] if len(files) == 1 else "[" + ",".join(f"'{file}'" for file in files) + "]"
    words = ["python", "-m", "monai.bundle", "run", workflow, "--config_file", configs]
    for key, value in settings.items():
        words += [f"--{key}", str(value)]
    return f"cd {shlex.quote(str(bundle))} && {shlex.join(words)}"


def prepare(
    bundle: Path, workflow: str, overrides: Mapping[str, Any], overlays: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """The config files of a run, and its overrides with absolute paths.

    Raises:
        InputError: the workflow, an overlay or an override is unknown: MONAI would take it in silence.
    """
    files = [base_config(bundle, workflow), *(_overlay(bundle, name) for name in overlays)]
    parser = _parser(bundle, files)
    for key in overrides:
        if key.replace("::", "#") not in parser:
            known = list(_config(parser))
            raise InputError(f"{bundle.name} has no key {key!r} for {workflow}{_did_you_mean(key, known)}")
    settings = {key: _checked(key, value, _config(parser).get(key)) for key, value in overrides.items()}
    for key in PATH_KEYS:
        if settings.get(key) is not None:
            settings[key] = str(Path(str(settings[key])).absolute())
    if str(settings.get("tracking_uri")).startswith(SQLITE):
        settings["tracking_uri"] = SQLITE + str(Path(settings["tracking_uri"].removeprefix(SQLITE)).absolute())
    return files, settings


def check(bundle: Path) -> list[str]:
    """Find what would break a bundle's configs when they run, without running them.

    Every config, and every overlay over `train.yaml`: each `_target_` is imported and its arguments are bound to
    the signature, each `$` expression is parsed and its names looked up, each `@` reference is resolved.

    Returns:
        Sentences, empty where all is well.
    """
    configs = sorted(path.name for path in (bundle / "configs").glob("*.yaml"))
    problems = [f"configs/{name} is missing" for name in BASES.values() if name not in configs]
    for name in configs:
        files = [f"configs/{name}"] if name in BASES.values() else ["configs/train.yaml", f"configs/{name}"]
        try:
            parser = _parser(bundle, files)
            with contextlib.chdir(bundle):
                parser.resolve_macro_and_relative_ids()
        except (InputError, KeyError, ValueError, FileNotFoundError) as error:
            problems.append(f"{name}: {error}")
            continue
        problems += [f"{name}: {problem}" for problem in _problems(parser)]
    return problems


def _parser(bundle: Path, files: Sequence[str]) -> ConfigParser:
    parser = ConfigParser()
    try:
        parser.read_config([str(bundle / file) for file in files])
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{' and '.join(files)} cannot be read: {error}") from None
    if (bundle / "configs" / "metadata.json").is_file():
        parser.read_meta(str(bundle / "configs" / "metadata.json"))
    return parser


def _config(parser: ConfigParser) -> dict[str, Any]:
    config: Any = parser.config
    return config


def _checked(key: str, value: Any, default: Any) -> Any:
    """An override of the same kind as the number, or of at least 1 as the count, that it replaces."""
    if key == "device" and str(value).startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here; say cpu, or leave it out")
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InputError(f"--{key} must be a number such as {default}, got {value!r}")
    if isinstance(default, int) and not isinstance(value, int):
        raise InputError(f"--{key} must be a whole number such as {default}, got {value!r}")
    if value < (key in COUNTS):
        raise InputError(f"--{key} must be at least {int(key in COUNTS)}, got {value!r}")
    return value


def _overlay(bundle: Path, name: str) -> str:
    file = f"configs/{name if name.endswith('.yaml') else name + '.yaml'}"
    if not (bundle / file).is_file():
        known = sorted({p.stem for p in (bundle / "configs").glob("*.yaml")} - {Path(b).stem for b in BASES.values()})
        raise InputError(f"{bundle.name} has no {file}; overlays are: {', '.join(known) or 'none'}")
    return file


def _did_you_mean(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _problems(parser: ConfigParser) -> Iterator[str]:
    imported = _imported_names(parser)
    yield from (problem for problem in imported if problem.startswith("imports"))
    names = {*EXPRESSION_GLOBALS, *imported}
    for place, value in _walk(_config(parser)):
        if isinstance(value, Mapping) and "_target_" in value:
            yield from _target_problems(place, value)
        elif isinstance(value, str):
            for reference in REFERENCE.findall(value) if value.startswith(("$", "@")) else ():
                if reference not in parser:
                    yield f"{place}: @{reference} is defined nowhere"
            if value.startswith("$") and not place.startswith("imports"):
                yield from _expression_problems(place, value, names)


def _imported_names(parser: ConfigParser) -> set[str]:
    """Names that the config's `imports` bind; a sentence that starts with `imports` for each that fails."""
    scope: dict[str, Any] = {}
    for line in _config(parser).get("imports", []):
        try:
            exec(str(line).removeprefix("$"), scope)
        except (ImportError, SyntaxError, AttributeError) as error:
            scope[f"imports: {line!r} fails: {error}"] = None
    return set(scope) - {"__builtins__"}


def _walk(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below the root with its `a#b#0`, the metadata left out."""
    if place:
        yield place, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if key != "_meta_":
            yield from _walk(part, f"{place}#{key}" if place else str(key))


def _target_problems(place: str, component: Mapping[str, Any]) -> Iterator[str]:
    target = component["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return
    located = target if "." in target else _monai_component(target)
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


def _monai_component(name: str) -> str | None:
    from monai.bundle.config_item import ComponentLocator  # slow: it scans all of MONAI

    modules = ComponentLocator().get_component_module_name(name)
    module = modules[0] if isinstance(modules, list) else modules
    return f"{module}.{name}" if module else None


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
