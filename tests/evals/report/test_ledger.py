"""Records on disk: durable, append-only, readable up to any damage."""

import gzip
import json
import os

import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.report import ledger, pages
from namm_transfer.evals.report.records import load
from namm_transfer.evals.report.schema import Policy


@pytest.fixture
def path(write_folder, tmp_path):
    return ledger.find(write_folder(tmp_path, {"full": [1.0, 0.0, 1.0], "l2": [0.0, 1.0, 1.0]}))[0]


def test_what_is_written_is_read(path, make_record):
    contents = ledger.read(path)
    assert contents.damage is None
    assert contents.records[4] == make_record(1, "l2", 1.0)
    assert contents.intact_bytes == path.stat().st_size


def test_a_record_is_on_the_disk_when_add_returns(path, make_run, make_record, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    book = ledger.Ledger(path, make_run(["full", "l2"], 3))
    book.add(make_record(2, "l2", 1.0))
    assert synced == [path.stat().st_size]
    book.close()


def test_cut_off_anywhere_it_is_read_up_to_the_cut(path):
    whole = path.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in {starts[1] - 1, starts[1], starts[1] + 1, starts[3] - 1, starts[3] + 40, len(whole) - 1}:
        path.write_bytes(whole[:cut])
        contents = ledger.read(path)
        complete = [start for start in starts if start <= cut]
        assert contents.intact_bytes == complete[-1]
        assert len(contents.records) == max(0, len(complete) - 2)
        assert (contents.damage is None) == (cut == complete[-1])


def test_damage_in_the_middle_ends_the_reading_and_says_where(path):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"index":', b'"indox":')
    path.write_bytes(b"".join(lines))
    contents = ledger.read(path)
    assert len(contents.records) == 2
    assert contents.damage.startswith(f"{path.name} is damaged from line 4 on")


def test_bytes_that_are_no_text_are_damage(path):
    path.write_bytes(path.read_bytes() + b"\xff\xfe\x00\n")
    assert "damaged from line 8" in ledger.read(path).damage


def test_another_schema_version_is_refused(path):
    path.write_bytes(path.read_bytes().replace(b'{"schema_version":2', b'{"schema_version":7', 1))
    with pytest.raises(NammTransferError, match="has schema version 7, expected 1 to 2"):
        ledger.read(path)


def test_resume_cuts_the_damage_off_and_appending_goes_on(path, make_run, make_record, tmp_path):
    os.truncate(path, path.stat().st_size - 3)
    notes = ledger.prepare(tmp_path, make_run(["full", "l2"], 3), resume=True)
    assert "damaged from line 7" in notes[0]
    book = ledger.Ledger(path, make_run(["full", "l2"], 3))
    book.add(make_record(2, "l2", 1.0))
    book.close()
    contents = ledger.read(path)
    assert (contents.damage, len(contents.records)) == (None, 6)


@pytest.mark.parametrize("resume", [True, False])
def test_a_compressed_ledger_is_resumed_or_put_aside(path, make_run, tmp_path, resume):
    before = ledger.read(path)
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    ledger.prepare(tmp_path, make_run(["full", "l2"], 3), resume=resume)
    assert ledger.find(tmp_path) == ([path] if resume else [])
    if resume:
        assert ledger.read(path).records == before.records
    else:
        assert [p.name for p in tmp_path.iterdir()] == [f"{packed.name}.old"]


def test_resumed_with_other_code_says_so(path, make_run, tmp_path):
    begun = make_run(["full", "l2"], 3)
    records = ledger.read(path).records
    changed = begun.model_copy(update={"provenance": begun.provenance.model_copy(update={"git_hash": "1" * 40})})
    assert ledger.prepare(tmp_path, begun, resume=True) == []
    for _ in range(2):  # the second time, nothing is new
        notes = ledger.prepare(tmp_path, changed, resume=True)
    assert notes == []
    contents = ledger.read(path)
    assert (contents.run.provenance, contents.run.resumed) == (begun.provenance, [changed.provenance])
    assert contents.records == records
    assert ("resumed", f"{begun.provenance.started}, git {'1' * 40}") in pages.provenance(contents.run)


def test_policies_may_be_added_to_a_run_but_none_taken_away(path, make_run, tmp_path):
    before = ledger.read(path)
    more = make_run(["full", "h2o", "l2"], 3)
    assert ledger.prepare(tmp_path, more, resume=True) == [f"{path.name}: added h2o"]
    after = ledger.read(path)
    assert after.run.policies == more.policies
    assert after.records == before.records
    assert ledger.prepare(tmp_path, more, resume=True) == []
    with pytest.raises(NammTransferError, match="another configuration"):
        ledger.prepare(tmp_path, make_run(["full", "h2o"], 3), resume=True)
    with pytest.raises(NammTransferError, match="another configuration"):
        ledger.prepare(tmp_path, make_run(["full", "h2o", "l2", "tova"], 4), resume=True)


def test_tasks_share_a_folder_and_leave_each_other_alone(write_folder, make_run, tmp_path):
    write_folder(tmp_path, {"full": [1.0]}, task="rl/hopper")
    write_folder(tmp_path, {"full": [1.0]}, task="rl/hopper-old")
    ledger.prepare(tmp_path, make_run(["full"], 1, task="rl/hopper"), resume=False)
    assert [path.name for path in ledger.find(tmp_path)] == ["records-rl-hopper-old-0.jsonl"]


def test_differences_name_the_place_and_both_values():
    assert ledger.differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 there, 3 here"]
    assert ledger.differences({"a": 1}, {"a": 1, "b": 2}) == ["b: None there, 2 here"]
    assert ledger.differences({"a": [1]}, {"a": [1]}) == []


def test_a_compressed_ledger_is_read_up_to_its_cut(path, tmp_path):
    whole, packed = ledger.read(path), tmp_path / "packed" / f"{path.name}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert ledger.find(packed.parent) == [packed]
    assert ledger.read(packed).records == whole.records
    packed.write_bytes(packed.read_bytes()[:-40])
    cut = ledger.read(packed)
    assert 0 < len(cut.records) < len(whole.records)
    assert "is damaged from line" in cut.damage
    packed.write_bytes(b"something else")
    with pytest.raises(NammTransferError, match="no gzip file"):
        ledger.read(packed)


def test_a_ledger_of_the_first_schema_says_now_what_each_policy_is(path, make_run):
    lines = path.read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    specs = ["full", "l2", "full:update_interval=64", "h2o:keep=0.5,update_interval=32"]
    old = first | {
        "schema_version": 1,
        "policies": [{"spec": spec, "match": None, "sha256": None} for spec in specs],
        "options": first["options"] | {"update_interval": 16},
    }
    path.write_text(json.dumps(old, separators=(",", ":")) + "\n" + "".join(lines[1:]))
    contents = ledger.read(path)
    assert contents.damage is None
    assert len(contents.records) == 6
    assert [(p.name, p.update_interval, p.baseline) for p in contents.run.policies] == [
        ("full", 16, True),
        ("l2", 16, False),
        ("full", 64, True),
        ("h2o", 32, False),
    ]
    assert contents.run.baseline.spec == "full"
    assert contents.run.policy("l2") == Policy(spec="l2", name="l2", update_interval=16, baseline=False)


def test_better_words_and_later_options_leave_a_run_what_it_is(path, make_run, tmp_path):
    begun = make_run(["full", "l2"], 3)
    now = begun.model_copy(
        update={
            "description": begun.description | {"world": "said better", "headline": {"name": "M-Avg"}},
            "options": begun.options | {"sampling": "uniform"},
        }
    )
    assert ledger.prepare(tmp_path, now, resume=True, defaults={"sampling": "uniform"}) == []
    changed = now.model_copy(update={"options": now.options | {"sampling": "official"}})
    with pytest.raises(NammTransferError, match=r"options\.sampling: 'uniform' there, 'official' here"):
        ledger.prepare(tmp_path, changed, resume=True, defaults={"sampling": "uniform"})
    for key in ("model", "data", "dtype", "data_sha256", "prompts_sha256"):
        other = begun.model_copy(update={"description": begun.description | {key: "another"}})
        with pytest.raises(NammTransferError, match=f"description.{key}: None there, 'another' here"):
            ledger.prepare(tmp_path, other, resume=True)


@pytest.mark.parametrize("wrong", [{"policy": "nobody"}, {"index": 3}])
def test_a_record_of_no_sample_or_policy_of_the_run_is_refused(path, wrong, tmp_path):
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps(json.loads(last) | wrong)]) + "\n")
    with pytest.raises(NammTransferError, match="expected one of its 3 samples under one of full, l2"):
        load(tmp_path)


@pytest.mark.parametrize("wrong", [{"score": float("nan")}, {"index": -1}, {"kept": [[1], [1, 2]]}, {"seen": 10**400}])
def test_impossible_numbers_are_damage(path, wrong):
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps(json.loads(last) | wrong)]) + "\n")
    assert "damaged from line 7" in ledger.read(path).damage


def test_a_bomb_is_refused(path, monkeypatch):
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(ledger, "MOST_BYTES", 100)
    with pytest.raises(NammTransferError, match="unpacks to more than 100 bytes"):
        ledger.read(packed)
