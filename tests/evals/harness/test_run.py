"""The loop over policies and samples: killed, resumed, split over processes, it gives the same report."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_evaluation
from hypothesis import given
from hypothesis import strategies as st
from tiny_evaluation import Evaluator, main, samples

from namm_transfer import NammTransferError, policies
from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, cli, parse, run
from namm_transfer.evals.harness.lineup import lineup
from namm_transfer.evals.harness.options import split_policies
from namm_transfer.evals.report import ledger
from namm_transfer.evals.report.records import ArrayStore, mean_history
from namm_transfer.evals.report.schema import Record

SCRIPT = Path(tiny_evaluation.__file__)
ASIDE = ("seconds", "provenance")


def essence(folder: Path) -> dict:
    """A report without time stamps, timings and how it was started."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in ASIDE}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "report.json").read_text()))


def ledger_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("records-*.jsonl"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("uninterrupted")
    main(["--out", str(folder)])
    return essence(folder)


# --- one run


def test_a_run_writes_one_record_a_sample_and_says_how_often_the_policy_acted(uninterrupted):
    assert [(row["policy"], row["n"]) for row in uninterrupted["summary"]] == [("full", 6), ("streaming:keep=0.5", 6)]
    assert [record["id"] for record in uninterrupted["records"]] == 2 * [sample.id for sample in samples(6)]
    evicting = [record for record in uninterrupted["records"] if record["policy"] != "full"]
    assert [record["updates"] for record in evicting] == [(60 + 8 * i - 1) // 16 for i in range(6)]


def test_same_seed_twice_is_the_same_report(uninterrupted, tmp_path):
    main(["--out", str(tmp_path)])
    assert essence(tmp_path) == uninterrupted


def test_limit_takes_the_first_samples(tmp_path):
    report = main(["--out", str(tmp_path), "--limit", "3"])
    assert [record.id for record in report.records if record.policy == "full"] == ["prompt 0", "prompt 1", "prompt 2"]


def test_arrays_are_found_by_the_hash_in_the_record(tmp_path):
    report = main(["--out", str(tmp_path), "--limit", "2"])
    assert not (tmp_path / "arrays").exists()
    full, evicted = (ArrayStore(tmp_path).get(report.records[i].arrays["positions"]) for i in (0, 2))
    assert np.array_equal(full, np.tile(np.arange(59), (2, 1)))
    assert evicted.shape[1] < 59


def test_an_earlier_run_in_the_same_folder_is_kept_aside(tmp_path, capsys):
    main(["--out", str(tmp_path), "--limit", "2"])
    main(["--out", str(tmp_path), "--limit", "1"])
    assert "kept as records-tiny-0.jsonl.old" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["records"]) == 2
    main(["--out", str(tmp_path), "--limit", "1"])
    assert "kept as records-tiny-0.jsonl.old2" in capsys.readouterr().out
    _, *first = (tmp_path / "records-tiny-0.jsonl.old").read_text().splitlines()
    assert len(first) == 4, "the first is still there"
    arrays = [Record.model_validate_json(line).arrays["positions"] for line in first]
    assert {len(ArrayStore(tmp_path).get(name)) for name in arrays} == {2}, "and so are its arrays"


@pytest.mark.parametrize("flags", [["--threads", "0"], ["--seed", "-1"], ["--limit", "0"], ["--limit", "-1"]])
def test_numbers_that_mean_nothing_are_refused(flags, tmp_path):
    with pytest.raises(NammTransferError, match=f"{flags[0]} {flags[1]}"):
        main(["--out", str(tmp_path), *flags])


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NammTransferError, match="cannot be a folder"):
        main(["--out", str(tmp_path / "file")])


# --- failures


def test_one_failing_sample_fails_alone_and_the_run_goes_on(tmp_path):
    report = main(["--out", str(tmp_path)], Evaluator(raise_at="prompt 2"))
    failed = [record for record in report.records if record.error]
    assert {record.id for record in failed} == {"prompt 2"}
    assert failed[0].error.startswith("OSError: cannot read 'prompt 2' [tiny_evaluation.py:")
    assert failed[0].score is None
    assert [row.failed for row in report.summary] == [1, 1]
    assert "1 of 6 samples failed" in " ".join(report.warnings)


