"""Where a model comes from, for a report: settings, digests, versions, dates, limits that its bundle declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.bundle import PATH_KEYS, base_config, configs, find
from pipeline.bundle import written as as_written
from pipeline.configuration import NAMES
from pipeline.errors import InputError
from pipeline.report_words import NONE, Table, duration, moment
from pipeline.run_record import Record, Run
from pipeline.terms import read_metadata

MANIFEST = "manifest_sha256"

DIGESTS = {
    MANIFEST: "Manifest (list of cases)",
    "patients_sha256": "Split: which patient is in which partition",
    "pixels_sha256": "Split: which image content is in which partition",
    "checkpoint_sha256": "Weights (checkpoint)",
}
"""SHA-256 digests of a run, in words."""

NOT_SETTINGS = (
    *PATH_KEYS,
    "tracking_uri",
    "parent_run",
    "bundle_root",
    "imports",
    "initialize",
    "experiment",
    "resume",
)
"""Keys of a config that say where, not how."""

UNSAID = "its bundle declares none"
UNRECORDED = "not recorded"
WHY = "Why"
"""Only where a run ended before its time."""


def bundle_of(run: Run, given: str | None = None) -> tuple[str, Path | None, dict[str, Any]]:
    """The name of a run's bundle, its folder and its metadata; None and {} where it is not at hand.

    Args:
        run: names it by its tag, or by its experiment where it is older.
        given: name or folder of the bundle, if the user says it.

    Raises:
        InputError: the bundle that the user has named does not exist.
    """
    name = run.tags.get("bundle") or run.experiment
    try:
        folder = find(given or name)
    except InputError:
        if given:
            raise
        return name, None, {}
    return name, folder, read_metadata(folder / "configs" / "metadata.json")


def changed_settings(run: Run, folder: Path | None) -> list[tuple[str, str, str]] | None:
    """What differs from the bundle's default: (setting, value of the run, default); None where nobody can say."""
    config = run.json("config.json")
    workflow = "training" if run.partition == "training" else "evaluating"
    if config is None or folder is None:
        return None
    written = _defaults(folder, Path(base_config(folder, workflow)).name)
    return [
        (key, _shown(value, key), _shown(written[key], key))
        for key, value in config.items()
        if key in written
        and key not in NOT_SETTINGS
        and _plain(value)
        and _shown(value, key) != _shown(written[key], key)
    ]


def _defaults(folder: Path, file: str) -> dict[str, Any]:
    """The plain top-level values of a bundle's config, those of other files looked up there."""
    files = {name: as_written(folder, name) for name in configs(folder)}
    found = {}
    for key, value in files[file].items():
        home = file
        while isinstance(value, str) and value.startswith("%configs/"):
            home, _, name = value.removeprefix("%configs/").partition("::")
            value = files.get(home, {}).get(name)  # noqa: PLW2901
        found[key] = value
    return {key: value for key, value in found.items() if _plain(value)}


def _plain(value: Any) -> bool:
    """A number, a word or a list of such; no expression, no component."""
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return not isinstance(value, Mapping) and not str(value).startswith(("$", "@", "%"))


def _shown(value: Any, key: str) -> str:
    """A setting as it is written; of a path only that it is one."""
    text = "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "a file" if key not in NAMES and ("/" in text or "\\" in text) else text


def runs(record: Record) -> Table:
    """The runs that a report is about, side by side: what, when, how often resumed, with which software."""
    shown = [*record.trainings, record.run]
    facts = {title: of for title, of in FACTS.items() if title != WHY or any(run.failure for run in shown)}
    rows = [[title, *(of(run) for run in shown)] for title, of in facts.items()]
    names = sorted({key for run in shown for key in run.tags if key.startswith("version.")})
    rows += [[f"Version of {n.removeprefix('version.')}", *(r.tags.get(n, UNRECORDED) for r in shown)] for n in names]
    head = ("What", *(_kind(run).capitalize() for run in shown))
    return Table("Runs in MLflow", head, rows, text_columns=len(head))


def _kind(run: Run) -> str:
    return {"training": "training", "": "summary of runs"}.get(run.partition, f"evaluation, {run.partition}")


def _resumed(run: Run) -> str:
    times = int(run.tags.get("resumed", 0))
    return {0: "never", 1: "once"}.get(times, f"{times} times")


FACTS: Mapping[str, Callable[[Run], str]] = {
    "Run": lambda run: run.id,
    "Name": lambda run: run.name,
    "Ended as": lambda run: run.status,
    WHY: lambda run: run.failure or NONE,
    "Began": lambda run: moment(run.started),
    "Took": lambda run: duration(run.started, run.ended),
    "Resumed": _resumed,
    "Device": lambda run: run.tags.get("device", UNRECORDED),
    "Code (git commit)": lambda run: run.tags.get("code_commit", UNRECORDED),
}
"""Rows of the table of runs."""


def resumptions(record: Record) -> list[str]:
    """What had changed each time a run was resumed, in sentences."""
    found = []
    for run in (*record.trainings, record.run):
        for number in range(1, int(run.tags.get("resumed", 0)) + 1):
            prefix = f"resumed.{number}."
            changed = {key.removeprefix(prefix): v for key, v in run.tags.items() if key.startswith(prefix)}
            told = ", ".join(f"{key} became {value}" for key, value in changed.items())
            found.append(f"Run {run.id[:8]}, resumed for the {_ordinal(number)} time: {told or 'nothing had changed'}.")
    return found


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def digests(record: Record) -> Table:
    """Digests of data, split and weights; whether training and evaluation agree."""
    table = record.run.evaluation or {}
    rows, run = [], record.run
    for key, title in DIGESTS.items():
        of = table.get(key) or run.tags.get(key) or run.dataset.get(key) or UNRECORDED
        before = [found for run in record.trainings if (found := run.tags.get(key) or run.dataset.get(key))]
        same = "each fold has one of its own" if record.scored and key == MANIFEST else _agreement(of, before, key)
        rows.append([title, _joined(of), same])
    return Table("Digests (SHA-256): equal digests mean equal content", ("Of", "Digest", "In the training"), rows,
                 text_columns=3)  # fmt: skip


def _joined(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _agreement(of: Any, before: list[str], key: str) -> str:
    if not before:
        return UNRECORDED
    same = sorted(map(str, before)) == sorted(map(str, of)) if isinstance(of, list) else set(before) == {of}
    return "the same" if same else "another" if key != MANIFEST else "another: the list has changed since"


def limits(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a bundle declares of its use: (term, text), also where it declares nothing."""
    return [(term, text or UNSAID) for term, text in _limits(metadata)]


def _limits(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    inputs = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    yield "Intended use", str(metadata.get("intended_use", ""))
    yield "Limits", _text(metadata.get("limitations") or metadata.get("limits"))
    yield "Warnings", _text(metadata.get("warnings"))
    yield "Images it is made for", str(metadata.get("image_classes", ""))
    yield "Kind of image (DICOM modality)", str(inputs.get("modality", ""))
    yield "What it marks", str(metadata.get("pred_classes", ""))
    yield "Trained on, as declared", str(metadata.get("data_source", ""))
    yield "Literature", _text(metadata.get("references"))


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
