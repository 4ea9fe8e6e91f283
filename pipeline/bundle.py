"""Find, check and run a MONAI bundle; the only file that imports monai.bundle."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import itertools
import logging
import math
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.bundle import run as monai_run
from monai.bundle.config_item import ComponentLocator
from monai.bundle.properties import InferProperties
from monai.utils import BundlePropertyConfig, optional_import

from pipeline import terms
from pipeline.config_check import breaks, references, text_numbers, unreferenced, walk
from pipeline.errors import InputError

BASES = {"training": "train", "evaluating": "evaluate", "predicting": "inference"}
"""The workflows of a bundle, and the name of the config that defines each."""

FORMATS = (".yaml", ".json")
"""How configs are written: by hand, and by a release."""

METADATA = "metadata.json"
"""The file among the configs that is none."""

LOOKED_UP = tuple(str(found[BundlePropertyConfig.ID]).partition("::")[0] for found in InferProperties.values())
"""Top-level keys of a release by which MONAI's tools find the parts of a deployed model."""

PATH_KEYS = (
    "manifest", "dataset_dir", "output_dir", "checkpoint", "encoder_weights", "start_from", "source", "metadata",
)  # fmt: skip
"""Top-level keys that hold a path; the caller's relative paths are meant from the caller's folder."""

COUNTS = (
    "epochs",
    "batch_size",
    "accumulate",
    "patch",
    "patches_per_case",
    "val_interval",
    "give_up_after",
    "patience",
    "save_every",
    "depth",
    "width",
    "in_channels",
    "size",
)
"""Top-level keys that must be at least 1."""

OPTIONAL_NUMBERS = (
    "minutes", "clip_norm", "patience", "save_every", "give_up_after", "elastic_sigma", "memory_gb",
    "size", "workers", "cache_gb",
)  # fmt: skip
"""Top-level keys that are a number or null, whatever they are by default."""

NOTHING = "$None"
"""An override that MONAI takes for null; a plain None it drops in silence."""

SQLITE = "sqlite:///"
"""How a tracking URI begins that names a file."""

OPTIONAL_SWITCHES = ("amp", "channels_last", "compile", "fused", "pinned")
"""Top-level keys that are True, False or, for what the device does best, null."""

OUTSIDE = (*BASES, "imports", "initialize", "run", "finalize", "bundle_root")
"""Top-level keys that MONAI looks up itself, so nothing need refer to them."""


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
    file = _written_as(bundle, BASES[workflow])
    if file is None:
        raise InputError(f"{bundle.name} has no configs/{BASES[workflow]}.yaml or .json, so it cannot do {workflow!r}")
    return file


def configs(bundle: Path) -> list[str]:
    """The names of a bundle's configs, the metadata left out."""
    files = (bundle / "configs").iterdir()
    return sorted(path.name for path in files if path.suffix in FORMATS and path.name != METADATA)


def written(bundle: Path, name: str) -> dict[str, Any]:
    """A config as it is written, macros and all; `name` is one of `configs`."""
    return dict(ConfigParser.load_config_file(bundle / "configs" / name))


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


def settings(bundle: Path, workflow: str, overlays: Sequence[str] = ()) -> dict[str, Any]:
    """The top-level keys of a workflow's configs, overlays included, with their values as they are written."""
    files = [base_config(bundle, workflow), *(_overlay(bundle, name) for name in overlays)]
    return {key: value for key, value in _config(_parser(bundle, files)).items() if key != "_meta_"}


def expanded(bundle: Path, workflow: str) -> dict[str, Any]:
    """A workflow's config with its macros replaced by what they mean; nothing of it is evaluated.

    Raises:
        InputError: the bundle lacks the config, or it cannot be read.
    """
    parser = _parser(bundle, [base_config(bundle, workflow)])
    with contextlib.chdir(bundle):
        parser.resolve_macro_and_relative_ids()
    return {key: value for key, value in _config(parser).items() if key != "_meta_"}


def fully_named(config: Any) -> Any:
    """A config with each `_target_` by its dotted name, the shortest: `Compose` is `monai.transforms.Compose`."""
    if isinstance(config, Mapping):
        return {key: _full_name(value) if key == "_target_" else fully_named(value) for key, value in config.items()}
    return [fully_named(part) for part in config] if isinstance(config, list) else config


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


