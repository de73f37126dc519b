"""Several report folders as one."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import ledger, pages, samples
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.arrays import ArrayStore
from namm_transfer.evals.report.records import load
from namm_transfer.evals.report.schema import Report
from namm_transfer.files import put_aside, write_atomic


def merge(folders: Sequence[Path], out: Path) -> Report:
    """Put the records of several evaluations into `out` and write the report over all of them.

    With one folder it is a copy for publishing: the records, and of their arrays and thumbnails those that the page
    shows.

    Raises:
        NammTransferError: a folder without records, two evaluations of the same task, or an `out` that has records of
            something else.
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
        if path.name not in copies:  # an earlier merge of the same tasks, run by more processes then
            put_aside(path)
    for file, content in copies.items():
        write_atomic(out / file, content)
    report = build(out)
    ArrayStore(out).pack(samples.shown_arrays(report), [ArrayStore(folder) for folder in folders], only=True)
    _copy_thumbnails(report, folders, out)
    pages.write(report, out)
    return report


def _copy_thumbnails(report: Report, folders: Sequence[Path], out: Path) -> None:
    """Take over the pictures of the samples that the page shows."""
    for run in report.runs:
        for name in samples.chosen(report, run.task):
            for folder in folders:
                for path in samples.thumbnails(folder, name):
                    write_atomic(out / "thumbnails" / path.parent.name / path.name, path.read_bytes())
