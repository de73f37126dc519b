"""Render a report as report.json, report.md, one self-contained report.html, and text for the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from namm_transfer.evals.report import evidence, figures, samples, tables, verdict
from namm_transfer.evals.report.html import sealed, template
from namm_transfer.evals.report.schema import Provenance, Report, Run
from namm_transfer.files import write_atomic

JSON_LIMIT = 150_000
"""Largest size of report.json in bytes; records that do not fit are only in the ledgers beside it."""

HTML_LIMIT = 950_000
"""Largest size of report.html in bytes; samples are left out until it fits."""

TERMINAL = 100
"""Width of paragraphs on the terminal, in characters."""


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and report.html, each atomically."""
    write_atomic(folder / "report.json", as_json(report))
    write_atomic(folder / "report.md", as_markdown(report))
    write_atomic(folder / "report.html", as_html(report, folder))


def as_json(report: Report) -> str:
    """Write the report as JSON, one entry per line, of at most `JSON_LIMIT` bytes.

    If it would be larger, the records lose their details, answers and arrays, or are left out; the ledgers have them.
    """
    text = _lines(report)
    if len(text.encode()) > JSON_LIMIT:
        less: dict[str, Any] = {"details": {}, "answer": None, "arrays": {}}
        text = _lines(report.model_copy(update={"records": [item.model_copy(update=less) for item in report.records]}))
    if len(text.encode()) > JSON_LIMIT:
        text = _lines(report.model_copy(update={"records": [], "records_left_out": len(report.records)}))
    return text


def _lines(report: Report) -> str:
    parts = []
    for name, value in report.model_dump(mode="json").items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def terminal(report: Report, folder: Path) -> str:
    """Write the text printed at the end of a run: headline, tables, verdicts, warnings, and the path of the report."""
    parts = [report.headline, textwrap.fill(verdict.DEFINITION, TERMINAL, break_on_hyphens=False)]
    parts += [tables.as_text(table) for table in _group(report)]
    for run in report.runs:
        found = [*tables.headlines(report, run.task), tables.summary(report, run.task)]
        parts += [tables.as_text(table) for table in [*found, *tables.returns(report, run.task)]]
        parts += [tables.as_text(table) for table in evidence.tables(report, run.task)]
    parts += [f"{answer.task}, {answer.policy}: {answer.text}" for answer in verdict.top(report)]
    parts += [f"{name}: {text}" for name, text in evidence.sentences(report)]
    if report.warnings:
        parts.append("\n".join(f"warning: {warning}" for warning in report.warnings))
    parts.append(f"report: {folder / 'report.html'}  (also report.md and report.json)")
    return "\n" + "\n\n".join(parts)


def as_markdown(report: Report) -> str:
    """Write the report as Markdown, without figures and samples."""
    lines = ["# Memory transfer report", "", tables.escape(report.headline), "", verdict.DEFINITION, ""]
    for answer in verdict.top(report):
        lines.append(f"- **{tables.escape(f'{answer.task}, {answer.policy}')}**: {tables.escape(answer.text)}")
    lines += [f"- **{tables.escape(name)}**: {tables.escape(text)}" for name, text in evidence.sentences(report)]
    if report.warnings:
        lines += ["", "Warnings:", "", *(f"- {tables.escape(warning)}" for warning in report.warnings)]
    for table in _group(report):
        lines += ["", f"## {tables.escape(table.title)}", "", tables.as_markdown(table)]
    for run in report.runs:
        lines += ["", f"## {tables.escape(run.task)}"]
        for table in _of_task(report, run.task):
            lines += ["", f"### {tables.escape(table.title)}", "", tables.as_markdown(table)]
        lines += ["", f"### {tables.escape(run.task)}: how this was made", ""]
        lines += [f"- {name}: {tables.escape(text)}" for name, text in provenance(run)]
    lines += ["", "## Columns", "", *(f"- {column.name}: {column.meaning}" for column in _columns(report))]
    return "\n".join(lines) + "\n"


def as_html(report: Report, folder: Path | None = None) -> str:
    """Render the report as one HTML page, which makes no requests; its security policy admits only its own script.

    Args:
        report: the report to show.
        folder: folder of kept.npz and thumbnails/; without it the samples have no time lines.
    """
    tasks = [_section(report, run, place) for place, run in enumerate(report.runs)]
    page = ""
    for count in (samples.SAMPLES, 2, 1, 0):
        cards = {run.task: samples.cards(report, run, folder, count) for run in report.runs}
        page = template("page.html").render(
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
            answers=verdict.top(report),
            evidence=evidence.sentences(report),
            words=verdict.WORDS,
            definition=verdict.DEFINITION,
        )
        if len(page.encode()) <= HTML_LIMIT:
            break
    return sealed(page)


def _section(report: Report, run: Run, place: int) -> dict[str, Any]:
    """Collect tables, figures and provenance of one task, for the page template."""
    drawings = [
        figures.score_against_size(report, run, f"size{place}"),
        figures.sizes_by_update(report, run, f"updates{place}"),
        figures.kept_shares(report, run, f"kept{place}"),
    ]
    first, *others = _of_task(report, run.task)
    return {
        "name": run.task,
        "summary": first,
        "tables": others,
        "figures": [(Markup(drawing.svg), drawing) for drawing in drawings if drawing],
        "provenance": provenance(run),
    }


def _group(report: Report) -> list[tables.Table]:
    """Make the tables over a group of tasks; empty if no group has more than one task."""
    if not any(row.tasks > 1 for row in report.overall):
        return []
    return [tables.by_task(report), tables.overall(report), *evidence.tables(report, report.overall[0].task)]


def _of_task(report: Report, task: str) -> list[tables.Table]:
    """Make the nonempty tables of a task; the official score of a benchmark comes first."""
    alone = not _group(report) and any(task.startswith(f"{row.task}/") for row in report.overall)
    return [
        *tables.headlines(report, task),
        tables.summary(report, task),
        *tables.returns(report, task),
        *([tables.overall(report)] if alone else []),
        *evidence.tables(report, task),
        tables.costs(report, task),
        *(
            table
            for table in (
                tables.overlaps(report, task),
                tables.categories(report, task),
                tables.published(report, task),
            )
            if table.rows
        ),
    ]


def _columns(report: Report) -> list[tables.Column]:
    """List the columns of the main tables, without duplicate names, for the list of their meanings."""
    every = [*tables.SUMMARY, *(tables.OVERALL if report.overall else []), *tables.COSTS]
    every += tables.OVERLAPS if report.overlaps else []
    every += [*(evidence.COLUMNS if report.decompositions else [])]
    every += [*(tables.RETURNS if report.returns else []), *(tables.HEADLINES if report.headlines else [])]
    return list({column.name: column for column in reversed(every)}.values())[::-1]


def _distinct(words: Iterable[str]) -> list[str]:
    return sorted(set(words))


def _code(made: Provenance) -> str:
    return "git none" if made.git_hash is None else f"git {made.git_hash}{' with local changes' * bool(made.git_dirty)}"


def provenance(run: Run) -> list[tuple[str, str]]:
    """Command, versions, machine, options and checksums of a run as (name, text) pairs."""
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
