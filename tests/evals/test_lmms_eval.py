"""lmms-eval's model `namm`. lmms-eval wants av < 16, so its runs need an environment of their own:

    NAMM_TRANSFER_LMMS_PYTHON=runs/lmms-eval-env/bin/python pytest tests/evals/test_lmms_eval.py

where examples/lmms-eval/run.sh has made that environment.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from places import ROOT

from namm_transfer.evals.harness import cli
from namm_transfer.evals.report import ledger, provenance
from namm_transfer.evals.report.records import read
from namm_transfer.evals.tasks.video.generate import FPS, SIZE, manifest_entries
from namm_transfer.evals.tasks.video.scenes import make_film

PYTHON = os.environ.get("NAMM_TRANSFER_LMMS_PYTHON")
needs_lmms_eval = pytest.mark.skipif(
    not PYTHON, reason="NAMM_TRANSFER_LMMS_PYTHON does not name the Python of an environment with lmms-eval"
)
FULL, H2O = "full:update_interval=32", "h2o:keep=0.5,update_interval=32"


def clusters(folder: Path, task: str) -> set[str | None]:
    """The clusters of samples that the records of a report name."""
    return {record.cluster for contents in ledger.read_task(folder, task) for record in contents.records}


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """What examples/lmms-eval/run.sh leaves: OUT, and the report beside it."""
    folder = tmp_path_factory.mktemp("lmms-eval")
    given = {**os.environ, "LMMS_PYTHON": str(PYTHON), "HF_DATASETS_CACHE": str(folder / "datasets")}
    script = [str(ROOT / "examples/lmms-eval/run.sh"), str(folder / "out")]
    done = subprocess.run(script, env=given, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_lmms_eval
def test_a_local_task_is_scored_with_a_full_and_an_evicting_cache(example):
    lines = {}
    for path in (example / "out").rglob("*_samples_two_films.jsonl"):
        samples = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert len(samples) == 10
        assert all(sample["filtered_resps"] for sample in samples), "no empty answer"
        facts = [sample["token_counts"][0]["namm_transfer"] for sample in samples]
        lines[facts[0]["policy"]["spec"]] = [fact["memory"] for fact in facts]
    assert lines.keys() == {FULL, H2O}
    for spec, memories in lines.items():
        assert all(memory["videos"] and memory["seen"] > 256 for memory in memories)
        if spec == H2O:
            assert all(0.5 <= memory["kept_share"] < 0.6 and memory["updates"] >= 8 for memory in memories)
        else:
            assert all(memory["kept_share"] == 1 for memory in memories)
    report = read(example / "out-report")
    rows = {row.policy: row for row in report.summary}
    assert {row.task for row in report.summary} == {"lmms-eval/two_films"}
    assert rows[H2O].kept_share < 0.6 < rows[FULL].kept_share == 1
    assert rows[FULL].score >= 0.5, "the model saw the films"
    films = {f"test-0000{number}-64s-{FPS}fps-{SIZE}px-v1.mp4" for number in (0, 1)}
    assert clusters(example / "out-report", "lmms-eval/two_films") == films


REFUSED = """
from lmms_eval.models import get_model
from namm_transfer import NammTransferError
from namm_transfer.evals.lmms_eval import generation, parts

class Request:
    def __init__(self, content, **options):
        self.args = "", lambda document: [{"role": "user", "content": content}], options, 0, "task", "test"

def refused(act, *arguments, **named):
    try:
        found = act(*arguments, **named)
    except NammTransferError as error:
        print("refused:", error)
    else:
        raise SystemExit(f"answered {found}")

Model = get_model("namm")
for named in ({"policy": "h3o"}, {"policy": "h2o:match=namm"}, {"batch_size": 4}, {"batch": 1}, {"dtype": "float33"}):
    refused(Model, device="cpu", **named)
