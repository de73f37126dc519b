"""A page over several committed reports, and the one figure that says what all of them found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import figures, pages, tables
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.schema import Answer, Report
from namm_transfer.evals.report.verdict import DEFINITION, top
from namm_transfer.files import write_atomic

GUIDE = "../reports.md"
"""The page that explains reports, linked where it lies beside the gallery's folder."""


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
    def answers(self) -> list[Answer]:
        """The answers that stand at the top of the report."""
        return top(self.report)

    @property
    def commands(self) -> list[str]:
        """What made the report, each command once although it may have run several tasks."""
        return list(dict.fromkeys(run.provenance.command for run in self.report.runs))


def write(folders: Sequence[Path], out: Path) -> list[Item]:
    """Write `index.html`, `index.md` and `headline.svg` into `out`.

    Every report's own pages are written anew from its records, so that all of them have one form. Files among `folders`
    are passed over: a pattern such as docs/reports/* also finds the gallery's own.

    Raises:
        NammTransferError: no folder, or one without records.
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
    page = pages.template("gallery.html").render(items=items, definition=DEFINITION, guide=guide)
    write_atomic(out / "index.html", page + "\n")
    return items


def _markdown(items: Sequence[Item], guide: str | None) -> str:
    lines = ["# Transfer reports", "", "![Score of each policy against the full cache](headline.svg)", "", DEFINITION]
    lines += ["", f"[How to read and check a report]({guide})"] if guide else []
    for item in items:
        lines += ["", f"## {tables.escape(item.name)}", "", tables.escape(item.report.headline), ""]
        for answer in item.answers:
            lines.append(f"- **{tables.escape(f'{answer.task}, {answer.policy}')}**: {tables.escape(answer.text)}")
        files = ", ".join(f"[report.{kind}]({item.link}/report.{kind})" for kind in ("md", "json", "html"))
        lines += ["", f"{files}; made by", "", *(f"    {command}" for command in item.commands), ""]
        lines += [f"and checked by `namm-transfer report verify {item.folder}`."]
    return "\n".join(lines) + "\n"