def test_an_unparsed_answer_counts_as_wrong_and_is_counted(tmp_path):
    report = main(["--out", str(tmp_path)], Evaluator(unparsed="prompt 1"))
    row = report.summary[0]
    scores = [record.score for record in report.records if record.policy == "full"]
    assert (row.unparsed, row.n, scores[1]) == (1, 6, 0.0)
    assert row.score == pytest.approx(np.mean(scores))


def test_a_score_that_is_no_number_is_a_failure(tmp_path):
    def evaluate(chunk, policy):
        return [Outcome(score=float("nan"), memory=None) for _ in chunk]

    report = run(
        EvalOptions(policy=("full",), out=tmp_path),
        task="t",
        samples=[Sample("a", "c")],
        evaluate=evaluate,
        description={},
    )
    assert report.records[0].error == "score nan: expected a finite number"


def test_samples_must_be_there_and_have_names_of_their_own(tmp_path):
    for wrong, message in (([], "no samples"), ([Sample("a", "c"), Sample("a", "c")], "'a' is there twice")):
        with pytest.raises(NammTransferError, match=message):
            run(EvalOptions(out=tmp_path), task="t", samples=wrong, evaluate=Evaluator(), description={})


def test_ctrl_c_keeps_the_finished_samples(tmp_path, capsys, uninterrupted):
    class Impatient(Evaluator):
        def __call__(self, chunk, policy):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(chunk, policy)

    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path)], Impatient())
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().out
    assert ledger_lines(tmp_path) == 1 + 4
    main(["--out", str(tmp_path), "--resume"])
    assert essence(tmp_path) == uninterrupted


# --- killed and resumed


def entries(values: list[str], update_interval: int = 16) -> list:
    return lineup([policies.parse(text) for text in split_policies(values)], update_interval)


def _die(folder: str, at: int) -> None:
    main(["--out", folder], Evaluator(die_at=at))


