"""Publish reports: merge several folders into one, and write an index page (gallery) over several."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections.abc import Sequence
from pathlib import Path

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import figures, ledger, pages, samples, tables
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.html import template
from namm_transfer.evals.report.records import ArrayStore, load
from namm_transfer.evals.report.schema import Answer, Report
from namm_transfer.evals.report.verdict import DEFINITION, top
from namm_transfer.files import put_aside, write_atomic

FIGURE = "Score of NAMM, of the best rule at its own allocation and of random eviction, in % of the full cache's"
"""Text alternative of the gallery's figure, whose own has the numbers."""

GUIDE = "../reports.md"
"""Page that explains reports, relative to the gallery; it is linked if it exists."""


def merge(folders: Sequence[Path], out: Path) -> Report:
    """Put the records of several evaluations into `out` and write the report over all of them.

    Arrays and thumbnails are copied only where the page shows them, so merging a single folder makes a compact copy
    for publishing.

    Raises:
        NammTransferError: a folder has no records, two folders have the same task, or `out` has records of other tasks.
    """
    origin: dict[str, Path] = {}
    for folder in folders:
        for task in load(folder):
            name = task.run.task
            if name in origin:
                raise NammTransferError(
                    f"task {name!r} is in {str(origin[name])!r} and in {str(folder)!r}; expected each task once"
                )
            origin[name] = folder
    copies = {
        f"{path.name.removesuffix('.gz')}.gz": gzip.compress(ledger.content(path), mtime=0)
        for folder in folders
        for path in ledger.find(folder)
    }
    for path in ledger.find(out):
        run = ledger.read(path).run
        if run is None or run.task not in origin:
            raise NammTransferError(f"{str(out)!r} has records of something else ({path.name}); expected another --out")
        if path.name not in copies:  # left by an earlier merge of the same tasks from more processes
            put_aside(path)
    for file, content in copies.items():
        write_atomic(out / file, content)
    report = build(out)
    ArrayStore(out).pack(samples.shown_arrays(report), [ArrayStore(folder) for folder in folders], only=True)
    _copy_thumbnails(report, folders, out)
    pages.write(report, out)
    return report


def _copy_thumbnails(report: Report, folders: Sequence[Path], out: Path) -> None:
    """Copy the thumbnails of the samples that the page shows."""
    for run in report.runs:
        for name in samples.chosen(report, run.task):
            for folder in folders:
                for path in samples.thumbnails(folder, name):
                    write_atomic(out / "thumbnails" / path.parent.name / path.name, path.read_bytes())


@dataclasses.dataclass
class Item:
    """One report of the gallery."""

    name: str
    """Name of its folder."""
    link: str
    """Relative path from the gallery to that folder."""
    folder: str
    """The folder as it was given, to show the command that verifies it."""
    report: Report

    @property
    def answers(self) -> list[Answer]:
        """The answers shown at the top of the report."""
        return top(self.report)

    @property
    def commands(self) -> list[str]:
        """The commands that made the report, without repeats, since one command may run several tasks."""
        return list(dict.fromkeys(run.provenance.command for run in self.report.runs))


def write_gallery(folders: Sequence[Path], out: Path) -> list[Item]:
    """Write `index.html`, `index.md` and `headline.svg` into `out`.

    The pages of every report are rendered again from its records, so that all have the same form. Files among
    `folders` are ignored, since a pattern such as docs/reports/* also matches the gallery itself.

    Raises:
        NammTransferError: no folder is given, or one has no records.
    """
    folders = [folder for folder in folders if not folder.is_file()]
    if not folders:
        raise NammTransferError("no reports; expected folders, as in: report gallery docs/reports/* --out docs/reports")
    items = []
    for folder in folders:
        report = build(folder)
        pages.write(report, folder)
        items.append(Item(folder.name, Path(os.path.relpath(folder, out)).as_posix(), folder.as_posix(), report))
    guide = GUIDE if (out / GUIDE).exists() else None
    write_atomic(out / "headline.svg", figures.changes([(item.name, item.report) for item in items]))
    write_atomic(out / "index.md", _markdown(items, guide))
    page = template("gallery.html").render(items=items, definition=DEFINITION, guide=guide, figure=FIGURE)
    write_atomic(out / "index.html", page + "\n")
    return items


def _markdown(items: Sequence[Item], guide: str | None) -> str:
    lines = [
        "# Transfer reports",
        "",
        f"![{FIGURE}](headline.svg)",
        "",
        DEFINITION,
    ]
    lines += ["", f"[How to read and check a report]({guide})"] if guide else []
    for item in items:
        lines += ["", f"## {tables.escape(item.name)}", "", tables.escape(item.report.headline), ""]
        for answer in item.answers:
            lines.append(f"- **{tables.escape(f'{answer.task}, {answer.policy}')}**: {tables.escape(answer.text)}")
        files = ", ".join(f"[report.{kind}]({item.link}/report.{kind})" for kind in ("md", "json", "html"))
        lines += ["", f"{files}; made by", "", *(f"    {command}" for command in item.commands), ""]
        lines += [f"and checked by `namm-transfer report verify {item.folder}`."]
    return "\n".join(lines) + "\n"