def components(
    bundle: Path, workflow: str, overrides: Mapping[str, Any], keys: Sequence[str], overlays: Sequence[str] = ()
) -> list[Any]:
    """Items of a workflow's config, say `train#dataset`, made with what they refer to and nothing else.

    A CacheDataset among that keeps nothing in memory: it prepares a case whenever it is asked for it.

    Raises:
        InputError: the workflow, an override or a key is unknown, or what an item itself says to its user.
    """
    files, settings = prepare(bundle, workflow, overrides, overlays)
    parser = _parser(bundle, files)
    parser.update(settings)
    for key in keys:
        if key not in parser:
            raise InputError(f"{bundle.name} has no {key!r} for {workflow}")
    with contextlib.chdir(bundle):
        parser.resolve_macro_and_relative_ids()
        for place, value in list(walk(_config(parser))):
            if place.endswith("#_target_") and str(value).endswith("CacheDataset"):
                parser[place.replace("_target_", "cache_num")] = 0
        return [parser.get_parsed_content(key) for key in keys]


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
        InputError: the workflow, an overlay or an override is unknown: MONAI would take it in silence. Or a path other
            than a manifest's has a `#`, which MONAI makes `::` of.
    """
    files = [base_config(bundle, workflow), *(_overlay(bundle, name) for name in overlays)]
    parser = _parser(bundle, files)
    for key in overrides:
        if key.replace("::", "#") not in parser:
            known = list(_config(parser))
            raise InputError(f"{bundle.name} has no key {key!r} for {workflow}{_did_you_mean(key, known)}")
    settings = {key: _checked(key, value, _default(bundle, parser, key)) for key, value in overrides.items()}
    for key in PATH_KEYS:
        if settings.get(key) is not None:
            settings[key] = str(Path(str(settings[key])).absolute())
    settings = {key: NOTHING if value is None else value for key, value in settings.items()}
    if str(settings.get("tracking_uri")).startswith(SQLITE):
        settings["tracking_uri"] = SQLITE + str(Path(settings["tracking_uri"].removeprefix(SQLITE)).absolute())
    for key in (*PATH_KEYS, "tracking_uri"):
        if "#" in str(settings.get(key)) and key != "manifest":
            raise InputError(f"--{key} {settings[key]}: MONAI cannot take a `#` in a path; rename that folder or file")
    return files, settings


def check(bundle: Path) -> list[str]:
    """Find what would break a bundle's configs when they run, or do nothing there, without running them.

    Every config, and every overlay over the training's: each `_target_` is imported and its arguments are bound to the
    signature, each `$` expression is parsed and its names looked up, each `@` reference is resolved, numbers
    must not be text, every key must be referred to by some config of the bundle, and codes in the metadata be codes.

    Returns:
        Sentences, empty where all is well.
    """
    names = configs(bundle)
    bases = {workflow: _written_as(bundle, stem) for workflow, stem in BASES.items()}
    problems = [
        f"metadata.json: {problem}"
        for problem in terms.problems(terms.read_metadata(bundle / "configs" / "metadata.json"))
    ]
    problems += [f"configs/{BASES[workflow]}.yaml is missing" for workflow, file in bases.items() if file is None]
    stems = [Path(name).stem for name in names]
    problems += [
        f"configs/{name} is there twice" for stem, name in zip(stems, names, strict=True) if stems.count(stem) > 1
    ]
    merged: dict[str, Mapping[str, Any]] = {}
    for name in names:
        file = f"configs/{name}"
        files = [file] if file in bases.values() else [bases["training"] or file, file]
        try:
            parser = _parser(bundle, files)
            with contextlib.chdir(bundle):
                parser.resolve_macro_and_relative_ids()
        except (InputError, KeyError, ValueError, FileNotFoundError) as error:
            problems.append(f"{name}: {error}")
            continue
        merged[name] = _config(parser)
        problems += [f"{name}: {problem}" for problem in breaks(merged[name], parser.__contains__, _monai_component)]
    found = {name: written(bundle, name) for name in merged}
    problems += [f"{name}: {problem}" for name in found for problem in text_numbers(found[name], but=PATH_KEYS)]
    if len(merged) == len(names):
        problems += _unreferenced(found, merged)
    return problems


def _unreferenced(found: Mapping[str, Mapping[str, Any]], merged: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Keys of each file to which no config with that file in it refers, nor any `%` macro of any file.

    In a release the macros are expanded: what other files took from the deployed model's has nobody left who refers
    to it there. Such a key is fine where MONAI's own tools look it up.
    """
    used = {name: [*references(config)] for name, config in merged.items()}
    for name, config in found.items():
        for place, value in walk(config):
            if isinstance(value, str) and value.startswith("%"):
                absolute = ConfigParser.resolve_relative_ids(place.replace("#", "::"), value)
                path, key = ConfigParser.split_path_id(absolute[1:])
                used.setdefault(Path(path).name or name, []).append(("" if path else place, key.replace("::", "#")))
    overlays = [name for name in found if Path(name).stem not in BASES.values()]
    for name, config in found.items():
        sharers = [name, *overlays] if Path(name).stem == BASES["training"] else [name]
        known = [reference for sharer in sharers for reference in used[sharer]]
        fine = OUTSIDE if name.endswith(".yaml") else (*OUTSIDE, *LOOKED_UP)
        yield from (f"{name}: {problem}" for problem in unreferenced(config, known, but=fine))


