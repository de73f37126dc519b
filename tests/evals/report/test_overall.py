"""Several tasks in one answer: environments and data tiers."""

import numpy as np
import pytest

from namm_transfer.evals.report import ledger, pages, tables
from namm_transfer.evals.report.analysis import build

TASKS = [f"rl/{env}-{tier}" for env in ("hopper", "halfcheetah", "walker2d") for tier in ("medium", "expert")]
POLICIES = ("full", "namm", "h2o:match=namm", "streaming:match=namm", "random:match=namm", "namm:keep=0.5")


@pytest.fixture
def folder(write_folder, tmp_path):
    """3 environments x 2 tiers x 6 policies x 20 episodes; the NAMM loses 1 of 50 or so, random 30."""
    loss = dict(zip(POLICIES, (0, 1, 4, 8, 30, 1), strict=True))
    for number, task in enumerate(TASKS):
        noise = np.random.default_rng(number).normal(50 + number, 5, 20)
        scores = {policy: [float(value - loss[policy]) for value in noise] for policy in POLICIES}
        given = {"score": "normalised return (0 random, 100 expert)"}
        write_folder(tmp_path, scores, task=task, description=given, details={"return": 1000.0}, category="seed 0")
    return tmp_path


def test_the_first_line_answers_over_all_tasks(folder):
    report = build(folder)
    assert report.headline.startswith("Against the full cache. rl (6 tasks): namm is worse (-1, 95 % interval -1 to -1")
    first = next(answer for answer in report.answers if answer.policy == "namm")
    assert (first.task, first.verdict) == ("rl", "hurts")
    assert "interquartile mean of the normalised returns of 6 tasks" in first.text
    assert "with probability 0.4" in first.text
    assert pages.terminal(report, folder).strip().startswith(report.headline)


def test_a_row_over_all_tasks(folder):
    row = next(row for row in build(folder).overall if row.policy == "random:match=namm")
    assert (row.task, row.tasks, row.n, row.failed) == ("rl", 6, 120, 0)
    assert row.diff_full == pytest.approx(-30)
    assert row.improvement < 0.05
    assert row.improvement_ci[1] < 0.1
    low, high = row.score_ci
    assert low < row.score < high


def test_scores_stand_by_task_and_returns_by_seed(folder):
    report = build(folder)
    table = tables.by_task(report)
    assert [column.name for column in table.columns] == ["policy", *sorted(task[3:] for task in TASKS), "acted"]
    assert table.rows[4][1].text.endswith("(-30)")
    seeds = tables.categories(report, TASKS[0])
    assert [column.name for column in seeds.columns].count("return") == 1
    page = pages.as_html(report, folder)
    assert page.index("rl, over all tasks") < page.index("rl/halfcheetah-expert: normalised return")
    assert len(page) < 1_000_000
    assert len(pages.as_json(report)) < pages.JSON_LIMIT


@pytest.mark.parametrize(
    ("units", "said"), [(("return", "return"), "returns"), (("return", "normalised return (0 random)"), "scores")]
)
def test_raw_returns_are_not_called_normalised(write_folder, tmp_path, units, said):
    for task, unit in zip(("rl/Ant-v5 return 500", "rl/Ant-v5 return 900"), units, strict=True):
        scores = {"full": [10.0, 20.0] * 5, "namm": [10.0, 20.0] * 5}
        write_folder(tmp_path, scores, task=task, description={"score": unit})
    report = build(tmp_path)
    assert f"interquartile mean of the {said} of 2 tasks" in report.answers[0].text
    assert "normalised" not in pages.as_markdown(report).replace("never normalised", "").partition("rl/Ant-v5")[0]


def test_one_task_gets_no_answer_over_all_but_its_interquartile_mean(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": [1.0, 2.0] * 5, "namm": [1.0, 2.0] * 5}, task="rl/hopper"))
    assert [answer.task for answer in report.answers] == ["rl/hopper"] * 2
    assert "rl/hopper: interquartile mean" in pages.as_markdown(report)
    assert "over all tasks</h2>" not in pages.as_html(report)


def test_a_policy_that_was_not_run_everywhere_is_named(write_folder, tmp_path):
    write_folder(tmp_path, {"full": [1.0] * 5, "namm": [1.0] * 5, "l2": [0.0] * 5}, task="rl/a")
    report = build(write_folder(tmp_path, {"full": [1.0] * 5, "namm": [1.0] * 5}, task="rl/b"))
    assert [row.policy for row in report.overall] == ["full", "namm"]
    assert "rl: not run in every task and so not in the overall table: l2" in report.warnings


def test_tasks_of_different_settings_are_named(write_folder, make_run, tmp_path):
    scores = {"full": [1.0] * 5, "namm": [1.0] * 5}
    write_folder(tmp_path, scores, task="rl/a")
    assert not any("taken together" in text for text in build(write_folder(tmp_path, scores, task="rl/b")).warnings)
    path = ledger.path_of(tmp_path, "rl/b", 0)
    path.write_text(
        path.read_text().replace('"options":{"seed":0', '"options":{"env":"b","update_interval":9,"seed":0')
    )
    (warning,) = (text for text in build(tmp_path).warnings if "taken together" in text)
    assert "options.update_interval: None in rl/a, 9 in rl/b" in warning
    assert "env" not in warning


def test_where_it_hardly_acted_is_said_and_too_few_updates_are_not_judged(write_folder, tmp_path):
    scores = {"full": [1.0, 2.0] * 5, "namm": [1.0, 2.0] * 5}
    write_folder(tmp_path / "x", scores, task="rl/a", updates=1)
    write_folder(tmp_path / "x", scores, task="rl/b", updates=9)
    report = build(tmp_path / "x")
    assert "rl: namm hardly acted in rl/a, and counts there too" in report.warnings
    write_folder(tmp_path / "y", scores, task="rl/a", updates=1)
    write_folder(tmp_path / "y", scores, task="rl/b", updates=2)
    assert build(tmp_path / "y").answers[1].verdict == "hardly acted"


def test_other_scores_are_not_taken_together(write_folder, tmp_path):
    write_folder(tmp_path, {"full": [0.0, 100.0] * 5}, task="video/a")
    write_folder(tmp_path, {"full": [0.0, 100.0] * 5}, task="video/b")
    assert build(tmp_path).overall == []


def test_published_numbers_have_a_source_and_another_world_is_warned_of(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": [60.0] * 5}, task="rl/hopper-medium", description={"world": "v5"}))
    (item,) = report.published
    assert (item.value, "arXiv 2210.07105" in item.source) == (65.1, True)
    assert "from another world (D4RL v2 data and environments) than these scores (v5)" in " ".join(report.warnings)
    assert build(write_folder(tmp_path / "v", {"full": [60.0] * 5})).published == []
