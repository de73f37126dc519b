"""A report as files and on the terminal: report.json, report.md and one self-contained report.html."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..files import write_atomic
from . import figures, tables
from .schema import Brief, Report, Run
from .verdict import HOLD_MARGIN, MIN_DRAWS, MIN_UPDATES, headline, number

JSON_LIMIT = 2_000_000
"""Bytes of report.json; what does not fit stays in the ledgers."""

SAMPLES = 12
"""Samples the page shows, over all tasks."""

TEXT_LIMIT = 500
"""Characters of an answer that are shown."""


def write(report: Report, folder: Path) -> None:
    """Write the three files; each appears whole or not at all."""
    write_atomic(folder / "report.json", as_json(report))
    write_atomic(folder / "report.md", as_markdown(report))
    write_atomic(folder / "report.html", as_html(report))


def as_json(report: Report) -> str:
    """The report as JSON of at most 2 MB: without the records' details and answers, or without records, if need be."""
    text = report.model_dump_json(indent=1)
    if len(text.encode()) > JSON_LIMIT:
        bare = [record.model_copy(update={"details": {}, "answer": None}) for record in report.records]
        text = report.model_copy(update={"records": bare}).model_dump_json(indent=1)
    if len(text.encode()) > JSON_LIMIT:
        none = report.model_copy(update={"records": [], "records_left_out": len(report.records)})
        text = none.model_dump_json(indent=1)
    return text + "\n"


def terminal(report: Report, folder: Path) -> str:
    """What a run ends with: the answer, a table a task, warnings, and where to read on."""
    parts = [tables.as_text(tables.summary(report, run.task)) for run in report.runs]
    parts += [f"{answer.task}, {answer.policy}: {answer.text}" for answer in headline(report.answers)]
    if report.warnings:
        parts.append("\n".join(f"warning: {warning}" for warning in report.warnings))
    parts.append(f"report: {folder / 'report.html'}  (also report.md and report.json)")
    return "\n" + "\n\n".join(parts)


def as_markdown(report: Report) -> str:
    """The report without figures and samples."""
    lines = ["# Memory transfer report", ""]
    for answer in headline(report.answers):
        lines.append(f"- **{tables.escape(f'{answer.task}, {answer.policy}')}**: {tables.escape(answer.text)}")
    if report.warnings:
        lines += ["", "Warnings:", "", *(f"- {tables.escape(warning)}" for warning in report.warnings)]
    for run in report.runs:
        shown = (tables.summary(report, run.task), tables.costs(report, run.task), tables.categories(report, run.task))
        for level, table in zip(("##", "###", "###"), shown, strict=True):
            if table.rows:
                lines += ["", f"{level} {tables.escape(table.title)}", "", tables.as_markdown(table)]
        lines += ["", f"### {tables.escape(run.task)}: how this was made", ""]
        lines += [f"- {name}: {tables.escape(text)}" for name, text in provenance(run)]
    meanings = {column.name: column.meaning for column in [*tables.SUMMARY, *tables.COSTS]}
    lines += ["", "## Columns", "", *(f"- {name}: {meaning}" for name, meaning in meanings.items())]
    return "\n".join(lines) + "\n"


def as_html(report: Report) -> str:
    """The page: one file, no request to anywhere, its only script known to the browser by its checksum."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tasks = [_section(report, run, place) for place, run in enumerate(report.runs)]
    page = environment.get_template("page.html").render(
        report=report,
        tasks=tasks,
        headline=headline(report.answers),
        margin=HOLD_MARGIN,
        least=MIN_UPDATES,
        draws=MIN_DRAWS,
    )
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = hashlib.sha256(script[1].encode() if script else b"").digest()
    return page.replace("SCRIPT-DIGEST", base64.b64encode(digest).decode(), 1)


def _section(report: Report, run: Run, place: int) -> dict[str, Any]:
    """What the page shows of one task."""
    drawings = [
        figures.score_against_size(report, run.task, f"size{place}"),
        figures.kept_shares(report, run.task, f"kept{place}"),
    ]
    every = [tables.costs(report, run.task), tables.categories(report, run.task)]
    return {
        "name": run.task,
        "summary": tables.summary(report, run.task),
        "tables": [table for table in every if table.rows],
        "figures": [(Markup(drawing.svg), drawing) for drawing in drawings if drawing],
        "samples": chosen(report, run.task),
        "provenance": provenance(run),
    }


def chosen(report: Report, task: str) -> list[list[Brief]]:
    """The samples the page shows: the first ones of each task, twelve over all tasks; a sample is its records.

    Where a model says nothing, the sample's details stand for its answer.
    """
    by_sample: dict[str, list[Brief]] = {}
    for record in report.records:
        if record.task == task:
            shown = record.model_copy(update={"answer": (record.answer or _facts(record))[:TEXT_LIMIT]})
            by_sample.setdefault(record.id, []).append(shown)
    return list(by_sample.values())[: max(1, SAMPLES // len(report.runs))]


def _facts(record: Brief) -> str:
    """What there is to say of a sample without words: an episode's return, for example."""
    return ", ".join(
        f"{name} {_text(value)}" for name, value in record.details.items() if not isinstance(value, list | dict)
    )


def provenance(run: Run) -> list[tuple[str, str]]:
    """How a run was made, as names and texts."""
    made = run.provenance
    git = "none" if made.git_hash is None else f"{made.git_hash}{' with local changes' if made.git_dirty else ''}"
    pairs = [
        ("command", made.command),
        ("started", made.started),
        ("code", f"git {git}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("machine", f"{made.cpu}, {made.cores} cores, {made.platform}, accelerator {made.accelerator}"),
        ("processes", f"{made.processes}, {run.options.get('threads', '?')} threads each"),
        ("samples", f"{run.samples}, {run.batch} at once, ids sha256 {run.samples_sha256}"),
    ]
    pairs += [(f"option {name}", _text(value)) for name, value in run.options.items()]
    pairs += [(name, _text(value)) for name, value in run.description.items()]
    pairs += [(f"weights of {policy.spec}", f"sha256 {policy.sha256}") for policy in run.policies if policy.sha256]
    return pairs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else number(value) if isinstance(value, float) else json.dumps(value)