model = Model(device="cpu", policy="h2o:keep=0.5", update_interval=32)
model.task_dict = {"task": {"test": [{}]}}
text = {"type": "text", "text": "What color was the ring?"}
film = {"type": "video", "url": "missing.mp4"}
refused(model.generate_until, [Request([film, text], max_new_tokens=4)])
refused(model.generate_until, [Request([{"type": "image", "url": "a.png"}, text], max_new_tokens=4)])
refused(model.generate_until, [Request([text, film], max_new_tokens=4)])
refused(model.generate_until, [Request([film | {"end_time": 3.0}, text], max_new_tokens=4)])
refused(generation, {"do_sample": True, "temperature": 0.7})
refused(generation, {"num_beams": 3})
refused(generation, {"penalty": 1})
refused(model.loglikelihood, [])
assert generation({"until": "x", "max_new_tokens": 3, "temperature": 0, "top_p": 1.0, "num_beams": 1}) == (3, ["x"])
assert generation({"until": ["", "x"]}) == (1024, ["x"])
assert parts([{"role": "user", "content": [film, film, text]}]) == (("missing.mp4",) * 2, text["text"])
"""


@needs_lmms_eval
def test_errors_are_raised_and_never_become_empty_answers():
    done = subprocess.run([str(PYTHON), "-c", REFUSED], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert len(said) == 13
    for number, what in enumerate(
        ("unknown policy 'h3o'", "one policy at a time", "batch_size=4", "'batch': 1", "dtype=float33")
    ):
        assert what in said[number]
    assert "missing.mp4" in said[5]
    assert "image, text" in said[6]


def test_the_examples_questions_are_those_of_the_films_that_are_drawn():
    made = []
    for seed in range(2):
        name = f"test-{seed:05d}-64s-{FPS}fps-{SIZE}px-v1.mp4"
        made += manifest_entries(make_film("test", seed, 64), name)
    lines = (ROOT / "examples/lmms-eval/questions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == made


def write(folder: Path, spec: str, scores: list[float], where: dict, date: str) -> None:
    """The files of one run, as lmms-eval 0.7 writes them, of a task whose metric is a number in a dictionary."""
    policy = {"spec": spec, "name": spec.partition(":")[0], "update_interval": 32, "baseline": spec == "full"}
    results = {
        "results": {"films": {"films_score,none": sum(scores) / len(scores)}},
        "configs": {"films": {"task": "films", "doc_to_text": f"<function asked at 0x{date[-4:]}>"}},
        "higher_is_better": {"films": {"films_score": True}},
        "config": {"model": "namm", "batch_size": 1},
        "lmms_eval_version": "0.7.3",
        "model_name": "",
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{date}_results.json").write_text(json.dumps(results))
    lines = []
    for number, score in enumerate(scores):
        memory = {"seen": 300, "updates": 9, "kept_share": 0.5, "videos": [f"{number // 2}.mp4"]}
        facts = {"policy": policy, "provenance": where, "model": "small", "dtype": "float32", "memory": memory}
        sample = {"doc_id": number, "target": "A", "filtered_resps": "B", "doc_hash": f"h{number}", "input": "What?"}
        counts = [{"input_tokens": 300, "output_tokens": 1, "namm_transfer": facts}]
        lines.append(json.dumps({**sample, "token_counts": counts, "films_score": {"score": score, "group": "a"}}))
    (folder / f"{date}_samples_films.jsonl").write_text("\n".join(reversed(lines)))


def test_a_report_is_made_of_what_lmms_eval_wrote(tmp_path, capsys):
    where = provenance.collect(1).model_dump()
    out = tmp_path / "out"
    write(out, "full", [1.0, 1.0, 0.0, 1.0], where, "20260101_000000")
    write(out, "h2o:keep=0.5", [1.0, 0.0, 0.0, 0.0], where, "20260101_000001")
    (out / "20260101_000002_results.json").write_text(json.dumps({"config": {"model": "qwen2_5_vl"}}))
    assert cli.main(["report", "from-lm-eval", str(out), "--out", str(tmp_path / "report")]) == 0
    report = read(tmp_path / "report")
    assert [(row.task, row.policy, row.score) for row in report.summary] == [
        ("lmms-eval/films", "full", 0.75),
        ("lmms-eval/films", "h2o:keep=0.5", 0.25),
    ]
    assert report.summary[1].kept_share == 0.5
    assert report.runs[0].description["model"] == "small"
    assert clusters(tmp_path / "report", "lmms-eval/films") == {"0.mp4", "1.mp4"}
    (out / "20260101_000001_samples_films.jsonl").unlink()
    assert cli.main(["report", "from-lm-eval", str(out), "--out", str(tmp_path / "again")]) == 2
    assert "expected the harness to be run with --log_samples" in capsys.readouterr().err
