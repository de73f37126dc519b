"""The gate: random eviction and questions without text tell whether a task needs a memory."""

import pytest

from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.pages import as_html, as_markdown, terminal

SCORES = {"full": [80.0, 100.0] * 3, "random:keep=0.5": [60.0] * 6, "random:keep=0.25": [30.0] * 6}


def test_a_task_that_loses_enough_needs_a_memory(write_folder, tmp_path):
    report = build(write_folder(tmp_path, SCORES, details={"blind": 5.0}))
    (gate,) = report.gates
    assert (gate.full, gate.blind, gate.passed) == (90, 5, True)
    assert gate.lost == pytest.approx({"0.5": 1 / 3, "0.25": 2 / 3})
    for text in (as_markdown(report), as_html(report), terminal(report, tmp_path)):
        assert "The task needs a memory: a random half of the cache loses 33.3 % of the score" in text
        assert "the question without its text scores 5" in text


@pytest.mark.parametrize(("half", "quarter"), [([78.0] * 6, [30.0] * 6), ([60.0] * 6, [64.0] * 6)])
def test_a_task_that_survives_either_loss_does_not(write_folder, tmp_path, half, quarter):
    scores = SCORES | {"random:keep=0.5": half, "random:keep=0.25": quarter}
    (gate,) = build(write_folder(tmp_path, scores)).gates
    assert not gate.passed
    assert "does not need a memory" in gate.text
    assert gate.blind is None


def test_without_random_eviction_of_its_own_size_there_is_no_gate(write_folder, tmp_path):
    scores = {"full": SCORES["full"], "namm": [60.0] * 6, "random:match=namm": [60.0] * 6, "h2o:keep=0.5": [1.0] * 6}
    assert build(write_folder(tmp_path / "a", scores)).gates == []
    assert build(write_folder(tmp_path / "b", SCORES | {"full": [0.0] * 6})).gates == []
