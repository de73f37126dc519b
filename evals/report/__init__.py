"""Transfer reports: records on disk, statistics, and the pages made from them.

    report = build(Path("runs/video"))      # from the records of a folder, a pure function of them
    write(report, Path("runs/video"))       # report.json, report.md, report.html
    merge([Path("runs/video"), Path("runs/rl")], Path("runs/transfer"))
    verify(Path("runs/video"), samples=2)   # evaluated again, compared
    diff(Path("a"), Path("b"))              # what changed, and whether it is more than chance

Scores have the unit that `Run.description["score"]` names, shares are fractions of 1, sizes tokens or bytes, times
seconds; `schema` has the unit of every field.
"""

from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.comparison import diff
from namm_transfer.evals.report.merge import merge
from namm_transfer.evals.report.pages import write
from namm_transfer.evals.report.records import read
from namm_transfer.evals.report.schema import Record, Report, Run
from namm_transfer.evals.report.verification import verify

__all__ = ["Record", "Report", "Run", "build", "diff", "merge", "read", "verify", "write"]
