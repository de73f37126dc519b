"""The text evaluation from command line to report, on a random Llama."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_tasks import TASKS
from tiny_text import save_tiny_llama
from transformers import AutoTokenizer

from namm_transfer import NammTransferError, policies
from namm_transfer.evals import text
from namm_transfer.evals.report.verification import verify
from namm_transfer.evals.tasks.text.asking import about_families
from namm_transfer.evals.tasks.text.families import recall
from namm_transfer.evals.tasks.text.load import find, load
from namm_transfer.evals.tasks.text.ruler import RULER

FLAGS = ["--tokens", "300", "--samples", "2", "--update-interval", "64", "--dtype", "float32"]
BENCHMARK = ["--update-interval", "64", "--dtype", "float32", "--policy", "full,streaming:keep=0.5"]
BOOK = " ".join(f"Line {i} of a book." for i in range(20))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with three questions of one task of LongBench, two of another, and one of InfiniteBench."""
    folder = tmp_path_factory.mktemp("benchmarks")
    classes = ["Location", "Human"]
    files = {
        "trec": [{"context": BOOK, "input": f"{i}?", "answers": ["Human"], "all_classes": classes} for i in range(3)],
        "passage_count": [{"context": BOOK[i:], "input": "", "answers": [str(i)]} for i in range(2)],
        "passkey": [{"context": BOOK, "input": "Which?", "answer": "71432"}],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_comparison(model, tmp_path, capsys):
    torch.set_num_threads(1)
    policies = "full,streaming:keep=0.5,random:match=streaming"
    report = text.main(
        [*FLAGS, "--model", str(model), "--tasks", "passkey,multihop", "--policy", policies, "--out", str(tmp_path)]
    )
    written = json.loads((tmp_path / "report.json").read_text())
    assert [row["policy"] for row in written["summary"]][:1] == ["full"]
    assert len(report.records) == 3 * 4
    by_policy = {row["policy"]: row for row in written["summary"]}
    assert by_policy["full"]["kept_share"] == 1
    streaming, matched = (by_policy[p]["kept_share"] for p in ("streaming:keep=0.5", "random:match=streaming"))
    assert 0.4 < streaming < 0.7
    assert matched == pytest.approx(streaming, rel=0.02)
    assert by_policy["streaming:keep=0.5"]["updates_mean"] >= 3
    assert {r.category for r in report.records} == {"passkey", "multihop"}
    assert all(0 <= r.score <= 100 and {"exact", "logprob", "right_answer"} <= r.details.keys() for r in report.records)
    assert {r.details["trained"] for r in report.records if r.category == "passkey"} == {True}
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("trained", list(text.TRAINED)),
        ("held-out,passkey", [*text.HELD_OUT, "passkey"]),
        ("passkey,trained", list(dict.fromkeys(["passkey", *text.TRAINED]))),
        ("longbench:trec,longbench:qasper", ["longbench:trec", "longbench:qasper"]),
        ("longbench:trec,qasper,trec", ["longbench:trec", "longbench:qasper"]),
        ("passkey,infinitebench:math_find,passkey", ["passkey", "infinitebench:math_find", "infinitebench:passkey"]),
        ("longbench:trec,passkey", ["passkey", "longbench:trec"]),
        ("ruler", list(RULER.families)),
        ("two_facts,trained", ["two_facts", *text.TRAINED]),
        ("infinitebench:all", [id for id in TASKS if id.startswith("infinitebench:")]),
        ("longbench:all", [id for id in TASKS if id.startswith("longbench:")]),
    ],
)
def test_groups_and_names(tasks, expected):
    families, found = text.asked(text.Options(tasks=tasks))
    assert [*families, *(task.id for task in found)] == expected


