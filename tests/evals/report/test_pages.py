"""The three files: complete, self-contained, and safe whatever a model says."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.report import pages, schema, tables
from namm_transfer.evals.report.analysis import build
from namm_transfer.evals.report.publish import merge
from namm_transfer.evals.report.schema import Report

HOSTILE = "<script>alert(1)</script> | [x](http://evil.example) `<img src=http://evil.example/a.png>`"


@pytest.fixture
def report(write_folder, tmp_path) -> Report:
    scores = {"full": [1.0, 0.0] * 10, "namm": [1.0, 1.0] * 10, "h2o:keep=0.5": [0.0] * 20}
    return build(write_folder(tmp_path / "one", scores, answer=HOSTILE, details={"bytes": 2048}))


class Elements(HTMLParser):
    """Every element and attribute of a page, and whether its tags are balanced."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_with_unique_ids(report):
    elements = Elements(pages.as_html(report))
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_asks_no_other_host_for_anything(report):
    page = pages.as_html(report)
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_model_output_is_text_and_nothing_else(report):
    page = pages.as_html(report)
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not [attributes for tag, attributes in Elements(page).found if tag == "img"]  # no time lines were recorded


def test_the_script_of_the_page_is_the_one_its_policy_names(report):
    page = pages.as_html(report)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page


def test_figures_have_words_and_take_the_colours_of_the_page(report):
    page = pages.as_html(report)
    figures = [attributes for tag, attributes in Elements(page).found if attributes.get("role") == "img"]
    assert len(figures) == 3
    assert "namm: 1 keeping 50.0 %" in figures[0]["aria-label"]
    assert "namm: 50 after the first update, 50 after the last (4)" in figures[1]["aria-label"]
    assert "20 of 20 samples reached" in figures[1]["aria-label"]
    assert "layer 0 50.0 %" in figures[2]["aria-label"]
    assert "currentColor" in page
    assert "prefers-color-scheme: dark" in page


def test_the_same_records_give_the_same_bytes(report, tmp_path):
    for folder in ("a", "b"):
        pages.write(build(tmp_path / "one"), tmp_path / folder)
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_json_is_the_report_and_fits_its_schema(report):
    text = pages.as_json(report)
    assert Report.model_validate_json(text) == report
    row = json.loads(text)["summary"][0]
    columns = "task policy n score diff_full diff_ci kept_share divergence updates_mean acted_share failed unparsed"
    assert list(row) == columns.split()
    assert all("updates" in record for record in json.loads(text)["records"])


def test_the_shipped_schema_is_current():
    assert resources.files("namm_transfer.evals.report").joinpath("schema.json").read_text() == schema.json_schema()


def test_a_large_report_stays_small(report):
    brief = report.records[0]
    long = report.model_copy(update={"records": [brief.model_copy(update={"details": {"t": "x" * 3000}})] * 500})
    trimmed = json.loads(pages.as_json(long))
    assert len(pages.as_json(long)) <= pages.JSON_LIMIT
    assert len(trimmed["records"]) == 500
    huge = json.loads(pages.as_json(report.model_copy(update={"records": [brief] * 20000})))
    assert (huge["records"], huge["records_left_out"]) == ([], 20000)
    assert len(pages.as_html(long)) < 1_000_000


def test_markdown_has_the_answer_the_tables_and_no_live_markup(report):
    page = pages.as_markdown(report)
    assert page.splitlines()[2].startswith("Against the full cache. video: namm is better (+0.5, 95 % interval")
    assert page.index("**video, namm**: Better:") < page.index("| policy ")
    assert re.search(r"\| namm +\| better +\| +20 \| +1 \| +\+0.5 \|", page)
    assert tables.escape(HOSTILE).startswith(r"\<script\>alert(1)\</script\> \| \[x\](http")
    assert "Warnings" not in page


def test_the_terminal_shows_answer_table_and_path(report, tmp_path):
    text = pages.terminal(report, tmp_path)
    assert "video, namm: Better: 1 against 0.5 with the full cache (accuracy), +0.5" in text
    assert "video, h2o" not in text
    assert str(tmp_path / "report.html") in text
    assert text.startswith("\nAgainst the full cache. video: namm is better")
    assert max(map(len, text.split("\n\n")[2].splitlines())) <= 120


def test_the_terminal_shows_a_column_of_zeros_unless_it_counts_what_went_wrong(write_folder, tmp_path):
    report = build(write_folder(tmp_path, {"full": [0.0] * 8, "namm": [0.0] * 8}))
    heads = next(line for line in pages.terminal(report, tmp_path).splitlines() if line.startswith("policy"))
    assert "score" in heads
    assert "failed" not in heads


