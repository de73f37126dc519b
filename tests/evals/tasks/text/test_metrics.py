"""LongBench's and InfiniteBench's metrics on answers whose score is plain to see."""

# ruff: noqa: RUF001 -- Chinese punctuation

import sys

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.text import metrics
from namm_transfer.evals.tasks.text.metrics import METRICS

CLASSES = ("Location", "Location of a city", "Human being", "Human")


def missing(monkeypatch, *names):
    """As if these modules were not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("said", "reference", "score"),
    [
        ("The Cat!", "a cat", 1),
        ("the black cat", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),  # a word counts as often as both have it
        ("theatre", "atre", 0),
        ("", "cat", 0),
        ("the", "a", 0),
    ],
)
def test_word_f1(said, reference, score):
    assert metrics.word_f1(said, reference) == pytest.approx(score)


def test_chinese_words_are_what_jieba_finds():
    pytest.importorskip("jieba", reason="the extra longbench is not installed")
    assert metrics.chinese_word_f1("北京大学。", "“北京大学”！") == 1
    assert metrics.chinese_word_f1("北京大学", "《北京大学》") == pytest.approx(2 / 3), (
        "LongBench forgot the first mark"
    )
    assert metrics.chinese_word_f1("我来到北京大学", "北京大学") == pytest.approx(2 / 4)
    assert metrics.chinese_word_f1("大学", "北京大学") == 0, "another word, though its characters are in it"
    assert metrics.chinese_word_f1("DNA", "dna") == 1


def test_chinese_characters_need_no_library(monkeypatch):
    missing(monkeypatch, "jieba", "rouge", "rouge_score")
    assert metrics.chinese_character_f1("大学", "北京 大学。") == pytest.approx(2 * 2 / 6)
    assert metrics.chinese_character_f1("Ａ，b", "ａB") == 1


def test_rouge_l():
    pytest.importorskip("rouge", reason="the extra longbench is not installed")
    assert metrics.rouge_l("one two three four", "one two 3 four") == pytest.approx(0.75)
    assert metrics.rouge_l("four two three one", "one two three four") == pytest.approx(0.5), "order counts"
    assert metrics.rouge_l("One", "one") == 0, "and so does case"


@pytest.mark.parametrize("said", ["", " ", "...", "\n"])
def test_rouge_l_of_nothing_is_zero(said):
    pytest.importorskip("rouge", reason="the extra longbench is not installed")
    assert metrics.rouge_l(said, "one two") == 0


def test_rouge_l_of_long_texts_without_full_stops():
    pytest.importorskip("rouge", reason="the extra longbench is not installed")
    said, right = (" ".join(f"{name}{i}" for i in range(600)) for name in "ab")
    before = sys.getrecursionlimit()
    assert metrics.rouge_l(f"{said} both", f"both {right}") == pytest.approx(1 / 601, rel=1e-4)
    assert sys.getrecursionlimit() == before


def test_chinese_rouge_l_goes_by_words():
    pytest.importorskip("jieba", reason="the extra longbench is not installed")
    pytest.importorskip("rouge", reason="the extra longbench is not installed")
    assert metrics.chinese_rouge_l("我来到北京大学", "我来到北京大学") == pytest.approx(1)
    assert metrics.chinese_rouge_l("北京大学我来到", "我来到北京大学") == pytest.approx(2 / 3)


def test_rouge_l_sum_goes_line_by_line_and_does_not_stem():
    pytest.importorskip("rouge_score", reason="the extra longbench is not installed")
    assert metrics.rouge_l_sum("c d\na b", "a b\nc d") == 1, "lines may change places"
    assert metrics.rouge_l_sum("running", "run") == 0


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("Human", "Human", 1),
        ("Human being", "Human being", 1),  # "Human" is part of the right name
        ("Location or Human", "Human", 1 / 2),
        ("Location", "Human", 0),
        ("", "Human", 0),
        ("Human being", "Human", 1 / 2),  # "Human being" is no part of "Human"
    ],
)
def test_classification(said, right, score):
    assert metrics.classification(said, (right, CLASSES)) == score


def test_classification_skips_the_class_after_one_that_was_dropped():
    """As LongBench does: "a" goes, "ab" moves into its place and is not looked at."""
    assert metrics.classification("abc", ("abc", ("a", "ab", "abc"))) == 1 / 2


@pytest.mark.parametrize(
    ("said", "reference", "score"),
    [
        ("Paragraph 3", "Paragraph 3", 1),
        ("3, maybe 5", "Paragraph 3", 1 / 2),
        ("13", "Paragraph 3", 0),
        ("three", "Paragraph 3", 0),
        ("段落7", "段落7", 1),
    ],
)
def test_retrieval(said, reference, score):
    assert metrics.retrieval(said, reference) == score


def test_retrieval_of_no_paragraph():
    with pytest.raises(NammTransferError, match="names no paragraph"):
        metrics.retrieval("3", "the third")


@pytest.mark.parametrize(("said", "score"), [("17", 1), ("17 of 30", 1 / 2), ("170", 0), ("", 0)])
def test_count(said, score):
    assert metrics.count(said, "17") == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("x = 1", 1),
        ("\n\nx = 1\ny = 2", 1),  # only the first line
        ("# set x\n```\nx = 1", 1),  # comments and markup are no lines of code
        ("// set x\nx = 1", 1),
        ("x = 2", 0.8),
        ("# nothing", 0),
        ("", 0),
    ],
)
def test_code_similarity(said, score):
    assert metrics.code_similarity(said, "x = 1") == score


def test_code_similarity_is_that_of_difflib_in_whole_percent():
    assert metrics.code_similarity("ababab", "aaaaab") == 0.33
    assert metrics.code_similarity("abc", "abd") == 0.67


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs])
def test_a_library_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    missing(monkeypatch, *(module for need in METRICS[name].needs for module in (need, need.partition(".")[0])))
    with pytest.raises(NammTransferError, match=r"namm-transfer\[longbench\]"):
        METRICS[name].score("said", "said")