def test_all_of_a_benchmark_is_what_the_folder_holds(root, tmp_path):
    options = text.Options(tasks="longbench:all,infinitebench:all", data_root=root)
    assert [task.id for task in text.asked(options)[1]] == [
        "longbench:trec",
        "longbench:passage_count",
        "infinitebench:passkey",
    ]
    with pytest.raises(NammTransferError, match=r"longbench:all: --data-root '.*' holds no TASK.jsonl"):
        text.asked(text.Options(tasks="longbench:all", data_root=tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "poetry"], "'poetry': expected some of trained, .*longbench:narrativeqa"),
        (["--tasks", "trec"], "'trec'"),
        (["--tasks", "longbench:poetry"], "'longbench:poetry'"),
        (["--tasks", "longbench:trec,math_find"], "'math_find'"),
        (["--tasks", ","], "','"),
        (["--samples", "0"], "--samples 0"),
        (["--tokens", "0"], "--tokens 0"),
        (["--limit", "-1"], "--limit -1"),
        (["--max-tokens", "0"], "--max-tokens 0"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(NammTransferError, match=message):
        text.main(flags)


def test_ruler_has_a_row_of_its_own_scored_by_recall(model, tmp_path):
    policies = "full,random:keep=0.5,random:keep=0.25"
    flags = ["--tasks", "passkey,niah_multivalue,two_facts", "--policy", policies, "--samples", "1"]
    report = text.main([*FLAGS, *flags, "--model", str(model), "--out", str(tmp_path)])
    assert {(row.task, row.policy): row.n for row in report.summary if row.policy == "full"} == {
        ("text", "full"): 1,
        ("text/ruler", "full"): 2,
    }
    ruler = [record for record in report.records if record.task == "text/ruler"]
    assert {record.category for record in ruler} == {"niah_multivalue", "two_facts"}
    for record in ruler:
        expected = record.details["right_answer"].strip().split(", ")
        assert record.score == 100 * recall(record.answer, expected)
        assert 0 <= record.details["likelihood"] <= 100
    assert {item.policy for item in report.likelihoods if item.task == "text/ruler"} == set(policies.split(","))
    assert not [item for item in report.likelihoods if item.task == "text"]
    blind = {(r.task, r.policy): "blind" in r.details for r in report.records}
    assert {key for key, asked in blind.items() if asked} == {("text", "full"), ("text/ruler", "full")}


def test_a_blind_question_is_asked_without_its_text(model, tmp_path):
    """The prompt's text must not matter for it: the same questions about other texts score the same."""
    adapter = text.CausalLMAdapter.load(str(model))
    evaluate = about_families(text.Options(), "logprob", adapter)
    prompt = text.make_prompt("passkey", "test", 0, 0, tokens=300, count=adapter.count)
    others = [prompt, replace(prompt, text=f"Another text.{prompt.question}")]
    found = [evaluate([text.Sample("a", "passkey", p)], policies.make("full"))[0] for p in others]
    assert found[0].details["blind"] == found[1].details["blind"]
    assert found[0].score != found[1].score


def test_benchmarks(model, root, tmp_path):
    flags = ["--tasks", "passkey,longbench:all,infinitebench:passkey", "--data-root", str(root), "--max-tokens", "600"]
    report = text.main([*FLAGS, *BENCHMARK, *flags, "--model", str(model), "--out", str(tmp_path)])
    assert {(row.task, row.policy): row.n for row in report.summary if row.policy == "full"} == {
        ("text", "full"): 2,
        ("text/longbench", "full"): 4,
        ("text/infinitebench", "full"): 1,
    }
    assert not [record.error for record in report.records if record.error]
    rows = {(record.id, record.policy): record for record in report.records}
    kept = rows["longbench:trec/0", "streaming:keep=0.5"]
    assert kept.category == "trec"
    assert kept.kept_share < 0.6
    assert kept.updates >= 3
    assert rows["longbench:trec/0", "full"].kept_share == 1
    assert kept.details["right_answer"] == "Human"
    assert kept.details["question"].endswith("0?")
    assert not kept.details["cut"]
    (run,) = (run for run in report.runs if run.task == "text/longbench")
    assert run.description["metrics"] == {"trec": "classification score", "passage_count": "count score"}
    assert run.description["answer_tokens"] == {"trec": 64, "passage_count": 32}
    assert len(run.description["data_sha256"]) == 2
    headline = run.description["headline"]
    assert (headline["name"], headline["rule"]) == ("LongBench average", "mean over categories")
    assert len(headline["categories"]) == 21
    assert run.description["world"].startswith("LongBench (arXiv 2308.14508)")


def test_an_answer_gets_the_metric_of_its_task(model, root, tmp_path, monkeypatch):
    said = {"trec": "\nHuman or Location\nHuman", "passage_count": "1 or 7"}

    def generate(self, encoded, cache, room, logits):
        assert cache.get_seq_length() == len(encoded.tokens)
        return said["trec" if room == 64 else "passage_count"]

    monkeypatch.setattr(text.CausalLMAdapter, "generate", generate)
    flags = ["--tasks", "longbench:all", "--data-root", str(root), "--model", str(model), "--out", str(tmp_path)]
    report = text.main([*BENCHMARK, *flags])
    scores = {record.id: record.score for record in report.records if record.policy == "full"}
    assert scores == {
        "longbench:trec/0": 50,
        "longbench:passage_count/0": 0,
        "longbench:trec/1": 50,
        "longbench:passage_count/1": 50,
        "longbench:trec/2": 50,
    }
    assert list(scores)[:2] == ["longbench:trec/0", "longbench:passage_count/0"], "tasks take turns"
    assert report.records[0].answer == said["trec"]


def test_long_prompts_are_cut_and_say_so(model, root, tmp_path):
    flags = ["--tasks", "longbench:trec", "--data-root", str(root), "--limit", "2", "--max-tokens", "264"]
    report = text.main([*BENCHMARK, *flags, "--model", str(model), "--out", str(tmp_path)])
    assert len(report.records) == 2 * 2
    assert all(record.details["cut"] for record in report.records)
    assert {run.description["context"][:10] for run in report.runs} == {"264 tokens"}
    with open(next(tmp_path.glob("*.jsonl"))) as ledger:
        assert json.loads(ledger.readlines()[1])["seen"] == 200, "a byte is a token: 264 less 64 for the answer"


def test_no_room_for_a_prompt(model, root, tmp_path):
    flags = ["--tasks", "longbench:trec", "--data-root", str(root), "--max-tokens", "65", "--model", str(model)]
    with pytest.raises(NammTransferError, match="--max-tokens 65 leaves no room for the prompts of longbench:trec"):
        text.main([*flags, "--out", str(tmp_path)])


def test_only_as_much_is_read_as_is_asked(root):
    trec = TASKS["longbench:trec"]
    for options, count in [({}, 3), ({"samples": 2}, 2), ({"limit": 1}, 1), ({"samples": 1, "limit": 2}, 1)]:
        found = text.benchmark_samples(text.Options(data_root=root, **options), {trec: find(trec, root)})
        assert len(found) == count
    assert found[0].prompt.endswith("0?")


def test_questions_about_one_text_are_a_cluster(root):
    tasks = (TASKS["longbench:trec"], TASKS["longbench:passage_count"])
    found = text.benchmark_samples(text.Options(), {task: find(task, root) for task in tasks})
    clusters = {sample.id.partition(":")[2]: sample.cluster for sample in found}
    assert clusters["trec/0"]
    assert clusters["trec/0"] == clusters["trec/1"] == clusters["passage_count/0"]
    assert clusters["passage_count/1"] != clusters["passage_count/0"]


def test_a_task_asks_all_its_questions_about_a_text_before_the_next(root):
    tasks = (TASKS["longbench:trec"], TASKS["longbench:passage_count"])
    found = text.together(text.benchmark_samples(text.Options(), {task: find(task, root) for task in tasks}))
    assert [sample.id.partition(":")[2] for sample in found] == [
        "trec/0", "trec/1", "trec/2", "passage_count/0", "passage_count/1"
    ]  # fmt: skip


def test_an_answer_about_a_dialogue_ends_with_its_line(model, tmp_path, monkeypatch):
    pytest.importorskip("rouge", reason="the extra longbench is not installed")
    line = {"context": "Ann: a\nBob: b", "input": "Summary:", "answers": ["one"]}
    (tmp_path / "samsum.jsonl").write_text(json.dumps(line))
    monkeypatch.setattr(text.CausalLMAdapter, "generate", lambda *_: "one\ntwo")
    flags = ["--tasks", "longbench:samsum", "--data-root", str(tmp_path), "--model", str(model)]
    report = text.main([*BENCHMARK, *flags, "--out", str(tmp_path / "out")])
    assert {(record.answer, round(record.score)) for record in report.records} == {("one", 100)}


def test_parts_of_a_report_are_verified_and_resumed_each_on_its_own(model, root, tmp_path, monkeypatch):
    flags = [*FLAGS, *BENCHMARK, "--data-root", str(root), "--max-tokens", "300", "--model", str(model)]
    flags += ["--out", str(tmp_path), "--samples", "1"]
    report = text.main([*flags, "--tasks", "lookup,longbench:all,infinitebench:all"])
    found = {verified.task: (verified.records, verified.differences) for verified in verify(tmp_path, samples=1)}
    assert found == {"text": (2, []), "text/longbench": (2, []), "text/infinitebench": (2, [])}
    monkeypatch.delattr(text.CausalLMAdapter, "read")  # nothing is left to do
    assert text.main([*flags, "--tasks", "longbench:all", "--resume"]).records == report.records


def answers_of(report):
    """What a report says of its samples, by policy and question."""
    return {
        (r.policy, r.details["question"][-2:], r.category): (r.score, r.answer, r.kept_share, r.peak_share, r.updates)
        for r in report.records
    }


def test_one_cache_of_a_text_serves_its_questions_in_any_order(model, root, tmp_path, monkeypatch):
    """Three questions about one text, asked forwards, backwards and with another text's between them."""
    reads, read_context = [], text.CausalLMAdapter.read_context
    monkeypatch.setattr(
        text.CausalLMAdapter, "read_context", lambda self, *given: (reads.append(given), read_context(self, *given))[1]
    )
    lines = (root / "trec.jsonl").read_text().splitlines()
    other = json.dumps(json.loads(lines[1]) | {"context": BOOK.upper(), "input": "X?"})
    flags = [*BENCHMARK[:-2], "--policy", "full,h2o:keep=0.5", "--tasks", "longbench:trec", "--model", str(model)]
    found = []
    for name, order in (("forwards", lines), ("backwards", [*lines[::-1]]), ("mixed", [lines[2], other, *lines[:2]])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trec.jsonl").write_text("\n".join(order))
        reads.clear()
        more = ["--data-root", str(tmp_path / name), "--out", str(tmp_path / f"{name}-out"), "--query-agnostic"]
        report = text.main([*flags, *more])
        assert not any(record.error for record in report.records)
        assert len(reads) == 2 * (2 if name == "mixed" else 1), "each text is read once under each policy"
        found.append({key: value for key, value in answers_of(report).items() if key[1] != "X?"})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2 * 3
    usual = answers_of(text.main([*flags, "--data-root", str(root), "--out", str(tmp_path / "usual")]))
    assert {key: value for key, value in usual.items() if key[0] == "full"} == {
        key: value for key, value in found[0].items() if key[0] == "full"
    }, "a byte is a token, so the full cache is the same"
    assert usual != found[0], "the question has a say in evictions if it is read with the text"


@pytest.mark.parametrize("family", text.FAMILIES)
def test_made_up_prompts_end_with_their_question(family):
    prompt = text.make_prompt(family, "test", 0, 0, tokens=200, count=lambda words: len(words.split()))
    assert prompt.text.endswith(prompt.question)
    assert prompt.question.startswith("\n\n")
    assert 2 < len(prompt.question.split()) < 40
    assert prompt.answer.strip() not in prompt.question
    if family != "classification":
        assert prompt.answer.strip() in prompt.text.removesuffix(prompt.question)


def test_made_up_prompts_are_read_before_their_question(model, tmp_path):
    flags = [*FLAGS, "--tasks", "passkey", "--policy", "full,h2o:keep=0.5", "--model", str(model)]
    usual, apart = (
        {
            record.policy: record
            for record in text.main([*flags, *more, "--out", str(tmp_path / str(len(more)))]).records
        }
        for more in ([], ["--query-agnostic"])
    )
    assert apart["full"].score == pytest.approx(usual["full"].score, rel=1e-3)
    assert apart["h2o:keep=0.5"].updates <= usual["h2o:keep=0.5"].updates
    assert apart["h2o:keep=0.5"].kept_share > usual["h2o:keep=0.5"].kept_share, "the question is kept in full"


def test_a_long_text_is_cut_alike_for_all_its_questions(model, root):
    tokenizer, task = AutoTokenizer.from_pretrained(model), TASKS["longbench:trec"]
    questions = load(task, find(task, root))
    cut = {q.within(300, tokenizer, apart=True).removesuffix(q.asked) for q in questions}
    (only,) = cut
    assert len(only) == 300 - 128
    assert questions[0].within(300, tokenizer, apart=False) != only + questions[0].asked
    with pytest.raises(NammTransferError, match="leaves no room for its text in 129"):
        questions[0].within(129, tokenizer, apart=True)


def test_caches_of_texts_are_kept_for_other_runs(model, root, tmp_path, monkeypatch):
    flags = [*BENCHMARK[:-2], "--policy", "full,h2o:keep=0.5", "--tasks", "longbench:all", "--data-root", str(root)]
    flags += ["--query-agnostic", "--context-cache", str(tmp_path / "caches")]
    first = text.main([*flags, "--model", str(model), "--out", str(tmp_path / "first")])
    files = sorted((tmp_path / "caches").iterdir())
    assert len(files) == 2 * 3, "a text's prompt differs from task to task"
    stamps = [file.stat().st_mtime_ns for file in files]
    with monkeypatch.context() as patch:
        patch.delattr(text.CausalLMAdapter, "read_context")
        again = text.main([*flags, "--model", str(model), "--out", str(tmp_path / "again")])
    assert answers_of(again) == answers_of(first)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert again.runs[0].options == first.runs[0].options

    torch.manual_seed(1)
    other = save_tiny_llama(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    text.main([*flags, "--model", str(other), "--out", str(tmp_path / "other-out")])
    assert len(list((tmp_path / "caches").iterdir())) == 2 * len(files), "another model has caches of its own"

    files[0].write_bytes(files[1].read_bytes())
    files[2].write_bytes(files[2].read_bytes()[:-100])
    errors = [r.error for r in text.main([*flags, "--model", str(model), "--out", str(tmp_path / "wrong")]).records]
    assert any("filled under another" in str(error) for error in errors)
    assert any("no cache that MemoryCache.save wrote" in str(error) for error in errors)
    assert None in errors


def test_flags_of_contexts_are_refused_where_they_cannot_hold(root):
    with pytest.raises(NammTransferError, match="--context-cache 'x' needs --query-agnostic"):
        text.main(["--context-cache", "x"])
    with pytest.raises(NammTransferError, match="infinitebench:math_find, infinitebench:code_run ask before the text"):
        text.main(["--query-agnostic", "--tasks", "infinitebench:math_find,passkey,code_run"])


def test_a_library_that_is_missing_is_named_before_the_model_is_loaded(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(NammTransferError, match=r"'rouge'.*namm-transfer\[longbench\]"):
        text.main(["--tasks", "longbench:gov_report", "--model", "nowhere"])


def test_missing_model(tmp_path):
    with pytest.raises(NammTransferError, match="no causal language model"):
        text.main([*FLAGS, "--model", str(tmp_path / "nothing"), "--out", str(tmp_path)])
