"""A report as files and on the terminal: report.json, report.md and one self-contained report.html."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from namm_transfer.evals.report import figures, samples, tables
from namm_transfer.evals.report.schema import Provenance, Report, Run
from namm_transfer.evals.report.verdict import HOLD_MARGIN, MIN_DRAWS, MIN_UPDATES, headline
from namm_transfer.files import write_atomic

JSON_LIMIT = 2_000_000
"""Bytes of report.json; what does not fit stays in the ledgers."""

HTML_LIMIT = 950_000
"""Bytes of report.html; samples are left out until it fits."""


def write(report: Report, folder: Path) -> None:
    """Write the three files; each appears whole or not at all."""
    write_atomic(folder / "report.json", as_json(report))
    write_atomic(folder / "report.md", as_markdown(report))
    write_atomic(folder / "report.html", as_html(report, folder))


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
    parts = [report.headline]
    parts += [tables.as_text(table) for table in _group(report)]
    parts += [tables.as_text(tables.summary(report, run.task)) for run in report.runs]
    parts += [f"{answer.task}, {answer.policy}: {answer.text}" for answer in headline(report.answers)]
    if report.warnings:
        parts.append("\n".join(f"warning: {warning}" for warning in report.warnings))
    parts.append(f"report: {folder / 'report.html'}  (also report.md and report.json)")
    return "\n" + "\n\n".join(parts)


def as_markdown(report: Report) -> str:
    """The report without figures and samples."""
    lines = ["# Memory transfer report", "", tables.escape(report.headline), ""]
    for answer in headline(report.answers):
        lines.append(f"- **{tables.escape(f'{answer.task}, {answer.policy}')}**: {tables.escape(answer.text)}")
    if report.warnings:
        lines += ["", "Warnings:", "", *(f"- {tables.escape(warning)}" for warning in report.warnings)]
    for table in _group(report):
        lines += ["", f"## {tables.escape(table.title)}", "", tables.as_markdown(table)]
    for run in report.runs:
        shown = [tables.summary(report, run.task), *_further(report, run.task)]
        for place, table in enumerate(shown):
            lines += ["", f"{'###' if place else '##'} {tables.escape(table.title)}", "", tables.as_markdown(table)]
        lines += ["", f"### {tables.escape(run.task)}: how this was made", ""]
        lines += [f"- {name}: {tables.escape(text)}" for name, text in provenance(run)]
    lines += ["", "## Columns", "", *(f"- {column.name}: {column.meaning}" for column in _columns(report))]
    return "\n".join(lines) + "\n"


def as_html(report: Report, folder: Path | None = None) -> str:
    """The page: one file, no request to anywhere, its only script known to the browser by its checksum.

    Args:
        folder: where kept.npz and thumbnails/ lie; without it the samples have no time lines.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tasks = [_section(report, run, place) for place, run in enumerate(report.runs)]
    page = ""
    for count in (samples.SAMPLES, 2, 1, 0):
        cards = {run.task: samples.cards(report, run.task, folder, count) for run in report.runs}
        page = environment.get_template("page.html").render(
            report=report,
            tasks=tasks,
            group=_group(report),
            cards=cards,
            categories=_distinct(f"{task}: {card.category}" for task, found in cards.items() for card in found),
            policies=list(dict.fromkeys(policy.spec for run in report.runs for policy in run.policies)),
            outcomes=_distinct(
                word for found in cards.values() for c in found for e in c.entries for word in e.outcomes
            ),
            rule=samples.RULE,
            columns=_columns(report),
            headline=headline(report.answers),
            margin=HOLD_MARGIN,
            least=MIN_UPDATES,
            draws=MIN_DRAWS,
        )
        if len(page.encode()) <= HTML_LIMIT:
            break
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = hashlib.sha256(script[1].encode() if script else b"").digest()
    return page.replace("SCRIPT-DIGEST", base64.b64encode(digest).decode(), 1)


def _section(report: Report, run: Run, place: int) -> dict[str, Any]:
    """What the page shows of one task."""
    drawings = [
        figures.score_against_size(report, run.task, f"size{place}"),
        figures.sizes_by_update(report, run.task, f"updates{place}"),
        figures.kept_shares(report, run.task, f"kept{place}"),
    ]
    return {
        "name": run.task,
        "summary": tables.summary(report, run.task),
        "tables": _further(report, run.task),
        "figures": [(Markup(drawing.svg), drawing) for drawing in drawings if drawing],
        "provenance": provenance(run),
    }


def _group(report: Report) -> list[tables.Table]:
    """The tables over several tasks; none where no group has several."""
    return [tables.by_task(report), tables.overall(report)] if any(row.tasks > 1 for row in report.overall) else []


def _further(report: Report, task: str) -> list[tables.Table]:
    """The tables of a task after its summary, those with something in them."""
    every = [tables.costs(report, task), tables.categories(report, task), tables.published(report, task)]
    if not _group(report) and any(task.startswith(f"{row.task}/") for row in report.overall):
        every.insert(0, tables.overall(report))
    return [table for table in every if table.rows]


def _columns(report: Report) -> list[tables.Column]:
    """The columns of the main tables, each name once."""
    every = [*tables.SUMMARY, *(tables.OVERALL if report.overall else []), *tables.COSTS]
    return list({column.name: column for column in reversed(every)}.values())[::-1]


def _distinct(words: Iterable[str]) -> list[str]:
    return sorted(set(words))


def _code(made: Provenance) -> str:
    return "git none" if made.git_hash is None else f"git {made.git_hash}{' with local changes' * bool(made.git_dirty)}"


def provenance(run: Run) -> list[tuple[str, str]]:
    """How a run was made, as names and texts."""
    made = run.provenance
    pairs = [
        ("command", made.command),
        ("started", made.started),
        ("code", _code(made)),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("machine", f"{made.cpu}, {made.cores} cores, {made.platform}, accelerator {made.accelerator}"),
        *(("resumed", f"{later.started}, {_code(later)}") for later in run.resumed),
        ("processes", f"{made.processes}, {run.options.get('threads', '?')} threads each"),
        ("samples", f"{run.samples}, {run.batch} at once, ids sha256 {run.samples_sha256}"),
    ]
    pairs += [(f"option {name}", samples.value_text(value)) for name, value in run.options.items()]
    pairs += [(name, samples.value_text(value)) for name, value in run.description.items()]
    pairs += [(f"weights of {policy.spec}", f"sha256 {policy.sha256}") for policy in run.policies if policy.sha256]
    return pairs
