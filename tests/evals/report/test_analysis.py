"""From records to rows, answers and warnings."""

import os
import random

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.report import ledger, verdict
from namm_transfer.evals.report.analysis import build

WRONG, RIGHT = [0.0] * 20, [1.0] * 20
MIXED = [0.0, 1.0] * 10


def test_a_row_of_the_summary(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": [1.0, 1.0, 0.0, 1.0], "namm": [1.0, 0.0, 0.0, 0.0]}))
    full, namm = report.summary
    assert full.model_dump() == {
        "task": "video",
        "policy": "full",
        "n": 4,
        "score": 0.75,
        "diff_full": None,
        "diff_ci": None,
        "kept_share": 0.5,
        "divergence": None,
        "updates_mean": 4.0,
        "acted_share": 1.0,
        "failed": 0,
        "unparsed": 0,
    }
    assert (namm.score, namm.diff_full) == (0.25, -0.5)
    assert namm.diff_ci == (-1.0, 0.0)


def test_the_order_of_writing_does_not_matter(write_folder, tmp_path):
    folder = write_folder(tmp_path, {"full": MIXED, "namm": RIGHT})
    before = build(folder)
    path = ledger.find(folder)[0]
    head, *lines = path.read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_bytes(head + b"".join(lines[:7]))
    (folder / "records-video-1.jsonl").write_bytes(head + b"".join(lines[5:]))
    assert build(folder) == before


def test_failed_samples_are_counted_and_left_out_of_means_and_pairs(write_folder, make_record, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0, 1.0, 1.0], "namm": [0.0, 0.0]})
    with open(ledger.find(folder)[0], "a") as file:
        broken = make_record(
            2, "namm", None, error="OSError: no", updates=0, kept_share=None, kept=[], history=[], seen=0
        )
        file.write(broken.model_dump_json() + "\n")
    row = build(folder).summary[1]
    assert (row.n, row.failed, row.score, row.diff_full, row.updates_mean) == (3, 1, 0.0, -1.0, 4.0)
    assert "namm: 1 of 3 samples failed" in " ".join(build(folder).warnings)


@pytest.mark.parametrize(
    ("scores", "word"), [(RIGHT, "helps"), (MIXED, "holds"), (WRONG, "hurts"), (MIXED[::-1], "unsettled")]
)
def test_the_word_follows_from_the_interval(scores, word, write_folder, tmp_path):
    answer = build(write_folder(tmp_path, {"full": 2 * MIXED, "namm": 2 * scores})).answers[1]
    assert answer.verdict == word
    assert "50.0 % of the cache" in answer.text
    assert "95 % interval" in answer.text


@pytest.mark.parametrize(("draws", "word"), [(29, "unsettled"), (30, "holds")])
def test_few_draws_without_any_difference_exclude_little(draws, word, write_folder, tmp_path):
    """By the rule of three, of 29 with no loss more than a tenth may yet lose."""
    same = {"full": [1.0] * draws, "namm": [1.0] * draws}
    answer = build(write_folder(tmp_path, same)).answers[1]
    assert answer.verdict == word
    assert ("may hide a loss of up to 0.103" in answer.text) == (word == "unsettled")


@pytest.mark.parametrize("interval", ["", ":keep=0.3,update_interval=64"])
def test_sizes_stand_at_the_updates_of_the_policy(interval, write_folder, tmp_path):
    folder = write_folder(tmp_path, {f"namm{interval}": RIGHT})
    (sizes,) = build(folder).sizes
    assert sizes.interval == (64 if interval else 16)


@pytest.mark.parametrize("scores", [RIGHT, MIXED, WRONG])
@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_policy_that_hardly_acted_gets_no_verdict(scores, updates, write_folder, tmp_path):
    answer = build(write_folder(tmp_path, {"full": MIXED, "namm": scores}, updates=updates)).answers[1]
    assert answer.verdict == "hardly acted"
    assert "hardly acted" in answer.text
    assert not any(word in answer.text for word in ("helps", "holds", "hurts"))


def test_nothing_is_held_where_the_full_cache_gets_nothing_right(write_folder, tmp_path):
    answer = build(write_folder(tmp_path, {"full": WRONG, "namm": WRONG})).answers[1]
    assert answer.verdict == "cannot tell"
    assert "scores 0 itself" in answer.text