@pytest.fixture(scope="module")
def processes():
    """Start child processes from a server that has imported torch and computed nothing: a fork of the test's own
    process would inherit the locks of torch's threads and could wait for them for ever."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["namm_transfer.evals.harness", "transformers.models.llama.modeling_llama"])
    return context


@pytest.mark.parametrize("at", range(6))
def test_killed_at_any_batch_and_resumed_is_the_same_report(at, tmp_path, uninterrupted, processes):
    child = processes.Process(target=_die, args=(str(tmp_path), at))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "report.json").exists()
    resumed = Evaluator()
    main(["--out", str(tmp_path), "--resume"], resumed)
    assert resumed.calls == 6 - at
    assert essence(tmp_path) == uninterrupted


def test_killed_from_outside_with_a_line_half_written(tmp_path, uninterrupted, capsys):
    child = subprocess.Popen(
        [sys.executable, SCRIPT, "--out", tmp_path], env={**os.environ, "TINY_PAUSE": "0.3"}, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while ledger_lines(tmp_path) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.wait()
    ledger = tmp_path / "records-tiny-0.jsonl"
    os.truncate(ledger, ledger.stat().st_size - 7)
    main(["--out", str(tmp_path), "--resume"])
    assert "is damaged from line" in capsys.readouterr().out
    assert essence(tmp_path) == uninterrupted


def test_resuming_a_finished_run_evaluates_nothing(tmp_path, uninterrupted):
    main(["--out", str(tmp_path)])
    again = Evaluator()
    main(["--out", str(tmp_path), "--resume"], again)
    assert again.calls == 0
    assert essence(tmp_path) == uninterrupted


def test_a_half_done_batch_is_evaluated_whole(tmp_path, uninterrupted):
    main(["--out", str(tmp_path)])
    ledger = tmp_path / "records-tiny-0.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:4]))
    seen = []

    class Watched(Evaluator):
        def __call__(self, chunk, policy):
            seen.append([sample.id for sample in chunk])
            return super().__call__(chunk, policy)

    main(["--out", str(tmp_path), "--resume"], Watched())
    assert seen[0] == ["prompt 2", "prompt 3"]
    assert ledger_lines(tmp_path) == 1 + 12
    assert essence(tmp_path) == uninterrupted


def test_what_two_processes_left_one_can_finish(tmp_path, uninterrupted):
    main(["--out", str(tmp_path)])
    ledger = tmp_path / "records-tiny-0.jsonl"
    head, *lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([head, *lines[:2]]))
    (tmp_path / "records-tiny-1.jsonl").write_bytes(b"".join([head, *lines[2:5]])[:-9])
    rest = Evaluator()
    main(["--out", str(tmp_path), "--resume"], rest)
    assert rest.calls == 4
    assert essence(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--seed", "1"], "options.seed: 0 there, 1 here"),
        (["--update-interval", "32"], "options.update_interval: 16 there, 32 here"),
        (["--policy", "full"], "policies: "),
        (["--limit", "2"], "samples: 6 there, 2 here"),
    ],
)
def test_resume_refuses_another_configuration_and_names_it(flags, difference, tmp_path):
    main(["--out", str(tmp_path)])
    before = ledger_lines(tmp_path)
    with pytest.raises(NammTransferError, match=difference):
        main(["--out", str(tmp_path), "--resume", *flags])
    assert ledger_lines(tmp_path) == before


def test_resume_refuses_a_namm_whose_configuration_file_has_changed(tmp_path, random_namm):
    """The weights are the same and so is the command; a record without options, as older ones are, is let through."""
    saved, out = tmp_path / "namm", tmp_path / "run"
    flags = ["--policy", f"full,namm:path={saved}", "--out", str(out)]
    random_namm(selection="head").save_pretrained(saved)
    main(flags)
    random_namm(selection="head", threshold=0.5).save_pretrained(saved)
    with pytest.raises(NammTransferError, match=r"policies: .*'threshold': 0.0.*'threshold': 0.5"):
        main([*flags, "--resume"])
    [path] = out.glob("records-*.jsonl")
    first, _, rest = path.read_text().partition("\n")
    header = json.loads(first)
    for policy in header["policies"]:
        del policy["options"]
    path.write_text(json.dumps(header) + "\n" + rest)
    main([*flags, "--resume"])


# --- processes


def test_two_processes_of_accelerate_launch_are_one_evaluation(tmp_path, uninterrupted):
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_cpu_threads_per_process",
        "1",
    ]
    port = ["--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, *port, SCRIPT, "--out", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    provenance = json.loads((tmp_path / "report.json").read_text())["runs"][0]["provenance"]
    assert provenance["processes"] == 2
    first, second = sorted(tmp_path.glob("records-*.jsonl"))
    assert ledger_lines(tmp_path) == 2 + 12
    assert min(path.read_bytes().count(b"\n") for path in (first, second)) > 1 + 2
    assert done.stdout.count("report: ") == 1
    assert essence(tmp_path) == uninterrupted


# --- policies


def test_match_gives_the_cache_size_that_the_other_policy_used(tmp_path, capsys):
    report = main(["--out", str(tmp_path), "--policy", "h2o:keep=0.3", "--policy", "random:match=h2o,l2:keep=0.9"])
    shares = {row.policy: row.kept_share for row in report.summary}
    assert shares["random:match=h2o"] == pytest.approx(shares["h2o:keep=0.3"], rel=0.02)
    assert shares["l2:keep=0.9"] > 2 * shares["h2o:keep=0.3"]
    assert report.runs[0].policies[1].match == "h2o:keep=0.3"
    assert "random:match=h2o" in capsys.readouterr().out


def test_match_lends_sizes_by_head_by_layer_or_their_mean(tmp_path, random_namm):
    """Under a policy that divides its size unevenly, a random choice keeps the same numbers in the same places."""
    random_namm(update_interval=16).save_pretrained(tmp_path / "namm")
    uneven, names = f"namm:path={tmp_path}/namm,selection=head", ("head", "layer", "uniform")
    evaluator = Evaluator()
    for layer in evaluator.model.model.layers:  # attention with peaks
        layer.self_attn.q_proj.weight.data *= 200
    matched = [f"random:match={uneven.partition(':')[0]},allocation={name}" for name in names]
    main(["--out", str(tmp_path), "--limit", "1", "--policy", uneven, *matched], evaluator)
    (ledger_file,) = tmp_path.glob("records-*.jsonl")
    records = {r.policy: r for r in map(Record.model_validate_json, ledger_file.read_text().splitlines()[1:])}
    lent, (head, layer, uniform) = records[uneven], (records[name] for name in matched)
    assert len({tuple(map(len, layer)) for layer in lent.history_by_head}) == 1
    assert len(set(lent.kept[0])) > 1, "the case must divide unevenly among heads"
    assert lent.history[0] != lent.history[1], "and among layers"
    assert head.kept == lent.kept
    assert (head.history, layer.history) == (lent.history, lent.history)
    assert layer.kept != lent.kept
    means = [sum(means) / 2 for means in zip(*lent.history, strict=True)]
    assert uniform.history == [pytest.approx(means, abs=0.25)] * 2
    assert uniform.history[0] == uniform.history[1]
    assert head.history_by_head == []


def test_a_policy_that_is_to_be_matched_is_run_even_if_not_asked_for():
    assert [e.spec.text for e in entries(["full,random:match=l2"])] == ["full", "l2", "random:match=l2"]


@pytest.mark.parametrize("values", [["h2o:keep=0.3,h2o:keep=0.6,random:match=h2o"], ["l2:match=h2o,h2o:match=l2"]])
def test_a_match_that_fits_several_or_none_is_refused(values):
    with pytest.raises(NammTransferError, match="exactly one policy"):
        entries(values)


def test_mean_history_averages_each_update_over_the_samples_that_reached_it():
    def record(index, history):
        return Record(index=index, id=str(index), category="c", policy="p", score=0.0, history=history)

    assert mean_history([record(1, [[4.0], [2.0]]), record(0, [[2.0, 8.0], [2.0, 6.0]])]) == [[3.0, 8.0], [2.0, 6.0]]
    uneven = [record(i, [[value]]) for i, value in enumerate([1e16, 1.0, -1e16, 1.0])]
    assert mean_history(uneven) == mean_history(uneven[::-1]) == [[0.5]]
    assert mean_history([record(0, [])]) == []


def test_the_splitting_rule_of_the_command_line():
    assert split_policies(["full,streaming:sinks=4,window=252"]) == ["full", "streaming:sinks=4,window=252"]
    assert split_policies(["full", "namm:path=a,keep=0.5,h2o:match=namm", "full"]) == [
        "full",
        "namm:path=a,keep=0.5",
        "h2o:match=namm",
    ]
    assert split_policies(["namm,keep=0.5"]) == ["namm:keep=0.5"]
    assert split_policies(["namm:path=a:b=c"]) == ["namm:path=a:b=c"]
    with pytest.raises(NammTransferError, match=r"'keep=0\.5' continues no policy"):
        split_policies(["keep=0.5"])
    with pytest.raises(NammTransferError, match="no policy to evaluate"):
        entries([])


keys = st.sampled_from(["keep", "budget", "match", "path"])
options = st.lists(
    st.tuples(keys, st.sampled_from(["0.5", "namm", "x/y", "a:b"])), max_size=3, unique_by=lambda kv: kv[0]
)
specs = st.builds(
    lambda name, given: name + (":" if given else "") + ",".join(f"{key}={value}" for key, value in given),
    st.sampled_from(list(policies.REGISTRY)),
    options,
)


@given(st.lists(specs, min_size=1, max_size=5, unique=True), st.data())
def test_joined_policies_come_apart_again_however_they_are_given(wanted, data):
    cuts = data.draw(st.lists(st.booleans(), min_size=len(wanted), max_size=len(wanted)))
    values = [wanted[0]]
    for spec, cut in zip(wanted[1:], cuts, strict=False):
        values = [*values, spec] if cut else [*values[:-1], f"{values[-1]},{spec}"]
    assert split_policies(values) == wanted


# --- options


def test_flags_overrule_the_file_which_overrules_the_defaults(tmp_path):
    file = tmp_path / "options.toml"
    file.write_text('policy = ["full", "l2:keep=0.25"]\nupdate-interval = 64\nseed = 3\nout = "there"\n')
    options = parse(tiny_evaluation.Options, ["--config", str(file), "--seed", "5"])
    assert (options.policy, options.update_interval, options.seed) == (("full", "l2:keep=0.25"), 64, 5)
    assert (options.out, options.prompts, options.config) == (Path("there"), 6, file)
    overruled = parse(tiny_evaluation.Options, [f"--config={file}", "--policy", "full", "--policy=tova"])
    assert overruled.policy == ("full", "tova")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("update_intervall = 3", "did you mean 'update_interval'"),
        ("nonsense = 3", "expected one of policy, "),
        ('limit = "many"', "limit = 'many'"),
        ("limit = ", "is no TOML"),
        ('config = "x"', "unknown key 'config'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(text, message, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text(text)
    with pytest.raises(NammTransferError, match=message):
        parse(tiny_evaluation.Options, ["--config", str(file)])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(NammTransferError, match="cannot be read"):
        parse(EvalOptions, ["--config", str(tmp_path / "no.toml")])


def test_repeated_policies_are_collected_in_order():
    assert parse(EvalOptions, ["--policy", "full", "--seed", "1", "--policy", "namm,l2"]).policy == ("full", "namm,l2")
    assert parse(EvalOptions, []).policy == EvalOptions().policy


def test_help_names_every_policy(capsys):
    with pytest.raises(SystemExit):
        parse(EvalOptions, ["--help"])
    words = capsys.readouterr().out
    assert all(name in words for name in policies.REGISTRY)


# --- what goes wrong around an evaluation is no result


class Flaky(Evaluator):
    """Fails at some samples, or at whatever `broken` says."""

    def __init__(self, broken) -> None:
        super().__init__()
        self.broken = broken

    def score(self, sample, policy):
        if error := self.broken(sample, policy):
            raise error
        return super().score(sample, policy)


MATCHED = ["--policy", "full,streaming:keep=0.5,random:match=streaming"]


def test_resume_tries_failed_samples_again(tmp_path, uninterrupted, capsys):
    first = main(["--out", str(tmp_path)], Evaluator(raise_at="prompt 2"))
    assert [row.failed for row in first.summary] == [1, 1]
    again = Evaluator()
    main(["--out", str(tmp_path), "--resume"], again)
    assert "2 failed samples are tried again" in capsys.readouterr().out
    assert again.calls == 2, "the batch of the failed sample, under each policy"
    assert essence(tmp_path) == uninterrupted


def test_a_failure_that_stays_is_counted_once(tmp_path):
    for flags in ([], ["--resume"], ["--resume"]):
        report = main(["--out", str(tmp_path), *flags], Evaluator(raise_at="prompt 2"))
    assert [(row.n, row.failed) for row in report.summary] == [(6, 1), (6, 1)]
    assert len([record for record in report.records if record.error]) == 2


def test_what_another_process_could_not_do_is_replaced_by_the_result(tmp_path, uninterrupted):
    main(["--out", str(tmp_path)])
    ledger = tmp_path / "records-tiny-0.jsonl"
    head, *lines = ledger.read_text().splitlines(keepends=True)
    failed = {**json.loads(lines[0]), "score": None, "error": "OSError: no"}
    (tmp_path / "records-tiny-1.jsonl").write_text(head + json.dumps(failed) + "\n")
    report = main(["--out", str(tmp_path), "--resume"])
    assert not [record for record in report.records if record.error]
    assert essence(tmp_path) == uninterrupted


def test_sizes_that_a_retried_sample_changes_void_the_records_made_with_them(tmp_path):
    main(["--out", str(tmp_path / "whole"), *MATCHED])
    broken = Flaky(lambda sample, policy: OSError("gone") if (sample.id, policy.evicts) == ("prompt 5", True) else None)
    main(["--out", str(tmp_path / "torn"), *MATCHED], broken)
    again = Evaluator()
    main(["--out", str(tmp_path / "torn"), *MATCHED, "--resume"], again)
    assert again.calls == 1 + 3, "the failed batch, then the policy that matches, as a whole"
    assert essence(tmp_path / "torn") == essence(tmp_path / "whole")


def test_a_run_that_scored_nothing_fails_and_says_so(tmp_path, capsys):
    everything = Flaky(lambda sample, policy: ValueError("no such weights"))
    assert cli.status(lambda: main(["--out", str(tmp_path), "--limit", "2"], everything), "tiny") == 1
    assert "tiny: nothing was scored under full on tiny, streaming:keep=0.5 on tiny" in capsys.readouterr().err
    one = Flaky(lambda sample, policy: ValueError("no") if sample.id == "prompt 0" else None)
    assert cli.status(lambda: main(["--out", str(tmp_path), "--limit", "2"], one), "tiny") == 0


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


def wrapped(sample, policy):
    """A full disk as a library might report it."""
    if sample.id != "prompt 3":
        return None
    error = NammTransferError("the frames of the video cannot be stored")
    error.__context__, error.__suppress_context__ = FULL_DISK, True
    return error


@pytest.mark.parametrize("broken", [lambda sample, _: FULL_DISK if sample.id == "prompt 3" else None, wrapped])
def test_a_disk_that_fills_up_in_the_evaluator_stops_the_run(broken, tmp_path, uninterrupted, capsys):
    assert cli.status(lambda: main(["--out", str(tmp_path)], Flaky(broken)), "tiny") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("tiny: stopped: No space left on device; finished samples are in")
    assert ledger_lines(tmp_path) == 1 + 2, "the first batch is kept, the one that failed is no result"
    main(["--out", str(tmp_path), "--resume"])
    assert essence(tmp_path) == uninterrupted


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_disk_that_fills_up_under_the_ledger_loses_nothing_finished(room, tmp_path, uninterrupted, monkeypatch):
    left = [room]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise FULL_DISK

    monkeypatch.setattr(ledger, "_to_disk", fsync)
    with pytest.raises(NammTransferError, match="stopped: No space left on device"):
        main(["--out", str(tmp_path)])
    monkeypatch.undo()
    whole = [path.read_bytes() for path in tmp_path.glob("records-*.jsonl")]
    assert sum(content.count(b"\n") for content in whole) == room
    assert all(content.endswith(b"\n") or not content for content in whole), "no half of a line"
    main(["--out", str(tmp_path), "--resume"])
    assert essence(tmp_path) == uninterrupted


def test_a_check_before_the_first_sample_stops_the_run(tmp_path):
    def broken() -> None:
        raise NammTransferError("the weights hold NaN")

    with pytest.raises(NammTransferError, match="hold NaN"):
        run(
            EvalOptions(policy=("full",), out=tmp_path / "out"),
            task="t",
            samples=[Sample("a", "c")],
            evaluate=Evaluator(),
            description={},
            check=broken,
        )
    assert not (tmp_path / "out").exists()


def test_words_that_no_file_can_hold_are_recorded_as_far_as_possible(tmp_path):
    def evaluate(chunk, policy):
        return [Outcome(score=1.0, memory=None, answer="half \ud800 a pair", details={"n": 1}) for _ in chunk]

    report = run(
        EvalOptions(policy=("full",), out=tmp_path),
        task="t",
        samples=[Sample("a\udc80", "c", prompt="\ud800")],
        evaluate=evaluate,
        description={"model": "\ud801"},
    )
    assert (report.records[0].answer, report.records[0].id) == ("half ? a pair", "a?")
    assert (tmp_path / "report.json").exists()


# --- hostile flags and files


@pytest.mark.parametrize("wrong", ["\udcff", "a\0b"])
def test_arguments_that_are_no_text_are_refused(wrong, tmp_path):
    with pytest.raises(NammTransferError, match=r"the command line: .* is no text"):
        parse(EvalOptions, ["--out", wrong])
    file = tmp_path / "options.toml"
    file.write_text('out = "a\\u0000b"')
    with pytest.raises(NammTransferError, match="is no text"):
        parse(EvalOptions, ["--config", str(file)])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = " + b"[" * 5000 + b"]" * 5000, b"limit = 1" + b"0" * 5000])
def test_files_that_are_no_toml_are_refused(content, tmp_path):
    file = tmp_path / "options.toml"
    file.write_bytes(content)
    with pytest.raises(NammTransferError, match="--config"):
        parse(EvalOptions, ["--config", str(file)])


def test_none_stands_for_no_value(tmp_path):
    file = tmp_path / "options.toml"
    file.write_text('limit = "none"')
    assert parse(EvalOptions, ["--config", str(file)]).limit is None
