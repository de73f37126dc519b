"""JSON that Python reads and a later step cannot take is one error that names file and entry, in every reader."""

import json

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.json_files import expect, parse_line, read_json
from namm_transfer.evals.tasks.text.load import find, load
from namm_transfer.evals.tasks.video.egoschema import load_egoschema
from namm_transfer.evals.tasks.video.longvideobench import load_longvideobench
from namm_transfer.evals.tasks.video.mlvu import load_mlvu
from namm_transfer.evals.tasks.video.own_file import load_json

GOOD = '{"a": "text"}'
BAD = {
    '{"a": "\\ud800"}': "entry 1 holds text that is no Unicode",
    '{"\\udfff": 1}': "entry 1 holds text that is no Unicode",
    '{"a": NaN}': "entry 1 holds a number that is NaN",
    '{"a": -Infinity}': "entry 1 holds a number that is NaN",
    '{"a": [{"b": 1e999}]}': "entry 1 holds a number that is NaN",
    "[" * 100_000 + "]" * 100_000: "nested too deeply",
    '{"a": ' * 50_000 + "1" + "}" * 50_000: "nested too deeply",
    "1" * 5000: "cannot be read",
    "{": "cannot be read",
    "\udcff": "cannot be read",
}


@pytest.mark.parametrize("content", BAD)
def test_what_is_no_json_is_named(content, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(f"[{GOOD}, {content}]".encode("utf-8", "surrogateescape"))
    with pytest.raises(NammTransferError, match=rf"a\.json.*{BAD[content]}"):
        read_json(file, list)


@pytest.mark.parametrize("content", BAD)
def test_every_reader_refuses_it(content, tmp_path):
    """Own questions, MLVU, LongVideoBench, EgoSchema and the lines of text benchmarks."""
    data = f"[{content}]".encode("utf-8", "surrogateescape")
    (tmp_path / "json").mkdir()
    for name in ("own.json", "json/1_plotQA.json", "lvb_val.json", "subset_answers.json", "questions.json"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "subset_answers.json").write_text("{}")
    (tmp_path / "qasper.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
    readers = (load_mlvu, load_longvideobench, load_egoschema)
    with pytest.raises(NammTransferError, match=r"own\.json"):
        load_json(tmp_path / "own.json")
    for reader in readers:
        with pytest.raises(NammTransferError, match=r"1_plotQA\.json|lvb_val\.json|questions\.json"):
            reader(tmp_path)


def test_a_file_that_cannot_be_read_or_is_something_else(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(NammTransferError, match="holds a dict; expected a list"):
        read_json(tmp_path / "a.json", list)
    for name in ("missing.json", "a\0b.json", "n" * 300 + ".json"):
        with pytest.raises(NammTransferError, match="cannot be read"):
            read_json(tmp_path / name, list)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json", list) == [1]


def test_lines_are_objects():
    assert parse_line(GOOD.encode(), "line 1") == json.loads(GOOD)
    with pytest.raises(NammTransferError, match="line 1 is a list; expected an object"):
        parse_line(b"[]", "line 1")
    with pytest.raises(NammTransferError, match="line 1 holds text that is no Unicode"):
        parse_line(b'{"a": "\\ud800"}', "line 1")


@pytest.mark.parametrize("value", [None, "3", True, -1, 10**400, [], {}])
def test_numbers_are_plausible(value):
    with pytest.raises(NammTransferError, match="x: 'a' is"):
        expect({"a": value}, {"a": float}, "x")


def test_a_line_of_a_text_benchmark_is_refused_too(tmp_path):
    from text_tasks import TASKS

    task = TASKS["longbench:qasper"]
    (tmp_path / "qasper.jsonl").write_text('{"context": "\\ud800", "input": "", "answers": ["a"]}\n')
    with pytest.raises(NammTransferError, match=r"line 1 of .*qasper\.jsonl.* holds text that is no Unicode"):
        load(task, find(task, tmp_path))