def test_few_pairs_are_called_few(write_folder, tmp_path):
    few = build(write_folder(tmp_path / "few", {"full": WRONG[:5], "namm": RIGHT[:5]})).answers[1]
    assert few.verdict == "helps"
    assert "too narrow" in few.text
    fewer = build(write_folder(tmp_path / "fewer", {"full": WRONG[:4], "namm": RIGHT[:4]})).answers[1]
    assert fewer.verdict == "cannot tell"
    one = build(write_folder(tmp_path / "one", {"full": [0.0], "namm": [1.0]})).answers[1]
    assert one.verdict == "cannot tell"
    alone = build(write_folder(tmp_path / "alone", {"namm": RIGHT}))
    assert alone.answers[0].verdict == "cannot tell"
    assert "no full cache" in alone.warnings[0]


def test_samples_of_one_cluster_are_one_draw(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": WRONG, "namm": MIXED}, cluster="one video"))
    assert report.summary[1].diff_ci is None


def test_a_model_near_chance_is_warned_of(write_folder, tmp_path):
    weak = write_folder(tmp_path / "weak", {"full": MIXED}, description={"chance": 0.4})
    assert "not clearly above guessing" in build(weak).warnings[0]
    good = write_folder(tmp_path / "good", {"full": [1.0] * 19 + [0.0]}, description={"chance": 0.4})
    assert build(good).warnings == []


def test_missing_and_damaged_records_are_said(write_folder, tmp_path):
    folder = write_folder(tmp_path, {"full": RIGHT, "namm": RIGHT})
    path = ledger.find(folder)[0]
    os.truncate(path, path.stat().st_size - 5)
    first, second = build(folder).warnings
    assert "damaged from line 41" in first
    assert "1 of 40 records are missing" in second


def test_heat_maps_are_shares_by_layer_and_head(write_folder, tmp_path):
    (heat,) = build(write_folder(tmp_path, {"full": RIGHT, "namm": RIGHT})).heatmaps
    assert (heat.policy, heat.share) == ("namm", [[0.4, 0.6], [0.5, 0.5]])


def test_categories_appear_where_there_are_several(write_folder, make_record, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0, 0.0]}, room=1)
    assert build(folder).categories == []
    with open(ledger.find(folder)[0], "a") as file:
        file.write(make_record(2, "full", 0.0, category="needle").model_dump_json() + "\n")
    assert [(row.category, row.n, row.score) for row in build(folder).categories] == [
        ("needle", 1, 0.0),
        ("plot", 2, 0.5),
    ]


def test_groups_beside_the_category_have_rows_of_their_own(write_folder, make_record, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0, 0.0]}, room=2)
    with open(ledger.find(folder)[0], "a") as file:
        for index, groups in ((2, ["64 frames", "film"]), (3, ["8 frames"])):
            record = make_record(index, "full", 1.0, category="plot", details={"groups": groups})
            file.write(record.model_dump_json() + "\n")
    rows = [(row.category, row.n, row.score) for row in build(folder).categories]
    assert rows == [("plot", 4, 0.75), ("64 frames", 1, 1.0), ("film", 1, 1.0), ("8 frames", 1, 1.0)]


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(NammTransferError, match="no records in"):
        build(tmp_path)


def test_ledgers_of_two_configurations_are_refused(write_folder, tmp_path):
    folder = write_folder(tmp_path, {"full": RIGHT})
    stranger = write_folder(tmp_path / "other", {"full": RIGHT[:3]})
    (folder / "records-video-1.jsonl").write_bytes(ledger.find(stranger)[0].read_bytes())
    with pytest.raises(NammTransferError, match="samples: 20 there, 3 here"):
        build(folder)


def test_numbers_are_short_and_never_scientific():
    assert [verdict.number(x) for x in (None, 0.48717, 65.13, 3234.3, 123456.0, 0.0, -0.0000474)] == [
        "-",
        "0.487",
        "65.1",
        "3234",
        "123456",
        "0",
        "-0.00005",
    ]
    assert (verdict.signed(0.5), verdict.signed(-0.5), verdict.percent(0.123)) == ("+0.5", "-0.5", "12.3 %")


def test_each_task_has_a_headline_about_its_namm_or_about_all(write_folder, tmp_path):
    write_folder(tmp_path, {"full": MIXED, "namm": RIGHT, "l2": WRONG}, task="a")
    write_folder(tmp_path, {"full": MIXED, "tova": RIGHT, "l2": WRONG}, task="b")
    shown = verdict.top(build(tmp_path))
    assert [(answer.task, answer.policy) for answer in shown] == [("a", "namm"), ("b", "tova"), ("b", "l2")]


def test_a_full_cache_with_options_of_its_own_is_a_baseline_like_any_other(write_folder, tmp_path):
    plain = build(write_folder(tmp_path / "a", {"full": MIXED, "namm": RIGHT}))
    other = build(write_folder(tmp_path / "b", {"full:update_interval=64": MIXED, "namm": RIGHT}))
    assert [answer.verdict for answer in other.answers] == ["baseline", "helps"]
    assert other.headline == plain.headline
    assert other.summary[1] == plain.summary[1]
    assert [row.policy for row in other.heatmaps] == ["namm"]
    assert not any("no full cache" in warning for warning in other.warnings)
    assert verdict.top(other)[0].text == verdict.top(plain)[0].text


