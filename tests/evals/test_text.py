"""The text evaluation from command line to report, on a random Llama."""

import json

import pytest
import torch
from tiny_text import save_tiny_llama

from namm_transfer import NammTransferError
from namm_transfer.evals import text

FLAGS = ["--tokens", "300", "--samples", "2", "--update-interval", "64", "--dtype", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


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
    ],
)
def test_groups_of_families(tasks, expected):
    assert text.asked(text.Options(tasks=tasks)) == expected


@pytest.mark.parametrize("flags", [["--tasks", "poetry"], ["--tasks", ","], ["--samples", "0"]])
def test_wrong_flags(flags):
    with pytest.raises(NammTransferError):
        text.main(flags)


def test_missing_model(tmp_path):
    with pytest.raises(NammTransferError, match="no causal language model"):
        text.main([*FLAGS, "--model", str(tmp_path / "nothing"), "--out", str(tmp_path)])
