"""A retraining as one HTML page: the verdict and why first, then everything that it rests on; for the site alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from pydantic import ValidationError

from pipeline import gate_picture, report, sealed
from pipeline import report_gate_sections as sections
from pipeline.errors import InputError
from pipeline.report_words import NONE, moment
from pipeline.retrain_record import RetrainRecord

SECTIONS = {
    "verdict": "Verdict",
    "classes": "The sealed patients",
    "subgroups": "Subgroups",
    "rule": "The rule and its error",
    "openings": "Openings of the sealed patients",
    "data": "The site\N{RIGHT SINGLE QUOTATION MARK}s data",
    "training": "The training",
    "validation": "Both models on validation",
    "release": "The deployed release",
    "leaves": "What stays, and what may leave",
    "steps": "Step by step",
}
"""Of the page, in order: anchor and heading."""


def write(record: Mapping[str, Any] | RetrainRecord, out: Path) -> None:
    """Write the page of a retraining, at whatever stage it is; an earlier report is replaced.

    Args:
        record: what `retrain.json` holds.
        out: file.

    Raises:
        InputError: the record is of another version, or `out` is something else than a report.
    """
    report.write(html(record), out)


def html(record: Mapping[str, Any] | RetrainRecord, *, now: datetime | None = None) -> str:
    """The page.

    Args:
        record: what `retrain.json` holds.
        now: when the page is made; None: now.

    Raises:
        InputError: the record is of another version.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["quoted"] = quoted
    page = environment.get_template("report_gate.html")
    try:
        found = record if isinstance(record, RetrainRecord) else RetrainRecord.model_validate(record)
        return page.render(report.style() | _context(found) | {"made": moment(now or datetime.now(UTC))})
    except (ValidationError, KeyError, TypeError, ValueError, jinja2.UndefinedError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"the record of the retraining lacks what its page needs ({first}); it is of another version"
        ) from error


def quoted(text: str) -> Markup:
    """A sentence whose `names` between backticks are set as code, all else escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _context(record: RetrainRecord) -> dict[str, Any]:
    """What the template shows, section by section."""
    word, reason = sections.verdict(record)
    head, _, why = reason.partition(":")
    name = record.release.name if record.release and record.release.name else "A model"
    decision = record.decision
    return {
        "none_shown": NONE,
        "generator": f"{report.GENERATOR} {version('overtile')}",
        "contents": list(SECTIONS.items()),
        "title": f"{name}: retraining",
        "word": word.replace(" ", "-"),
        "verdict": head,
        "why": why.strip(),
        "outcome": sections.outcome(record),
        "warnings": list(sections.warnings(record)),
        "classes": sections.class_table(decision) if decision else None,
        "patients": decision["patients"] if decision else 0,
        "picture": gate_picture.picture(decision["classes"]) if decision else None,
        "told": [gate_picture.told(one) for one in decision["classes"] if one["by_patient"]] if decision else [],
        "absent": sections.absent(decision) if decision else None,
        "losses": sections.losses(decision) if decision else None,
        "notes": decision["notes"] if decision else [],
        "subgroups": sections.subgroup_table(decision) if decision else None,
        "rule": sections.rule(record),
        "needed": (record.needed or {}).get("sentence", ""),
        "simulation": list(sections.simulation(record)),
        "simulation_notes": (record.simulation or {}).get("notes", []),
        "openings": sections.openings(record),
        "openings_said": sealed.said(record.openings),
        "indexed": sections.indexed(record),
        "data": list(sections.data(record)),
        "training": sections.training(record),
        "validation": sections.validation(record),
        "screen": (record.screen or {}).get("reason", ""),
        "release": sections.release(record),
        "checks": sections.checks(record),
        "made_release": record.result.release if record.result else None,
        "steps": sections.steps(record),
    }
