"""What the pictures join and what they do not."""

from matplotlib.figure import Figure

from namm_transfer.evals.report.figures import _points
from namm_transfer.evals.report.schema import SummaryRow


def row(policy: str, share: float, score: float) -> SummaryRow:
    return SummaryRow(
        task="text",
        policy=policy,
        n=4,
        score=score,
        diff_full=None,
        diff_ci=None,
        kept_share=share,
        updates_mean=4,
        acted_share=1,
        failed=0,
        unparsed=0,
    )


def test_only_equal_budgets_are_joined():
    axes = Figure().subplots()
    members = [row("namm:keep=0.5", 0.5, 30), row("namm", 0.4, 50), row("namm:keep=0.25", 0.25, 12)]
    _points(axes, "namm", members, None, "black", "o")
    alone, joined = axes.lines
    assert (alone.get_linestyle(), list(alone.get_xdata())) == ("None", [0.4])
    assert (joined.get_linestyle(), list(joined.get_xdata())) == ("-", [0.25, 0.5])
    assert len(axes.get_legend_handles_labels()[1]) == 1
