"""Transfer reports: records on disk, statistics, and the pages rendered from them.

    report = build(Path("runs/video"))      # computed from the records of a folder
    write(report, Path("runs/video"))       # report.json, report.md, report.html
    merge([Path("runs/video"), Path("runs/rl")], Path("runs/transfer"))
    verify(Path("runs/video"), samples=2)   # evaluate two samples again and compare
    diff(Path("a"), Path("b"))              # compare two reports, with significance

Scores have the unit that `Run.description["score"]` names, shares are fractions of 1, sizes are in tokens or bytes,
times in seconds; `schema` gives the unit of every field.
"""

from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.comparison import diff
from namm_transfer.evals.report.pages import write
from namm_transfer.evals.report.publish import merge
from namm_transfer.evals.report.records import read
from namm_transfer.evals.report.schema import Record, Report, Run
from namm_transfer.evals.report.verification import verify

__all__ = ["Record", "Report", "Run", "build", "diff", "merge", "read", "verify", "write"]
