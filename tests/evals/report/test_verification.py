"""A report comes out again, or it is said where not."""

import json

import pytest
from tiny_evaluation import Evaluator, main

from namm_transfer import NammTransferError
from namm_transfer.evals.harness import cli
from namm_transfer.evals.report import ledger, verification
from namm_transfer.evals.report.records import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    main(["--out", str(path), "--policy", "full,h2o:keep=0.5,random:match=h2o", "--limit", "4"])
    return path


def changed(folder, out, **values):
    """A copy of the folder in which every record has these values."""
    out.mkdir()
    path = ledger.find(folder)[0]
    head, *lines = path.read_text().splitlines()
    altered = [json.dumps({**json.loads(line), **values}) for line in lines]
    (out / path.name).write_text("\n".join([head, *altered]) + "\n")
    return out


def test_the_chosen_samples_alone_come_out_again_exactly(folder):
    evaluator = Evaluator()
    (result,) = verification.verify(folder, samples=1, seed=2, evaluate=lambda flags: main(flags, evaluator))
    assert (result.differences, result.largest, result.records) == ([], 0.0, 3)
    assert evaluator.calls == 3, "one batch under each policy"
    assert verification.in_words([result], 0.0).endswith("verified")


@pytest.mark.parametrize(
    ("values", "words"),
    [({"score": -1.0}, "score -1.0 recorded"), ({"kept": [[1, 1], [1, 1]]}, "kept [[1, 1], [1, 1]] recorded"),
     ({"details": {"bytes": 3}}, "bytes 3 recorded"), ({"arrays": {}}, "arrays {} recorded"),
     ({"answer": "else"}, 'answer "else" recorded')],
)  # fmt: skip
def test_what_does_not_come_out_again_is_named(values, words, folder, tmp_path):
    (result,) = verification.verify(changed(folder, tmp_path / "copy", **values), samples=4, evaluate=main)
    assert any(words in line for line in result.differences)
    assert "NOT verified" in verification.in_words([result], 0.0)


def test_a_tolerance_is_for_scores_and_is_stated(make_record):
    old, near = make_record(0, "full", 1.0), make_record(0, "full", 1.0 + 1e-7)
    assert verification.compare(old, near, 1e-6) == []
    assert verification.compare(old, near, 0.0) == ["sample 0, full: score 1.0 recorded, 1.0000001 now"]
    assert verification.compare(old, make_record(0, "full", None, error="no"), 1.0)[0].endswith("None now")
    result = verification.Verified("t", ["a"], 1, [], 1e-7, [])
    assert "scores within 1e-06 (largest difference 1e-07)" in verification.in_words([result], 1e-6)


def test_bytes_may_differ_by_the_room_that_a_cache_may_take(make_record):
    old = make_record(0, "namm", 1.0, details={"bytes": 1000})
    assert verification.compare(old, make_record(0, "namm", 1.0, details={"bytes": 1030}), 0.0) == []
    for other in ({"bytes": 1040}, {"bytes": 960}, {}):
        assert verification.compare(old, make_record(0, "namm", 1.0, details=other), 0.0)


@pytest.mark.parametrize("key", ["model_sha256", "data_sha256"])
def test_another_model_or_data_is_refused_by_name(key, folder, tmp_path):
    out = changed(folder, tmp_path / "copy")
    path = ledger.find(out)[0]
    head, *lines = path.read_text().splitlines()
    run = json.loads(head)
    run["description"][key] = "0" * 64
    path.write_text("\n".join([json.dumps(run), *lines]) + "\n")
    with pytest.raises(NammTransferError, match=f"description.{key}: '0000"):
        verification.verify(out, evaluate=main)


def test_another_namm_is_refused_by_name(folder, tmp_path):
    out = changed(folder, tmp_path / "copy")
    path = ledger.find(out)[0]
    path.write_text(path.read_text().replace('"sha256":null', '"sha256":"abc"', 1))
    with pytest.raises(NammTransferError, match=r"policies: .*'abc'"):
        verification.verify(out, evaluate=main)


def test_options_come_back_as_a_config_file(folder):
    assert verification.as_toml(load(folder)[0]).splitlines()[-1] == (
        'policy = ["full", "h2o:keep=0.5", "random:match=h2o"]'
    )


def test_the_command_has_an_exit_status(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verification, "_evaluation", lambda task: main)
    assert cli.main(["report", "verify", str(folder), "--samples", "1"]) == 0
    assert cli.main(["report", "verify", str(changed(folder, tmp_path / "copy", score=9.0)), "--samples", "1"]) == 1
    assert cli.main(["report", "verify", str(folder), "--samples", "0"]) == 2
    assert "expected one sample at least" in capsys.readouterr().err


def test_a_task_nobody_knows_is_refused(folder):
    with pytest.raises(NammTransferError, match="no evaluation makes task 'tiny'"):
        verification.verify(folder)
