"""A run as one HTML page that a reviewer can judge it by: self-contained, for the site alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import report_cases, report_figures, report_origin, report_pairs, report_sections, report_trust
from pipeline.atomic import atomic
from pipeline.errors import InputError
from pipeline.report_cases import Picture
from pipeline.report_words import NONE, Table, moment
from pipeline.run_record import Record

GENERATOR = "overtile report"
"""How the page says who made it; by it an earlier report is known."""

HEAD = 4096
"""Bytes of a file in which that stands."""

SECTIONS = {
    "verdict": "Verdict",
    "asked": "What was asked",
    "data": "Data and split",
    "figures": "Figures",
    "subgroups": "Subgroups",
    "cases": "Worst cases first",
    "calibration": "Calibration",
    "previous": "Beside the previous model",
    "learning": "Learning curves",
    "origin": "Provenance",
    "limits": "Limits and intended use",
}
"""Of the page, in order: anchor and heading."""


def html(
    record: Record,
    *,
    previous: Record | None = None,
    bundle: str | None = None,
    now: datetime | None = None,
) -> str:
    """The page.

    Args:
        record: of the run, from `pipeline.run_record.read`.
        previous: the evaluation of the model before it, on the same patients; None: that of the registered champion,
            where the same store has one.
        bundle: name or folder of its bundle, where the run's own name for it does not lead there.
        now: when the report is made; None: now.

    Raises:
        InputError: the run's table of scores lacks what every evaluation writes, there is no such bundle, or the
            previous model was scored on something else.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "report.html"
    )
    try:
        return page.render(style() | _context(record, bundle, previous) | {"made": moment(now or datetime.now(UTC))})
    except (KeyError, IndexError, TypeError, AttributeError, jinja2.UndefinedError) as error:
        raise InputError(
            f"run {record.run.id}: its evaluation.json or its bundle's metadata lacks what a report needs ({error}); "
            "evaluate the weights again with this version"
        ) from error


def write(page: str, path: Path) -> None:
    """Write a page atomically; an earlier report is replaced.

    Raises:
        InputError: something else than a report stands there, or nothing can be written.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it, say {path / 'report.html'}")
    if path.exists() and f'content="{GENERATOR}'.encode() not in path.read_bytes()[:HEAD]:
        raise InputError(f"{path}: is no report of this program and would be overwritten; choose another --out")
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def style() -> dict[str, Any]:
    """Style and script as they stand in the page, and the digests by which the page allows them and nothing else."""
    found: dict[str, Any] = {}
    for kind in ("css", "js"):
        text = (Path(__file__).parent / f"report.{kind}").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        found |= {kind: Markup(text), f"{kind}_digest": f"sha256-{digest}"}
    return found


def _context(record: Record, bundle: str | None, previous: Record | None) -> dict[str, Any]:
    """What the template shows, section by section."""
    run, table = record.run, record.run.evaluation
    name, folder, metadata = report_origin.bundle_of(run, bundle)
    model = str(metadata.get("name") or name or "The model")
    flow = report_sections.flow(record)
    trainings = record.trainings or ([run] if run.partition == "training" else [])
    no_previous = ""
    if previous is None:
        previous, no_previous = report_pairs.champion(record, name)
    comparison = report_pairs.compared(record, previous) if previous else None
    return {
        "none_shown": NONE,
        "generator": f"{GENERATOR} {version('overtile')}",
        "contents": list(SECTIONS.items()),
        "title": f"{model}: {'evaluation' if table else 'training' if run.partition == 'training' else 'run'} report",
        "about": f"Run {run.name} of {moment(run.started)}.",
        "state": report_sections.state(record),
        "verdict": report_sections.verdict(record, model, str(metadata.get("intended_use", "")), comparison),
        "verdict_tag": run.tags.get("verdict", ""),
        "notes": record.notes,
        "task": metadata.get("task", ""),
        "asked": report_sections.asked(record, name),
        "settings": list(_settings(record, folder)),
        "split": report_sections.split(flow),
        "flow": report_sections.steps(flow),
        "parts": report_sections.parts(flow),
        "flow_complete": flow["complete"],
        "figures": report_figures.tables(table) if table else [],
        "trust": report_figures.how_far_to_trust(table) if table else "",
        "cautions": table.get("cautions", []) if table else [],
        "subgroups": list(report_trust.subgroup_tables(table)) if table else [],
        "subgroup_charts": report_trust.subgroup_charts(table) if table else [],
        "subgroup_notes": report_trust.subgroup_notes(table) if table else ["Nothing was scored."],
        "pictures": list(_pictures(record)),
        "case_tables": list(_case_tables(table)) if table else [],
        "calibration": report_trust.calibration_charts(table) if table else [],
        "calibration_tables": list(report_trust.calibration_table(table)) if table else [],
        "calibration_said": report_trust.calibration_said(table) if table else "",
        "previous": comparison,
        "no_previous": no_previous,
        "curves": report_sections.curves(trainings) if trainings else [],
        "overlap": report_sections.overlap(table) if table else "Nothing was scored.",
        "origin": [report_origin.digests(record), report_origin.runs(record)],
        "resumptions": report_origin.resumptions(record),
        "limits": report_origin.limits(metadata) if metadata else [],
        "limits_of": f", version {metadata['version']}" if "version" in metadata else "",
    }


def _pictures(record: Record) -> Iterator[Picture]:
    """Those of the evaluation; of a cross-validation those of every fold."""
    for run in record.scored or [record.run]:
        told = f"{run.name}. " if record.scored else ""
        for one in report_cases.pictures(run.evaluation, run.files) if run.evaluation else ():
            yield replace(one, title=told + one.title)


def _case_tables(table: Mapping[str, Any]) -> Iterator[Table]:
    patients = report_cases.patient_table(table)
    if patients:
        yield patients
    yield report_cases.case_table(table)


def _settings(record: Record, folder: Path | None) -> Iterator[tuple[str, Table | None]]:
    """What differs from the defaults, of the training and of the evaluation."""
    for run in (*record.trainings[:1], *(record.scored[:1] or [record.run])):
        what = "Training" if run.partition == "training" else "Evaluation"
        changed = report_origin.changed_settings(run, folder)
        head = ("Setting", "In this run", "Default")
        yield (
            what,
            None
            if changed is None
            else Table(
                f"{what}: settings that differ from the bundle\N{RIGHT SINGLE QUOTATION MARK}s default",
                head,
                changed,
                text_columns=3,
            ),
        )