def _written_as(bundle: Path, stem: str) -> str | None:
    """The file, relative to the bundle, in which a config of that name is written."""
    files = (f"configs/{stem}{suffix}" for suffix in FORMATS)
    return next((file for file in files if (bundle / file).is_file()), None)


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


def _default(bundle: Path, parser: ConfigParser, key: str) -> Any:
    """The value of a top-level key; where it is a macro, that of the key of the file that it means."""
    value = _config(parser).get(key)
    while isinstance(value, str) and value.startswith("%"):
        file, key = ConfigParser.split_path_id(value[1:])
        parser = _parser(bundle, [file]) if file else parser
        value = parser.get(key)
    return value


def _checked(key: str, value: Any, default: Any) -> Any:
    """An override of the same kind as the default that it replaces; a count is at least 1, another number 0."""
    if key == "device" and str(value).startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here; say cpu, or leave it out")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f"--{key} must be True or False, got {value!r}")
    if key in OPTIONAL_SWITCHES and not (value is None or isinstance(value, bool)):
        raise InputError(f"--{key} must be True, False or null, got {value!r}")
    may_be_null = key in OPTIONAL_NUMBERS
    if isinstance(default, bool) or (value is None and may_be_null):
        return value
    if not isinstance(default, (int, float)) and not may_be_null:
        return value
    such_as = " or null" if may_be_null else f" such as {default}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InputError(f"--{key} must be a number{such_as}, got {value!r}")
    if (isinstance(default, int) or key in COUNTS) and not isinstance(value, int):
        raise InputError(f"--{key} must be a whole number{such_as}, got {value!r}")
    if value < (key in COUNTS):
        raise InputError(f"--{key} must be at least {int(key in COUNTS)}, got {value!r}")
    return value


def _overlay(bundle: Path, name: str) -> str:
    stem = Path(name).stem if name.endswith(FORMATS) else name
    file = _written_as(bundle, stem)
    if file is None:
        known = sorted({Path(config).stem for config in configs(bundle)} - {*BASES.values()})
        raise InputError(f"{bundle.name} has no configs/{stem}.yaml; overlays are: {', '.join(known) or 'none'}")
    return file


def _did_you_mean(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _monai_component(name: str) -> str | None:
    modules = _locator().get_component_module_name(name)
    module = modules[0] if isinstance(modules, list) else modules
    return f"{module}.{name}" if module else None


@functools.cache
def _full_name(target: str) -> str:
    """The shortest name under which MONAI's component is imported: packages take up what their files define."""
    name = None if "." in target else _monai_component(target)
    if name is None:
        return target
    home, _, component = name.rpartition(".")
    thing, _ = optional_import(home, name=component)
    for package in itertools.accumulate(home.split("."), "{}.{}".format):
        other, found = optional_import(package, name=component)
        if found and other is thing:
            return f"{package}.{component}"
    return name


@functools.cache
def _locator() -> ComponentLocator:
    return ComponentLocator()  # slow at its first use: it scans all of MONAI