def test_merged_reports_have_every_task_once(write_folder, tmp_path):
    first = write_folder(tmp_path / "a", {"full": [1.0] * 3, "namm": [0.0] * 3}, task="video")
    second = write_folder(tmp_path / "b", {"full": [5.0] * 3, "namm": [6.0] * 3}, task="rl/hopper")
    merged = merge([first, second], tmp_path / "all")
    assert {(row.task, row.policy): row.score for row in merged.summary} == {
        ("video", "full"): 1.0,
        ("video", "namm"): 0.0,
        ("rl/hopper", "full"): 5.0,
        ("rl/hopper", "namm"): 6.0,
    }
    assert build(tmp_path / "all") == merged
    (tmp_path / "all" / "records-video-1.jsonl").write_bytes((first / "records-video-0.jsonl").read_bytes())
    assert merge([first, second], tmp_path / "all") == merged
    assert not (tmp_path / "all" / "records-video-1.jsonl").exists(), "an earlier merge by more processes is put aside"
    with pytest.raises(NammTransferError, match="task 'video' is in"):
        merge([first, tmp_path / "all"], tmp_path / "twice")
    with pytest.raises(NammTransferError, match="records of something else"):
        merge([first], second)


def test_a_sample_without_words_shows_what_came_of_it(write_folder, tmp_path):
    folder = write_folder(
        tmp_path, {"full": [1.0]}, answer=None, details={"return": 3456.7, "length": 1000, "trace": [1, 2]}
    )
    assert "<q>return 3457, length 1000</q>" in pages.as_html(build(folder))


def test_columns_that_nobody_measured_are_not_shown(write_folder, tmp_path):
    shown = [column.name for column in tables.costs(build(write_folder(tmp_path, {"full": [1.0]})), "video").columns]
    assert shown == ["policy", "tokens seen", "tokens kept", "peak", "s/sample", "acted"]


def test_a_benchmarks_own_score_stands_above_every_other(write_folder, tmp_path):
    official = {"name": "M-Avg", "rule": "mean over categories", "categories": ["plot", "order"]}
    scores = {"full": [100.0, 0.0] * 5, "namm": [0.0] * 10}
    report = build(write_folder(tmp_path, scores, description={"headline": official}))
    for text in (pages.terminal(report, tmp_path), pages.as_markdown(report), pages.as_html(report)):
        assert "M-Avg 50 for full, 0 for namm" in text
        assert text.index("M-Avg") < text.index("s own score")
        assert not re.search(r"\bscore +vs full\b", text), "the mean over samples is called so"
        assert "order" in text
    assert re.search(
        r"^policy +M-Avg +vs full \(official\) +categories +absent$", pages.terminal(report, tmp_path), re.M
    )


def test_verdicts_and_columns_are_explained_on_every_page(report, tmp_path):
    for text in (pages.terminal(report, tmp_path), pages.as_markdown(report), pages.as_html(report)):
        plain = " ".join(text.split())
        assert "non-inferior (loses at most 10 %)" in plain
        assert plain.index("better or worse, the 95 % interval") < plain.index("policy")
    for text in (pages.as_markdown(report), pages.as_html(report)):
        for name in ("cache kept", "peak", "acted"):
            assert re.search(rf"- {name}: |<dt>{name}</dt><dd>", text)


def test_the_terminal_shows_raw_returns_and_what_failed(write_folder, make_record, tmp_path):
    folder = write_folder(tmp_path, {"full": [1.0] * 4}, task="rl/hopper", details={"return": 10.0}, room=1)
    with open(next(folder.glob("records-*")), "a") as file:
        file.write(make_record(4, "full", None, error="OSError: no").model_dump_json() + "\n")
    text = pages.terminal(build(folder), folder)
    assert re.search(r"^full +4 +10 +0 +10 +10$", text, re.M)
    assert "warning: rl/hopper: full: 1 of 5 samples failed and are left out of the score (sample 4)" in text


def test_many_policies_with_long_names_leave_room_for_the_axes(write_folder, tmp_path, recwarn):
    specs = [f"namm:path=assets/some/very/long/folder/number-{i}/namm-text,keep=0.{i + 10}" for i in range(24)]
    pages.as_html(build(write_folder(tmp_path, {"full": [1.0, 2.0]} | {spec: [1.0, 2.0] for spec in specs})))
    assert not [str(item.message) for item in recwarn if "constrained_layout" in str(item.message)]
