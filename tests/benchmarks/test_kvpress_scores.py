import json
import sys
from argparse import Namespace

import pytest
from places import ROOT
from tiny_text import save_tiny_llama

sys.path.append(str(ROOT / "benchmarks"))
import kvpress_scores

from namm_transfer.adapters.causal_lm import CausalLMAdapter
from namm_transfer.evals.tasks.text.families import make_prompt


def test_the_exported_prompts_are_those_of_the_evaluation(tmp_path):
    model = str(save_tiny_llama(tmp_path / "model"))
    out = tmp_path / "out"
    options = Namespace(model=model, tasks="passkey,niah_multivalue", samples=2, tokens=400, out=out)
    kvpress_scores.export(options)
    entries = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == [
        f"{family}/test/400/0/{number}" for number in range(2) for family in ("passkey", "niah_multivalue")
    ]
    adapter = CausalLMAdapter.load(model)
    prompt = make_prompt("passkey", "test", 0, 0, tokens=400, count=adapter.count)
    encoded = adapter.encode(prompt)
    assert entries[0]["context"] + entries[0]["question"] == encoded.tokens.tolist()  # a byte is a token here
    assert entries[0]["answer"] == encoded.answer.tolist()
    assert adapter.tokenizer.decode(entries[0]["question"]).startswith("\n\nWhat is the pass key?")
    assert len(entries[1]["expected"]) == 4


def test_the_ratio_counts_the_question_as_held():
    prompt = {"context": [0] * 900, "question": [0] * 100}
    kept = 1 - kvpress_scores.ratio(prompt, 0.46)
    assert kept * 900 + 100 == pytest.approx(460)
    assert kvpress_scores.ratio(prompt, 0.05) == 1


def test_the_table_has_means_and_says_what_was_not_run(tmp_path, capsys):
    lines = [
        {"press": "SnapKV", "id": "a", "likelihood": 20.0, "kept": 0.5},
        {"press": "SnapKV", "id": "b", "likelihood": 40.0, "kept": 0.4},
        {"press": "QFilter", "id": "a", "error": "OSError: no such model"},
    ]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = {"task": "text", "policy": "namm", "n": 2, "score": 80.0, "kept_share": 0.45}
    (tmp_path / "report.json").write_text(json.dumps({"summary": [row, row | {"task": "video"}]}))
    kvpress_scores.table(Namespace(out=tmp_path, report=tmp_path))
    shown = capsys.readouterr().out
    assert shown.index("| namm | 80.0 | 45.0 % | 2 |") < shown.index("| SnapKV | 30.0 | 45.0 % | 2 |")
    assert "Not run: QFilter (OSError: no such model)" in shown
    assert shown.count("namm") == 1
