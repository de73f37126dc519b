"""The decomposition of a gain: where a policy keeps tokens, and which."""

import json
import re

import pytest

from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.pages import as_html, as_markdown, terminal, write
from namm_transfer.evals.report.records import read

NOISE = [-2.0, -1.0, 0.0, 1.0, 2.0] * 4


def arm(allocation: str, rule: str = "random") -> str:
    return f"{rule}:match=namm,allocation={allocation}"


def around(mean: float, noise=NOISE) -> list[float]:
    return [mean + value for value in noise]


SCORES = {
    "full": around(90),
    "namm": around(80),
    arm("uniform"): around(40),
    arm("layer"): around(60),
    arm("head"): around(70, NOISE[::-1]),
    arm("head", "h2o"): around(75),
    arm("uniform", "h2o"): around(50),
}


@pytest.fixture
def report(write_folder, tmp_path):
    return build(write_folder(tmp_path, SCORES))


def test_the_parts_add_up_and_are_paired(report):
    (found,) = report.decompositions
    values = {part.name: part.value for part in found.parts}
    assert values == pytest.approx({"where: layers": 20, "where: heads": 10, "where": 30, "what": 10, "gain": 40})
    assert values["where"] + values["what"] == pytest.approx(values["gain"])
    spans = {part.name: part.ci for part in found.parts}
    assert spans["gain"] == pytest.approx((40, 40)), "the noise is shared by the samples, so that pairs cancel it"
    assert spans["what"][0] < 10 < spans["what"][1], "the other arm has its noise in another order"
    assert (found.task, found.policy, {part.n for part in found.parts}) == ("video", "namm", {20})


def test_every_rule_is_compared_under_the_allocation_of_the_policy(report):
    (found,) = report.decompositions
    rules = {(entry.rule, entry.allocation): entry for entry in found.rules}
    assert {key: entry.score for key, entry in rules.items()} == pytest.approx(
        {("random", "uniform"): 40, ("random", "layer"): 60, ("random", "head"): 70}
        | {("h2o", "head"): 75, ("h2o", "uniform"): 50}
    )
    assert rules["h2o", "head"].lender_ahead == pytest.approx(5)


def test_the_words_say_how_much_is_where_and_how_much_is_what(report):
    text = report.decompositions[0].text
    assert "namm gains +40 (95 % interval +40 to +40) (accuracy)" in text
    assert "Where it keeps tokens accounts for +30" in text
    assert "(+20 by layers, +10 by heads)" in text
    assert "Which tokens it keeps accounts for +10" in text
    assert "better than a random choice" in text
    assert text.endswith("So 75.0 % of the gain is where and 25.0 % is what.")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (around(80, NOISE[::-1]), "which is not told from chance by 20 samples"),
        (around(85), "worse than a random choice. So all of the gain is where."),
    ],
)
def test_a_choice_that_is_no_better_than_chance_is_said_to_be_so(write_folder, tmp_path, head, words):
    report = build(write_folder(tmp_path, SCORES | {arm("head"): head}))
    assert words in report.decompositions[0].text


def test_only_parts_whose_arms_were_run_are_there(write_folder, tmp_path):
    old = {"full": around(90), "namm": around(80), "random:match=namm": around(60)}
    assert build(write_folder(tmp_path / "a", old)).decompositions == []
    (found,) = build(write_folder(tmp_path / "b", old | {arm("head"): around(70)})).decompositions
    assert [part.name for part in found.parts] == ["where: heads", "what"], "match alone means by layer"
    assert "Which tokens it keeps" in found.text
    assert "gains" not in found.text


def test_a_group_of_tasks_is_decomposed_together(write_folder, tmp_path):
    for shift, task in ((0, "rl/hopper"), (10, "rl/walker2d")):
        scores = {spec: [v + shift * (spec == "namm") for v in values] for spec, values in SCORES.items()}
        write_folder(tmp_path, scores, task=task)
    report = build(tmp_path)
    assert [item.task for item in report.decompositions] == ["rl", "rl/hopper", "rl/walker2d"]
    together = {part.name: part for part in report.decompositions[0].parts}
    assert together["what"].value == pytest.approx(15)
    assert together["what"].n == 40
    shown = as_markdown(report)
    assert "**rl, namm: where or what**" in shown
    assert "**rl/hopper, namm: where or what**" not in shown
    assert "rl: rules at the size of namm" in shown


def test_it_is_in_all_four_forms_of_the_report(report, tmp_path):
    write(report, tmp_path)
    assert read(tmp_path).decompositions == report.decompositions
    assert json.loads((tmp_path / "report.json").read_text())["decompositions"][0]["parts"]
    for text in (as_markdown(report), as_html(report), terminal(report, tmp_path)):
        assert "So 75.0 % of the gain is where and 25.0 % is what." in text
        assert "gain of namm over random eviction in parts" in text
        shown = re.sub(r"<[^>]*>", " ", text.partition("kept) by allocation")[2])
        assert re.search(r"h2o[\s|]+50[\s|]+-[\s|]+75[\s|]+\+5[\s|]", shown), "scores under each allocation"
