"""Video-MME's layout; the table is a stand-in for pyarrow's, which the tests' environment need not have."""

import sys
import types

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.tasks.video import videomme

ROW = {
    "video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Humanity",
    "url": "", "videoID": "abc", "question_id": "001-1", "task_type": "Counting Problem",
    "question": "How many?",
    "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C",
}  # fmt: skip


@pytest.fixture
def load(monkeypatch, tmp_path):
    """The questions of a table with these rows."""

    def run(*rows):
        table = types.SimpleNamespace(read=lambda: types.SimpleNamespace(to_pylist=lambda: list(rows)))
        module = types.SimpleNamespace(ParquetFile=lambda file: table)
        monkeypatch.setattr(videomme.importlib, "import_module", lambda name: module)
        return videomme.load_videomme(tmp_path)

    return run


def test_the_official_prompt_and_groups(load, tmp_path):
    (question,) = load(ROW)
    assert question.prompt.splitlines()[1:] == ["How many?", *ROW["options"], "The best answer is:"]
    assert question.options == ("One.", "Two.", "Three.", "Four.")
    assert (question.id, question.kind, question.answer) == ("001-1", "Counting Problem", 2)
    assert (question.lead, question.choices) == ("", (" A", " B", " C", " D"))
    assert question.groups == ("short", "Knowledge")
    assert question.video == tmp_path / "data/abc.mp4"


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "E"},
        {"duration": "tiny"},
        {"options": ["One", "Two", "Three", "Four"]},
        {"options": None},
        {"videoID": 3},
    ],
)
def test_rows_that_do_not_fit_are_named(change, load):
    with pytest.raises(NammTransferError, match="entry 1: "):
        load(ROW, {**ROW, **change})


def test_without_pyarrow_or_a_table(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(NammTransferError, match="pip install pyarrow"):
        videomme.load_videomme(tmp_path)


def test_a_real_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "videomme").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([ROW, ROW | {"question_id": "001-2"}]), tmp_path / videomme.FILE)
    assert [question.id for question in videomme.load_videomme(tmp_path)] == ["001-1", "001-2"]
    (tmp_path / videomme.FILE).write_bytes(b"PAR1")
    with pytest.raises(NammTransferError, match="cannot be read"):
        videomme.load_videomme(tmp_path)
