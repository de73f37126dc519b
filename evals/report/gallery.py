"""A page over several committed reports, and the one figure that says what all of them found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import figures, render, tables
from namm_transfer.evals.report.build import build
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.report.verdict import MIN_UPDATES, Row, headline, percent
from namm_transfer.files import write_atomic

GUIDE = "reports.md"
"""The page that explains reports, linked where it lies beside the gallery."""

ADAPTING = "<style>svg { color: #1f2328 } @media (prefers-color-scheme: dark) { svg { color: #e6edf3 } }</style>"
"""A figure in a file of its own follows the reader's colour scheme by itself."""


@dataclasses.dataclass
class Item:
    """One report of the gallery."""

    name: str
    """Name of its folder."""
    link: str
    """Relative path from the gallery to that folder."""
    folder: str
    """The folder as it was given, for the command that verifies it."""
    report: Report

    @property
    def commands(self) -> list[str]:
        """What made the report, each command once although it may have run several tasks."""
        return list(dict.fromkeys(run.provenance.command for run in self.report.runs))


def write(folders: Sequence[Path], out: Path) -> list[Item]:
    """Write `index.html`, `index.md` and `headline.svg` into `out`; folders in which nothing was recorded are refused.

    Every report's own pages are written anew from its records, so that all of them have one form.

    Raises:
        NammTransferError: no folder, or one without records.
    """
    if not folders:
        raise NammTransferError("no reports; expected folders, as in: report gallery docs/reports/* --out docs")
    items = []
    for folder in folders:
        report = build(folder)
        render.write(report, folder)
        items.append(Item(folder.name, Path(os.path.relpath(folder, out)).as_posix(), folder.as_posix(), report))
    write_atomic(out / "headline.svg", headline_figure(items))
    write_atomic(out / "index.md", _markdown(items, (out / GUIDE).exists()))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("gallery.html").render(
        items=items, headline=headline, guide=(out / GUIDE).exists() and GUIDE
    )
    write_atomic(out / "index.html", page + "\n")
    return items


def _markdown(items: Sequence[Item], guided: bool) -> str:
    lines = ["# Transfer reports", "", "![Score of each policy against the full cache](headline.svg)"]
    lines += ["", f"[How to read and check a report]({GUIDE})"] if guided else []
    for item in items:
        lines += ["", f"## {tables.escape(item.name)}", "", tables.escape(item.report.headline), ""]
        for answer in headline(item.report.answers):
            lines.append(f"- **{tables.escape(f'{answer.task}, {answer.policy}')}**: {tables.escape(answer.text)}")
        commands = [f"    {command}" for command in item.commands]
        lines += ["", f"[report.md]({item.link}/report.md), [report.json]({item.link}/report.json), "
                  f"[report.html]({item.link}/report.html); made by", "", *commands, ""]  # fmt: skip
        lines += [f"and checked by `namm-transfer report verify {item.folder}`."]
    return "\n".join(lines) + "\n"


def headline_figure(items: Sequence[Item]) -> str:
    """SVG with a panel a domain: change of the score against the full cache, in % of its score, with 95 % intervals.

    Tasks in a group of several are one panel; a hollow point is a policy that hardly acted. A domain where the full
    cache scores nothing has none.
    """
    panels = [panel for item in items for panel in _panels(item)]
    with rc_context({**figures.STYLE, "svg.hashsalt": "headline"}):
        tallest = max((len(rows) for _, _, rows in panels), default=1)
        figure = Figure(figsize=(max(4.0, 3.0 * len(panels)), 1.2 + 0.28 * tallest), layout="constrained")
        grid = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
        for axes, (name, full, rows) in zip(grid, panels, strict=False):
            _draw(axes, name, full, rows)
        if not panels:
            grid[0].set_axis_off()
            grid[0].text(0.5, 0.5, "nothing was compared with a full cache", ha="center")
        figure.supxlabel("change of the score against the full cache, in % of its score (95 % interval)", fontsize=9)
        svg = figures.inline(figure, "headline")
    words = "; ".join(f"{name}: {', '.join(_words(full, row) for row in rows)}" for name, full, rows in panels)
    label = f"Change of the score against the full cache. {words}".replace("&", "&amp;").replace('"', "&quot;")
    svg = svg.replace(
        'aria-hidden="true" focusable="false" ', f'role="img" aria-label="{label.replace("<", "&lt;")}" ', 1
    )
    start = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:start]}{ADAPTING}{svg[start:]}'


def _panels(item: Item) -> list[tuple[str, Row, list[Row]]]:
    """(title, full cache, rows to show) of each domain of a report. One that is alone has the name of its folder: two
    reports may be of one task."""
    report = item.report
    grouped = [row for row in report.overall if row.tasks > 1]
    every: list[Row] = [*grouped]
    every += [row for row in report.summary if not (grouped and row.task.startswith(f"{grouped[0].task}/"))]
    panels, domains = [], dict.fromkeys(row.task for row in every)
    for task in domains:
        rows = [row for row in every if row.task == task]
        full = next((row for row in rows if row.policy == "full" and row.score), None)
        others = [row for row in rows if row.policy != "full" and row.diff_full is not None and row.diff_ci is not None]
        if full is None or not others:
            continue
        namm = next((row for row in others if row.policy.partition(":")[0] == "namm"), others[0])
        matched = [row for row in others if row is not namm and "match=namm" in row.policy]
        shown = [namm, *(matched or [row for row in others if row is not namm])]
        name = task if len(domains) > 1 else item.name
        panels.append((f"{name}, {percent(namm.kept_share)} held", full, shown))
    return panels


def _relative(full: Row, value: float | None) -> float:
    return 100 * (value or 0.0) / abs(full.score or 1.0)


def _words(full: Row, row: Row) -> str:
    low, high = row.diff_ci or (0.0, 0.0)
    middle, low, high = (_relative(full, value) for value in (row.diff_full, low, high))
    return f"{row.policy} {middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def _draw(axes: Axes, name: str, full: Row, rows: Sequence[Row]) -> None:
    axes.axvline(0, color=figures.INK, linestyle="--", linewidth=1)
    for place, row in enumerate(rows):
        colour = figures.COLOURS[0] if row.policy.partition(":")[0] == "namm" else figures.COLOURS[-1]
        low, high = row.diff_ci or (0.0, 0.0)
        axes.plot([_relative(full, low), _relative(full, high)], [place, place], color=colour, linewidth=2)
        axes.plot([_relative(full, row.diff_full)], [place], color=colour, marker="o", markersize=6,
                  markerfacecolor=colour if row.updates_mean >= MIN_UPDATES else "none")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.policy.partition(":")[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(name, fontsize=9)
