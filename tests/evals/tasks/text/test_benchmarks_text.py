"""The protocol files against the tables of the benchmarks, and what is done to prompts and answers."""

# ruff: noqa: RUF001 -- Chinese punctuation

import string

import pytest
from text_tasks import TASKS
from tiny_text import save_tiny_llama
from transformers import AutoTokenizer

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.text.metrics import METRICS, Metric
from namm_transfer.evals.tasks.text.questions import Place, Question, Task, shorten

ANSWER_TOKENS = {
    "longbench": {
        128: "narrativeqa qasper dureader samsum",
        64: "multifieldqa_en multifieldqa_zh trec lsht lcc repobench-p",
        32: "hotpotqa 2wikimqa musique triviaqa passage_count passage_retrieval_en passage_retrieval_zh",
        512: "gov_report qmsum multi_news vcsum",
    },
    "infinitebench": {
        6: "passkey",
        12: "number_string",
        50: "kv_retrieval",
        1200: "longbook_sum_eng",
        40: "longbook_choice_eng longbook_qa_eng longbook_qa_chn longdialogue_qa_eng",
        3: "math_find",
        30000: "math_calc",
        5: "code_run code_debug",
    },
}
METRICS_OF = {
    "longbench": {
        "word_f1": "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
        "chinese_word_f1": "multifieldqa_zh",
        "rouge_l": "gov_report qmsum multi_news samsum",
        "chinese_rouge_l": "dureader vcsum",
        "classification": "trec lsht",
        "retrieval": "passage_retrieval_en passage_retrieval_zh",
        "count": "passage_count",
        "code_similarity": "lcc repobench-p",
    },
    "infinitebench": {
        "first_integer": "passkey number_string",
        "contained_word": "kv_retrieval",
        "rouge_l_sum": "longbook_sum_eng",
        "book_choice": "longbook_choice_eng",
        "word_f1": "longbook_qa_eng",
        "chinese_character_f1": "longbook_qa_chn",
        "contained_name": "longdialogue_qa_eng",
        "first_number": "math_find",
        "leading_integers": "math_calc",
        "last_integer": "code_run",
        "code_choice": "code_debug",
    },
}


def by_task(table):
    """`BENCHMARK:TASK` -> value, from the tables above."""
    rows = [(benchmark, value, names) for benchmark, found in table.items() for value, names in found.items()]
    return {f"{benchmark}:{name}": value for benchmark, value, names in rows for name in names.split()}


def question(task: Task, *references: object) -> Question:
    return Question("t/0", task, "a prompt", references, "right", "hash")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One byte, one token."""
    return AutoTokenizer.from_pretrained(save_tiny_llama(tmp_path_factory.mktemp("llama")))


def test_answer_lengths():
    assert {id: task.answer_tokens for id, task in TASKS.items()} == by_task(ANSWER_TOKENS)


def test_metrics():
    assert {id: task.metric for id, task in TASKS.items()} == {
        id: METRICS[name] for id, name in by_task(METRICS_OF).items()
    }


def test_what_is_cut_from_answers():
    assert [task.name for task in TASKS.values() if task.first_line] == ["trec", "triviaqa", "samsum", "lsht"]
    assert {task.name: task.stop for task in TASKS.values() if task.stop} == {"samsum": "\n"}


def test_prompts_hold_their_fields_once():
    contextual = {"input", "question", "prefix", "func", "func_call", *(f"OPTION_{letter}" for letter in "ABCD")}
    for id, task in TASKS.items():
        fields = [field for _, field, _, _ in string.Formatter().parse(task.prompt) if field]
        assert fields.count("context") == 1, id
        assert set(fields) - {"context"} <= contextual, id
    without = {task.name for task in TASKS.values() if "{input}" not in task.prompt and task.benchmark == "longbench"}
    assert without == {"gov_report", "multi_news", "vcsum", "lcc", "passage_count"}, "these always ask the same"


@pytest.mark.parametrize(
    ("id", "opening", "end"),
    [
        ("longbench:narrativeqa", "You are given a story, which can be", "\n\nQuestion: {input}\n\nAnswer:"),
        ("longbench:passage_retrieval_en", "Here are 30 paragraphs from Wikipedia", "\n\nThe answer is: "),
        ("longbench:passage_retrieval_zh", "以下是若干段落文字", "格式\n\n答案是："),
        ("longbench:dureader", "请基于给定的文章回答下述问题。\n\n文章：{context}", "问题：{input}\n回答："),
        ("longbench:trec", "Please determine the type of the question below.", "questions.\n\n{context}\n{input}"),
        ("longbench:repobench-p", "Please complete the code given below. \n{context}{input}", "Next line of code:\n"),
        ("infinitebench:passkey", "There is an important info hidden inside", "\n\nThe pass key is"),
        ("infinitebench:longbook_qa_chn", "阅读以下书籍然后回答问题。\n\n{context}", "问题：{question}\n答案："),
        ("infinitebench:math_calc", "Let us calculate the intermediate", "Expression: {context}\nValues:"),
    ],
)
def test_white_space_of_prompts_is_theirs(id, opening, end):
    assert TASKS[id].prompt.startswith(opening)
    assert TASKS[id].prompt.endswith(end)


def test_the_best_reference_counts():
    asked = question(TASKS["longbench:qasper"], "dog", "black cat")
    assert asked.score("a cat") == pytest.approx(2 / 3)


def test_first_line_tasks_skip_what_follows_and_empty_lines_before():
    assert question(TASKS["longbench:triviaqa"], "cat").score("\n\ncat\nPassage: dog") == 1
    assert question(TASKS["longbench:qasper"], "cat").score("cat\ndog") == pytest.approx(2 / 3), "others do not"


def test_samsum_ends_at_the_first_line_break_even_an_empty_line():
    assert question(TASKS["longbench:samsum"], "").trim("one\ntwo") == "one"
    assert question(TASKS["longbench:samsum"], "").trim("\none") == ""
    assert question(TASKS["longbench:trec"], "").trim("one\ntwo") == "one\ntwo"


def test_a_long_prompt_loses_its_middle(tokenizer):
    assert shorten("abcdefghij", 6, tokenizer) == "abchij"
    assert shorten("abcdefghij", 7, tokenizer) == "abchij", "halves are equal"
    assert shorten("abcdefghi", 9, tokenizer) == "abcdefghi"


def test_a_task_says_what_is_not_installed():
    task = Task(
        "longbench",
        "new",
        "{context}",
        1,
        Metric(lambda said, reference: 1.0, "new", ("no_such_module",)),
        Place(""),
        lambda *_: ({}, ()),
    )
    with pytest.raises(NammTransferError, match=r"'no_such_module'.*pip install 'namm-transfer\[longbench\]'"):
        task.check()
    for needless in ("longbench:trec", "infinitebench:longbook_qa_chn"):
        TASKS[needless].check()
