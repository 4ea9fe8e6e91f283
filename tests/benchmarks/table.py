"""The measured rows as one table, for the terminal and for the README alike.

`python -m tests.benchmarks.table build/bench.json [...]` writes the tables of README.md anew, between its two markers:
no figure there is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = ("work", "ours", "against", "theirs", "ratio", "wanted")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table whose columns stand below each other: a line for every peer, limit and absolute aim."""
    lines = [HEAD, *(line for row in rows for line in _lines(row))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    told = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([told[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *told[1:]])


def _lines(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of one row; work and our figure stand in the first only."""
    aims = {aim["against"]: aim for aim in row["aims"]}
    rest = [_peer(name, found, row["unit"], aims) for name, found in row["peers"].items()]
    if row["limit"]:
        limit = row["limit"]
        rest.append(
            ("the limit", _figure(limit["value"], limit["unit"]), f"{limit['share']:.0%}", _wanted(aims, "limit"))
        )
    if "absolute" in aims or not rest:
        rest.append(("-", "", "", _wanted(aims, "absolute", row["unit"], at_least=row["more_is_better"])))
    first = (row["work"], _figure(row["ours"]["median"], row["unit"]))
    return [(*(first if number == 0 else ("", "")), *line) for number, line in enumerate(rest)]


def _peer(name: str, found: Any, unit: str, aims: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Name, figure, ratio with its spread, and what is wanted."""
    if isinstance(found, str):
        return name, found.replace("|", "/"), "-", _wanted(aims, name)
    ratio = found["ratio"]
    spread = f"{ratio['median']:.3g} x ({ratio['low']:.3g} to {ratio['high']:.3g})"
    return name, _figure(found["median"], unit), spread, _wanted(aims, name)


def _wanted(aims: Mapping[str, Any], name: str, unit: str = "", *, at_least: bool = True) -> str:
    """What is asked for and whether it was reached."""
    if name not in aims:
        return ""
    aim = aims[name]
    asked = {"limit": f"{aim['asked']:.0%}", "absolute": _figure(aim["asked"], unit)}.get(name, f"{aim['asked']:g} x")
    verdict = {True: "met", False: "missed", None: "not measured"}[aim["met"]]
    return f"{'at least' if at_least else 'at most'} {asked}: {verdict}"


def _figure(value: float, unit: str) -> str:
    """Three significant digits and the unit."""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def told(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables of several runs for the README: the processor's, and a GPU's where there is one."""
    parts = []
    for title, with_gpu in (("On a processor", False), ("On a GPU", True)):
        found = [result for result in results if bool(result["machine"]["gpu"]) == with_gpu]
        parts += [f"### {title}", *([_run(result) for result in found] or ["Not measured."])]
    return "\n\n".join(parts)


def _run(result: Mapping[str, Any]) -> str:
    """The machine in a sentence, the table, what was checked, what failed."""
    machine = result["machine"]
    device = machine["gpu"] or machine["processor"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    head = f"{device}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['instructions']}; Python "
    head += (
        f"{machine['python']}, {versions}; commit {machine['commit']}, {machine['when'][:10]}, scale {result['scale']}."
    )
    notes = [f"- {row['work']}: {'; '.join(said)}." for row in result["rows"] if (said := _said(row))]
    failed = [f"- {name} failed: {why}" for name, why in result["failed"].items()]
    return "\n\n".join(part for part in (head, table(result["rows"]), "\n".join(notes + failed)) if part)


def _said(row: Mapping[str, Any]) -> list[str]:
    """How equality was checked, what has to be known, how the limit was measured."""
    limit = f"the limit: {row['limit']['how']}" if row["limit"] else ""
    return [part.rstrip(".") for part in (row["same"] and f"equal: {row['same']}", row["note"], limit) if part]


def write(results: Sequence[Mapping[str, Any]], readme: Path = README) -> None:
    """Put the tables between the markers of the README."""
    before, begin, rest = readme.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme.name} has no {BEGIN} and {END} with the tables between them")
    readme.write_text(f"{before}{BEGIN}\n\n{told(results)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    write([json.loads(Path(path).read_text("utf-8")) for path in sys.argv[1:]])
