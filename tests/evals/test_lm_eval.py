"""lm-eval's model `namm`: the full cache scores as `hf` does, and an evicting policy really acts while it scores."""

import json
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install namm-transfer[lm-eval])")

import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from places import ROOT
from tiny_text import save_tiny_llama
from transformers import PreTrainedTokenizerFast

from namm_transfer import NammTransferError, policies
from namm_transfer.evals.harness import cli
from namm_transfer.evals.lm_eval import NammLM
from namm_transfer.evals.report.records import read

WORDS = ["apple", "river", "stone", "cloud", "green", "seven", "paper", "night", "ocean", "tiger", "candle", "window"]
STREAMING = "streaming:sinks=4,window=28,update_interval=32"
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}\nThe word is",
        "doc_to_choice": ["apple", "stone bridge", "a", "b"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
    "tiny_generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}\nThe word is",
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model whose tokenizer has an end of text, six texts of different length and three tasks."""
    folder = tmp_path_factory.mktemp("lm-eval")
    model = save_tiny_llama(folder / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(255)
    tokenizer.save_pretrained(model)
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=count)) for count in (9, 31, 22, 40, 14, 27)]
    documents = [{"text": text, "word": text.split()[0]} for text in texts]
    (folder / "texts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}}}
        (folder / "tasks" / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, **data, "test_split": "test", **task})
        )
    return folder


@pytest.fixture(scope="module")
def score(place, tmp_path_factory):
    """Run the tasks in float32 on the CPU; each combination once."""
    cache = pytest.MonkeyPatch()
    cache.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    found = {}

    def run(model: str, arguments: str = "", batch: int = 1) -> dict:
        key = model, arguments, batch
        if key not in found:
            found[key] = simple_evaluate(
                model,
                model_args=f"pretrained={place / 'model'},dtype=float32{arguments}",
                tasks=[*TASKS],
                task_manager=TaskManager(include_path=str(place / "tasks"), include_defaults=False),
                device="cpu",
                batch_size=batch,
                bootstrap_iters=0,
            )
        return found[key]

    yield run
    cache.undo()


def answers(results: dict) -> dict[str, list]:
    """Task -> what the model answered to each request, in order."""
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}


def numbers_in(nested) -> list:
    """All that stands in nested lists and tuples, in order."""
    return [leaf for item in nested for leaf in numbers_in(item)] if isinstance(nested, list | tuple) else [nested]


def metrics(results: dict, task: str) -> dict[str, float]:
    return {name: value for name, value in results["results"][task].items() if isinstance(value, float)}


def memory(results: dict) -> dict:
    return results["config"]["namm_transfer"]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_full_cache_scores_as_hf_does(score, batch):
    hf, full = score("hf"), score("namm", ",policy=full", batch)
    for task in TASKS:
        assert metrics(full, task) == pytest.approx(metrics(hf, task), rel=1e-5)
    assert answers(full)["tiny_generate"] == answers(hf)["tiny_generate"]
    for task in ("tiny_choice", "tiny_rolling"):
        for one, other in zip(numbers_in(answers(full)[task]), numbers_in(answers(hf)[task]), strict=True):
            assert one == pytest.approx(other, rel=1e-5)
    assert {task: numbers["kept_share"] for task, numbers in memory(full)["tasks"].items()} == dict.fromkeys(TASKS, 1.0)


def test_an_evicting_policy_acts_while_it_scores(score):
    full, evicting = score("namm", ",policy=full"), score("namm", ",policy=h2o:keep=0.5,update_interval=16")
    assert memory(evicting)["policy"]["spec"] == "h2o:keep=0.5,update_interval=16"
    assert memory(evicting)["policy"]["update_interval"] == 16
    for task, numbers in memory(evicting)["tasks"].items():
        assert 0.5 <= numbers["kept_share"] < 0.65  # half, and what came since the last update
        assert numbers["updates"] > 3
        assert answers(evicting)[task] != answers(full)[task]


@pytest.mark.parametrize("batch", [3, 4])
def test_a_batch_changes_neither_answers_nor_memories(score, batch):
    """Rows are padded left to generate and right to score: neither padding is seen by the memory."""
    policy = ",policy=h2o:keep=0.5,update_interval=16"
    alone, together = score("namm", policy), score("namm", policy, batch)
    assert memory(together)["documents"].keys() == memory(alone)["documents"].keys() == TASKS.keys()
    for task, documents in memory(alone)["documents"].items():
        assert len({document["seen"] for document in documents.values()}) == 6  # each document has its own length
        assert memory(together)["documents"][task] == documents
        for one, other in zip(numbers_in(answers(together)[task]), numbers_in(answers(alone)[task]), strict=True):
            assert one == (pytest.approx(other, rel=1e-5) if isinstance(other, float) else other)


def test_a_text_longer_than_the_model_is_read_in_windows(score):
    arguments = ",max_length=64"
    hf, full = score("hf", arguments, 4), score("namm", arguments, 4)
    assert metrics(full, "tiny_rolling") == pytest.approx(metrics(hf, "tiny_rolling"), rel=1e-5)
    assert all(document["seen"] <= 64 for document in memory(full)["documents"]["tiny_rolling"].values())


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        (dict(policy="full"), "full"),
        (dict(policy="h2o:keep=0.5", update_interval=64), "h2o:keep=0.5,update_interval=64"),
        (dict(policy="streaming:sinks=4", window=60), "streaming:sinks=4,window=60"),
        (dict(policy="streaming", sinks=4, window=60), "streaming:sinks=4,window=60"),
        (dict(policy="streaming:sinks=4,window=60", protect="4:16"), "streaming:sinks=4,window=60,protect=4:16"),
    ],
)
def test_options_that_lm_eval_cuts_off_find_back(place, written, spec):
    entry = NammLM(str(place / "model"), device="cpu", **written).entry
    assert (entry.spec.name, entry.spec.options) == (policies.parse(spec).name, policies.parse(spec).options)


def test_a_continuation_of_no_tokens_is_no_certainty(place):
    model = NammLM(str(place / "model"), device="cpu")
    with pytest.raises(NammTransferError, match="a continuation of 0 tokens: expected 1 to 4096"):
        model.loglikelihood([Instance("loglikelihood", {}, ("Some context", ""), 0)], disable_tqdm=True)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (dict(policy="h3o"), "unknown policy 'h3o'"),
        (dict(policy="h2o:keep=2"), "keep"),
        (dict(policy="h2o:match=namm"), "one policy at a time"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_before_the_model_is_loaded(place, written, message):
    with pytest.raises(NammTransferError, match=message):
        NammLM(str(place / "nothing"), **written)


@pytest.mark.parametrize(
    ("model", "written", "message"),
    [
        ("model", dict(policy="full", keep=0.5), "keep.* expected arguments of lm-eval's hf, policy"),
        ("model", dict(policy="h2o", kept=0.5), "kept.* expected arguments of lm-eval's hf, policy"),
        ("nothing", dict(), "no model at"),
        ("", dict(), "Unrecognized model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(model, written, message, place):
    with pytest.raises(NammTransferError, match=message):
        NammLM(str(place / model), device="cpu", **written)


def test_a_task_that_is_not_there_is_one_line(place, capsys):
    given = ["--model", "namm", "--model_args", f"pretrained={place / 'model'}", "--tasks", "tiny_choose"]
    assert cli.main(["lm-eval", *given, "--include_path", str(place / "tasks"), "--device", "cpu"]) == 2
    assert "namm-transfer lm-eval: lm-eval stopped: ValueError: Tasks not found: tiny_choose" in capsys.readouterr().err


@pytest.fixture(scope="module")
def logged(place, tmp_path_factory) -> Path:
    """What lm-eval's command line writes for `hf`, the full cache and an evicting policy, with samples."""
    folder = tmp_path_factory.mktemp("logged")
    where = ["--include_path", str(place / "tasks"), "--output_path", str(folder), "--log_samples", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        for model, policy in (("hf", ""), ("namm", ",policy=full"), ("namm", f",policy={STREAMING}")):
            arguments = ["--model", model, "--model_args", f"pretrained={place / 'model'},dtype=float32{policy}"]
            assert cli.main(["lm-eval", *arguments, "--tasks", *TASKS, *where, "--batch_size", "4"]) == 0
    return folder


def test_the_command_line_writes_scores_and_memories(logged):
    written = [
        json.loads(path.read_text())["config"].get("namm_transfer") for path in sorted(logged.rglob("results_*"))
    ]
    assert written[0] is None  # hf
    assert written[2]["policy"]["spec"] == STREAMING
    assert written[2]["tasks"]["tiny_choice"]["requests"] == 24
    assert written[1]["documents"]["tiny_choice"]["3"]["kept_share"] == 1
    assert written[2]["documents"]["tiny_choice"]["3"]["kept_share"] < 0.5


def test_the_example_needs_no_download_and_runs(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(ROOT)
    tasks = ["passkey_choice", "passkey_answer", "passkey_text"]
    results = simple_evaluate(
        "namm",
        model_args=f"pretrained={place / 'model'},policy=recent:keep=0.25,update_interval=256",
        tasks=tasks,
        task_manager=TaskManager(include_path="examples/lm-eval", include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        limit=1,
    )
    assert all(0.25 <= memory(results)["tasks"][task]["kept_share"] < 0.45 for task in tasks)
    assert all(memory(results)["tasks"][task]["updates"] >= 5 for task in tasks)


def test_a_report_is_made_of_what_lm_eval_wrote(logged, tmp_path, capsys):
    assert cli.main(["report", "from-lm-eval", str(logged), "--out", str(tmp_path)]) == 0
    assert "lm-eval/tiny_choice" in capsys.readouterr().out
    report = read(tmp_path)
    rows = {(row.task, row.policy): row for row in report.summary}
    assert rows.keys() == {(f"lm-eval/{task}", policy) for task in TASKS for policy in ("full", STREAMING)}
    assert {run.task: run.description["score"] for run in report.runs} == {
        "lm-eval/tiny_choice": "acc",
        "lm-eval/tiny_rolling": "log-likelihood per word",
        "lm-eval/tiny_generate": "exact_match",
    }
    results = [json.loads(path.read_text()) for path in sorted(logged.rglob("results_*"))]
    for policy, written in zip(("full", STREAMING), results[1:], strict=True):
        for task, metric in (("tiny_choice", "acc"), ("tiny_generate", "exact_match")):
            row = rows[f"lm-eval/{task}", policy]
            assert row.score == pytest.approx(written["results"][task][f"{metric},none"])
            assert row.kept_share == pytest.approx(written["config"]["namm_transfer"]["tasks"][task]["kept_share"])
    evicting = rows["lm-eval/tiny_rolling", STREAMING]
    assert evicting.updates_mean > 2
    assert evicting.kept_share < 0.5 < rows["lm-eval/tiny_rolling", "full"].kept_share == 1
    assert evicting.diff_full is not None
    own = shutil.copytree(logged, tmp_path / "own")
    for _ in range(2):  # a report in the folder is nothing that lm-eval wrote
        assert cli.main(["report", "from-lm-eval", str(own)]) == 0
    assert read(own / "report").summary == report.summary


def test_lm_evals_files_that_make_no_report_are_named(logged, tmp_path, capsys):
    def refused(folder: Path, *options: str) -> str:
        assert cli.main(["report", "from-lm-eval", str(folder), "--out", str(tmp_path / "report"), *options]) == 2
        return capsys.readouterr().err

    assert "no results of the model namm" in refused(tmp_path)
    assert "'acc_of_nothing' of document 0" in refused(logged, "--metric", "acc_of_nothing")
    copy = Path(shutil.copytree(logged, tmp_path / "copy"))
    (one,) = (path for path in copy.rglob("results_*") if f"{STREAMING}" in path.read_text())
    content, again = one.read_text(), one.with_name("results_2999.json")
    again.write_text(content)
    assert "expected the harness to be run with --log_samples" in refused(copy)
    for samples in one.parent.glob(f"samples_*_{one.stem.removeprefix('results_')}.jsonl"):
        samples.with_name(samples.name.replace(one.stem.removeprefix("results_"), "2999")).write_bytes(
            samples.read_bytes()
        )
    assert "was run twice" in refused(copy)
    again.write_text("[]")
    assert "is no results file of lm-eval or lmms-eval" in refused(copy)
    again.unlink()
    one.write_text(content.replace('"max_gen_toks": 12', '"max_gen_toks": 13'))
    assert "differ in the task configuration of 'tiny_generate'" in refused(copy)
    cached = json.loads(content)
    del cached["config"]["namm_transfer"]["documents"]["tiny_rolling"]["2"]
    one.write_text(json.dumps(cached))
    assert "--use_cache" in refused(copy)