def test_a_second_baseline_is_compared_with_the_first_and_called_a_baseline(write_folder, tmp_path):
    scores = {"full": MIXED, "full:update_interval=64": MIXED, "namm": RIGHT}
    report = build(write_folder(tmp_path, scores))
    assert [answer.verdict for answer in report.answers] == ["baseline", "baseline", "helps"]
    assert [row.diff_full for row in report.summary] == [None, 0.0, 0.5]


OFFICIAL = {"name": "M-Avg", "rule": "mean over categories", "categories": ["plot", "needle", "order"]}


def test_a_benchmark_is_averaged_by_its_own_rule_and_absent_categories_are_named(write_folder, make_record, tmp_path):
    folder = write_folder(
        tmp_path, {"full": [100.0] * 3, "namm": [0.0] * 3}, description={"headline": OFFICIAL}, room=1
    )
    with open(ledger.find(folder)[0], "a") as file:
        for policy in ("full", "namm"):
            file.write(make_record(3, policy, 0.0, category="needle").model_dump_json() + "\n")
    report = build(folder)
    full, namm = report.headlines
    assert (full.name, full.value, full.parts, full.missing) == (
        "M-Avg",
        50.0,
        {"needle": 0.0, "plot": 100.0},
        ["order"],
    )
    assert namm.value == 0.0
    assert report.summary[0].score == 75.0
    assert report.headline.startswith(
        "video: M-Avg 50 for full, 0 for namm (accuracy) without order, of which there is no sample. Against the full"
    )
    assert "mean over samples" in report.answers[0].text


def test_a_benchmark_may_average_over_samples_and_failures_count_as_wrong(write_folder, make_record, tmp_path):
    rule = {**OFFICIAL, "rule": "mean over samples"}
    folder = write_folder(tmp_path, {"full": [100.0, 100.0]}, description={"headline": rule}, room=2)
    with open(ledger.find(folder)[0], "a") as file:
        file.write(make_record(2, "full", 100.0, category="needle").model_dump_json() + "\n")
        file.write(make_record(3, "full", None, category="needle", error="OSError: no").model_dump_json() + "\n")
    (full,) = build(folder).headlines
    assert (full.value, full.parts["needle"]) == (75.0, 50.0)
    with pytest.raises(NammTransferError, match=r"'median'.*mean over categories"):
        build(write_folder(tmp_path / "b", {"full": [1.0]}, description={"headline": {**OFFICIAL, "rule": "median"}}))


def test_a_report_over_nothing_that_was_scored_says_so(write_folder, tmp_path):
    broken = {"full": [None] * 3, "namm": [None] * 3}
    folder = write_folder(tmp_path, broken, error="OSError: disk", description={"headline": OFFICIAL}, updates=0)
    report = build(folder)
    assert report.headline.startswith("Nothing was scored in video.")
    assert {answer.text for answer in report.answers if answer.policy == "namm"} == {
        "Nothing was scored: 3 of 3 samples failed."
    }
    assert "video: nothing was scored: every sample failed" in report.warnings
    assert [item.value for item in report.headlines] == [None, None]


def test_failed_samples_are_named_once(write_folder, make_record, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0], "namm": [1.0]}, room=8)
    with open(ledger.find(folder)[0], "a") as file:
        for policy in ("full", "namm"):
            for index in range(1, 9):
                file.write(make_record(index, policy, None, error="OSError: no").model_dump_json() + "\n")
    (warning,) = (text for text in build(folder).warnings if "failed" in text)
    assert warning == (
        "video: every policy: 8 of 9 samples failed and are left out of the score (sample 1, sample 2, sample 3, "
        "sample 4, sample 5 and 3 more); the first: OSError: no"
    )


def test_returns_have_their_spread(write_folder, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0] * 4}, task="rl/hopper", details={"return": 10.0})
    path = ledger.find(folder)[0]
    path.write_text(path.read_text().replace('"return":10.0', '"return":30.0', 1))
    (row,) = build(folder).returns
    assert (row.n, row.mean, row.sd, row.min, row.max) == (4, 15.0, 10.0, 10.0, 30.0)


def test_a_task_beside_a_group_of_the_same_name_keeps_its_answer(write_folder, tmp_path):
    for task in ("text", "text/longbench"):
        write_folder(tmp_path, {"full": MIXED, "namm": RIGHT}, task=task)
    assert [answer.task for answer in verdict.top(build(tmp_path))] == ["text", "text/longbench"]
