"""The page over several reports and its figure."""

import re
from xml.etree import ElementTree

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.report.publish import write_gallery

MIXED = [40.0, 60.0] * 10


def test_one_command_makes_pages_and_figure(write_folder, tmp_path):
    video = write_folder(
        tmp_path / "docs/reports/video", {"full": 2 * MIXED, "namm": 2 * MIXED, "h2o:match=namm": [0.0] * 40}
    )
    text = write_folder(tmp_path / "docs/reports/text", {"full": MIXED, "namm": [20.0] * 20}, task="text")
    (tmp_path / "docs/reports.md").write_text("how to read them")
    out = tmp_path / "docs/reports"
    write_gallery([text, video], out)
    page = (out / "index.html").read_text()
    links = re.findall('href="([^d][^"]*)"', page)
    assert {"video/report.html", "text/report.md", "../reports.md"} <= set(links)
    assert all((out / link).is_file() for link in links)
    assert "video: namm is non-inferior (loses at most 10 %)" in page
    assert "script" not in page
    summary = (out / "index.md").read_text()
    assert summary.index("## text") < summary.index("## video")
    assert f"report verify {video.as_posix()}" in summary
    figure = ElementTree.parse(out / "headline.svg").getroot()
    assert "text, 50.0 % kept: NAMM (namm) 40.0 %" in figure.get("aria-label")
    assert "best rule (h2o:match=namm) 0.0 %" in figure.get("aria-label")
    assert "prefers-color-scheme: dark" in (out / "headline.svg").read_text()
    before = (out / "headline.svg").read_bytes()
    write_gallery(sorted(out.iterdir()), out)  # what docs/reports/* stands for by then: the gallery's own files too
    assert (out / "headline.svg").read_bytes() == before


def test_a_line_has_the_best_rule_at_its_own_allocation_and_random(write_folder, tmp_path):
    """A rule that does well only under the NAMM's allocation is not the best one."""
    uniform = {"h2o": 30.0, "tova": 40.0, "random": 10.0}
    scores = {"full": MIXED, "namm": [45.0] * 20, "snapkv:match=namm,allocation=head": MIXED}
    scores |= {f"{rule}:match=namm,allocation=uniform": [score] * 20 for rule, score in uniform.items()}
    write_gallery([write_folder(tmp_path / "a", scores)], tmp_path)
    label = ElementTree.parse(tmp_path / "headline.svg").getroot().get("aria-label")
    assert "NAMM (namm) 90.0 %" in label
    assert "best rule (tova:match=namm,allocation=uniform) 80.0 %" in label
    assert "random (random:match=namm,allocation=uniform) 20.0 %" in label
    assert "snapkv" not in label
    assert "h2o" not in label


@pytest.mark.parametrize("allocation", ["layer", "head"])
def test_random_eviction_under_the_sizes_of_the_namm_is_not_shown_as_random(write_folder, tmp_path, allocation):
    scores = {"full": MIXED, "namm": [45.0] * 20, f"random:match=namm,allocation={allocation}": [44.0] * 20}
    write_gallery([write_folder(tmp_path / "a", scores)], tmp_path)
    label = ElementTree.parse(tmp_path / "headline.svg").getroot().get("aria-label")
    assert "NAMM (namm) 90.0 %" in label
    assert "random" not in label


def test_nothing_to_show_is_an_error_and_nothing_to_compare_a_figure_that_says_so(write_folder, tmp_path):
    with pytest.raises(NammTransferError, match="no reports"):
        write_gallery([], tmp_path)
    write_gallery([write_folder(tmp_path / "a", {"namm": MIXED})], tmp_path)
    assert "nothing was compared" in (tmp_path / "headline.svg").read_text()


def test_two_reports_of_one_task_are_told_apart(write_folder, tmp_path):
    scores = {"full": MIXED, "namm": MIXED}
    folders = [write_folder(tmp_path / name, scores, task="text") for name in ("text", "text-long")]
    write_gallery(folders, tmp_path)
    label = ElementTree.parse(tmp_path / "headline.svg").getroot().get("aria-label")
    assert "text, " in label
    assert "text-long, " in label
