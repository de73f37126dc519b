"""What the pictures join and what they do not."""

import re

from matplotlib.figure import Figure

from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.figures import _points, changes, score_against_size
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
    _points(axes, "namm", members, {"namm:keep=0.5", "namm:keep=0.25"}, None, "black", "o")
    alone, joined = axes.lines
    assert (alone.get_linestyle(), list(alone.get_xdata())) == ("None", [0.4])
    assert (joined.get_linestyle(), list(joined.get_xdata())) == ("-", [0.25, 0.5])
    assert len(axes.get_legend_handles_labels()[1]) == 1


def test_a_figure_is_small_and_its_words_keep_their_digits(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": [1.0, 2.0], "namm:threshold=0.125": [1.0, 2.0]}))
    svg = score_against_size(report, report.runs[0], "a").svg
    assert len(svg) < 20_000
    assert not re.search(r' d="[^"]*\.\d\d', svg), "coordinates have a tenth of a point"
    assert "(namm:threshold=0.125) 100.0 %" in re.search('aria-label="([^"]*)"', changes([("a", report)]))[1]


def test_a_report_of_random_eviction_alone_has_no_line_in_the_headline_figure(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": [1.0, 2.0], "random:keep=0.5": [1.0, 1.0]}))
    assert "nothing was compared with a full cache" in changes([("a", report)])
