"""Files of the benchmarks' layouts, written here: where they are looked for, what is read, what is refused."""

import json
import os
import zipfile
from pathlib import Path
from statistics import mean

import pytest
from text_tasks import TASKS

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.text import load as module
from namm_transfer.evals.tasks.text.load import Source, find, load, local

LINE = {"input": "Who?", "context": "Ann {and} Bob.", "answers": ["Ann", "Bob"], "all_classes": None, "length": 3}
ASKED = {"id": 7, "context": "a long text", "input": "Who?", "answer": ["Ann"], "options": []}
REAL = os.environ.get("NAMM_LONGBENCH_ROOT")


def write(path: Path, *lines: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def questions(id: str, root: Path, *lines: dict, count: int | None = None):
    task = TASKS[id]
    write(root / f"{task.name}.jsonl", *lines)
    return load(task, find(task, root), count)


def test_a_longbench_question(tmp_path):
    asked, other = questions("longbench:qasper", tmp_path, LINE, {**LINE, "input": "Whom?"})
    assert asked.prompt == TASKS["longbench:qasper"].prompt.replace("{context}", LINE["context"]).replace(
        "{input}", "Who?"
    )
    assert (asked.references, asked.right) == (("Ann", "Bob"), "Ann")
    assert (asked.id, other.id) == ("longbench:qasper/0", "longbench:qasper/1")
    assert asked.context == other.context, "two questions about one text"
    assert asked.score("ann") == 1


def test_classes_go_with_each_answer(tmp_path):
    (asked,) = questions("longbench:trec", tmp_path, {**LINE, "all_classes": ["Ann", "Bob", "Cid"]})
    assert asked.score("Bob or Cid") == 1 / 2
    assert asked.right == "Ann"


@pytest.mark.parametrize(
    ("name", "given", "said", "right"),
    [
        ("passkey", {"answer": ["71432"]}, "71432", "71432"),
        ("kv_retrieval", {"answer": "ab-12"}, '"ab-12"', "ab-12"),
        ("longdialogue_qa_eng", {"answer": ["ANN", "BOB"]}, "Ann", "ANN"),
        ("longbook_qa_eng", {"answer": ["Ann", "Bob"]}, "Bob", "Ann"),
        ("math_calc", {"answer": [[1, 4]]}, "[1, 4]", "(1, 4)"),
        ("math_calc", {"answer": [1, 4]}, "[1, 4]", "(1, 4)"),
        ("math_find", {"answer": [7], "input": "You should answer: The largest number of these is:"}, "7", "7"),
        ("code_run", {"answer": [-9], "input": "What does func_3(-2) give?"}, "-9", "-9"),
        ("longbook_choice_eng", {"answer": ["Bob"], "options": ["Ann", "Bob", "Cid", "Dan"]}, "B", "Bob"),
        ("longbook_choice_eng", {"answer": "Cid", "options": ["Ann", "Bob", "Cid", "Dan"]}, "C", "Cid"),
        ("code_debug", {"answer": ["f", "D"], "options": ["c", "d", "e", "f"]}, "D.", "f"),
    ],
)
def test_infinitebench_answers(name, given, said, right, tmp_path):
    (asked,) = questions(f"infinitebench:{name}", tmp_path, {**ASKED, **given})
    assert asked.score(said) == 1
    assert asked.score("nothing") == 0
    assert asked.right == right


def test_only_the_first_name_of_a_dialogue_counts(tmp_path):
    (asked,) = questions("infinitebench:longdialogue_qa_eng", tmp_path, {**ASKED, "answer": ["ANN", "BOB"]})
    assert asked.score("Bob") == 0


@pytest.mark.parametrize(
    ("name", "given", "opening", "end"),
    [
        ("longbook_qa_eng", {}, "Read the book", "Question: Who?\nAnswer:"),
        (
            "longbook_choice_eng",
            {"answer": ["Bob"], "options": ["Ann", "Bob", "Cid", "Dan"]},
            "Read the book",
            "Question: Who?\nA. Ann\nB. Bob\nC. Cid\nD. Dan\n\nThe letter of the correct answer is",
        ),
        (
            "math_find",
            {"input": "You should answer: The 2nd smallest number of these is:"},
            "What is the 2nd smallest number in the following list?\n\na long text",
            "text\n\nYou should answer: The 2nd smallest number of these is:",
        ),
        (
            "code_run",
            {"input": "What does func_3(-2) give, func_4(1) aside?"},
            "There is a function called func_3 in",
            "exact value of func_3(-2). The value of func_3(-2) is",
        ),
    ],
)
def test_infinitebench_prompts(name, given, opening, end, tmp_path):
    (asked,) = questions(f"infinitebench:{name}", tmp_path, {**ASKED, **given})
    assert asked.prompt.startswith(opening)
    assert asked.prompt.endswith(end)


def test_only_as_many_lines_as_asked_for_are_read(tmp_path):
    path = write(tmp_path / "trec.jsonl", {**LINE, "all_classes": ["Ann"]})
    with path.open("a") as file:
        file.write("\n  \n" + json.dumps({**LINE, "all_classes": ["Ann"]}) + "\nno JSON\n")
    task = TASKS["longbench:trec"]
    assert len(load(task, find(task, tmp_path), 2)) == 2, "blank lines are none"
    with pytest.raises(NammTransferError, match=r"longbench:trec, line 5 of '.*trec.jsonl' cannot be read"):
        load(task, find(task, tmp_path))


@pytest.mark.parametrize(
    ("id", "change", "message"),
    [
        ("longbench:qasper", {"context": None}, "'context'.*expected a text"),
        ("longbench:qasper", {"input": 3}, "'input' is '3'.*expected a text"),
        ("longbench:qasper", {"answers": "Ann"}, "'answers'.*expected a list of texts"),
        ("longbench:qasper", {"answers": []}, "'answers'.*expected a list of texts"),
        ("longbench:qasper", {"answers": [3]}, "'answers'.*expected a list of texts"),
        ("longbench:trec", {"all_classes": None}, "'all_classes'.*expected a list of texts"),
        ("infinitebench:passkey", {"answer": None}, "'answer'.*expected a text, a number"),
        ("infinitebench:passkey", {"answer": []}, "'answer'.*expected a text, a number"),
        ("infinitebench:code_debug", {"options": ["a", "b"]}, "'options'.*expected four texts"),
        ("infinitebench:code_debug", {"options": ["a", "b", "c", "d"]}, "'answer'.*expected one of the options"),
        ("infinitebench:math_find", {}, "'input'.*expected a text with 'The"),
        ("infinitebench:code_run", {}, "'input'.*expected a text with 'func_"),
    ],
)
def test_lines_that_do_not_fit(id, change, message, tmp_path):
    base = LINE if id.startswith("longbench") else ASKED
    with pytest.raises(NammTransferError, match=message) as caught:
        questions(id, tmp_path, {**base, **change})
    assert f"{id}, line 1 of " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_questions(content, tmp_path):
    (tmp_path / "qasper.jsonl").write_bytes(content)
    with pytest.raises(NammTransferError, match="holds no questions"):
        load(TASKS["longbench:qasper"], find(TASKS["longbench:qasper"], tmp_path))


@pytest.mark.parametrize("content", [b"[1]\n", b"\xff\xfe\xff\n", b"[" * 100_000 + b"\n"])
def test_lines_that_are_no_objects(content, tmp_path):
    (tmp_path / "qasper.jsonl").write_bytes(content)
    with pytest.raises(NammTransferError, match="line 1 of"):
        load(TASKS["longbench:qasper"], find(TASKS["longbench:qasper"], tmp_path))


def archive(path: Path, *lines: dict) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/qasper.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_folder_is_looked_through_in_order(tmp_path):
    task = TASKS["longbench:qasper"]
    assert local(task, tmp_path) is None
    with pytest.raises(NammTransferError, match=r"longbench:qasper: '.*' holds no file 'qasper.jsonl'"):
        find(task, tmp_path)
    archive(tmp_path / "data.zip", {**LINE, "input": "from the archive"})
    assert "from the archive" in load(task, find(task, tmp_path))[0].prompt
    write(tmp_path / "data/qasper.jsonl", {**LINE, "input": "unpacked"})
    assert "unpacked" in load(task, find(task, tmp_path))[0].prompt
    write(tmp_path / "qasper.jsonl", {**LINE, "input": "in the folder"})
    assert "in the folder" in load(task, find(task, tmp_path))[0].prompt
    assert {path.name for path in tmp_path.iterdir()} == {"data.zip", "data", "qasper.jsonl"}, "nothing is unpacked"


def test_infinitebench_has_no_archive(tmp_path):
    archive(tmp_path / "data.zip", ASKED)
    assert local(TASKS["infinitebench:passkey"], tmp_path) is None


def test_a_file_outside_of_the_folder_is_refused(tmp_path):
    write(tmp_path / "elsewhere.jsonl", LINE)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/qasper.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(NammTransferError, match="leaves its folder"):
        find(TASKS["longbench:qasper"], tmp_path / "root")


def test_damaged_archives(tmp_path):
    whole = archive(tmp_path / "data.zip", *[{**LINE, "context": os.urandom(2000).hex()}] * 3).read_bytes()
    source = Source("data.zip", tmp_path / "damaged.zip", "data/qasper.jsonl")
    for damaged in (whole[:-30], whole[:500] + bytes(500) + whole[1000:], b"no archive"):
        source.file.write_bytes(damaged)
        with pytest.raises(NammTransferError, match=r"'data\.zip'"):
            load(TASKS["longbench:qasper"], source)
    with pytest.raises(NammTransferError, match=r"cannot read 'data\.zip'.*data/trec\.jsonl"):
        list(Source("data.zip", tmp_path / "data.zip", "data/trec.jsonl").lines())


@pytest.mark.parametrize(
    ("id", "wanted"),
    [
        ("longbench:qasper", ("THUDM/LongBench", "data.zip")),
        ("infinitebench:passkey", ("xinrongzhang2022/InfiniteBench", "passkey.jsonl")),
    ],
)
def test_from_the_hub_comes_one_file_and_no_code(id, wanted, tmp_path, monkeypatch):
    calls = []

    def download(repository, file, *, repo_type):
        calls.append((repository, file, repo_type))
        path = tmp_path / file
        return str(archive(path, LINE) if file == "data.zip" else write(path, {**ASKED, "answer": "1"}))

    monkeypatch.setattr(module, "hf_hub_download", download)
    source = find(TASKS[id], None)
    assert calls == [(*wanted, "dataset")]
    assert source.name == "/".join(wanted)
    assert len(load(TASKS[id], source)) == 1


def test_no_hub(monkeypatch):
    def download(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(module, "hf_hub_download", download)
    with pytest.raises(NammTransferError, match=r"cannot get 'data.zip' .*offline.*a folder that holds qasper.jsonl"):
        find(TASKS["longbench:qasper"], None)


@pytest.mark.skipif(REAL is None, reason="NAMM_LONGBENCH_ROOT names no folder with files of LongBench")
def test_real_files():
    """Right answers get the full score, all but a few: a line of code that is a comment gets 0."""
    found = {task: source for task in TASKS.values() if (source := local(task, Path(REAL)))}
    assert found
    for task, source in found.items():
        asked = load(task, source)
        assert mean(question.score(question.right) for question in asked) > 0.8, task.id
        assert min(len(question.prompt) for question in asked) > len(task.prompt), task.id
