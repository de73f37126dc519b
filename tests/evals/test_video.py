"""The video evaluation end to end: real H.264 films, the shipped model, MLVU's layout, files that cannot be read."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT
from tiny_llava import save_tiny_llava
from tiny_video_models import save_tiny

from namm_transfer import NammTransferError
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.video import reading
from namm_transfer.adapters.video.frames import open_video
from namm_transfer.evals.tasks.video import events
from namm_transfer.evals.tasks.video.generate import generate
from namm_transfer.evals.tasks.video.scenes import TYPES

video = importlib.import_module("namm_transfer.evals.video")


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A folder with four test films of 64 seconds."""
    folder = tmp_path_factory.mktemp("films")
    generate(folder, "test", 4, 64)
    return folder


def evaluate(out: Path, *flags: object):
    """Run the script in this process."""
    return video.main([*map(str, flags), "--out", str(out)])


def outcomes(report) -> dict:
    """What a report says of its samples, without times."""
    return {
        (r.policy, r.id): (r.score, r.answer, r.kept_share, r.updates, r.details["logprobs"]) for r in report.records
    }


def test_shipped_model_understands_films_it_has_never_seen(films, tmp_path):
    """20 questions about 4 decoded test films: guessing gets 11 or more right once in 250 times."""
    report = evaluate(
        tmp_path / "run", "--films", 4, "--data-root", films, "--policy", "full,streaming:sinks=4,window=60"
    )
    full = [record for record in report.records if record.policy == "full"]
    assert len(full) == 20
    assert sum(record.score for record in full) >= 11 * 100
    assert {record.category for record in full} == set(TYPES)
    assert all(record.kept_share == 1 and record.error is None for record in full)
    other = [record for record in report.records if record.policy != "full"]
    assert all(record.updates >= 4 for record in other)
    assert all(0.2 < record.kept_share < 0.4 for record in other)
    row = json.loads((tmp_path / "run/report.json").read_text())["summary"][0]
    assert row["task"] == "video"
    assert row["n"] == 20
    assert not (tmp_path / "run/features").exists()


def test_same_report_with_the_other_backend_and_after_a_stop(films, tmp_path, monkeypatch):
    flags = ("--films", 1, "--data-root", films, "--policy", "full,h2o:keep=0.5")
    whole = outcomes(evaluate(tmp_path / "whole", *flags))
    assert len(whole) == 10
    assert outcomes(evaluate(tmp_path / "pyav", *flags, "--backend", "pyav")) == whole

    encode, done = LlavaNextVideoAdapter.encode, []

    def interrupted(self, sample):
        done.append(sample)
        if len(done) == 7:
            raise KeyboardInterrupt
        return encode(self, sample)

    monkeypatch.setattr(LlavaNextVideoAdapter, "encode", interrupted)
    with pytest.raises(SystemExit):
        evaluate(tmp_path / "stopped", *flags)
    monkeypatch.setattr(LlavaNextVideoAdapter, "encode", encode)
    assert outcomes(evaluate(tmp_path / "stopped", *flags, "--resume")) == whole


def test_films_of_version_2_with_a_random_model(tmp_path):
    """Every type is asked of every film at every length, and a cache of half the tokens answers otherwise."""
    model = save_tiny_llava(tmp_path / "model", "shipped-v2")
    flags = ("--benchmark", "generated-v2", "--model", model, "--data-root", tmp_path / "films", "--films", 1)
    report = evaluate(tmp_path / "run", *flags, "--frames", 16, 24, "--policy", "full,random:keep=0.5")
    assert [record.error for record in report.records] == [None] * 16
    assert {record.category for record in report.records} == set(events.TYPES)
    assert {record.details["frames"] for record in report.records} == {16, 24}
    assert {record.details["video"][-7:] for record in report.records} == {"-v2.mp4"}
    half = {record.id: record for record in report.records if record.policy != "full"}
    for record in report.records:
        assert len(set(record.details["logprobs"])) == 4
        if record.policy == "full":
            assert record.details["logprobs"] != half[record.id].details["logprobs"]
    description = report.runs[0].description
    assert (description["tokens_per_frame"], description["positions"], description["chance"]) == (4, 1152, 25.0)
    assert description["world"] == "films drawn by this package, test split"


def test_films_of_version_2_need_their_memory(tmp_path):
    """16 questions about 4 films of 48 seconds: guessing gets 10 or more right once in 600 times."""
    flags = ("--benchmark", "generated-v2", "--data-root", tmp_path / "films", "--films", 4, "--frames", 48)
    report = evaluate(tmp_path / "run", *flags, "--policy", "full,random:keep=0.25")
    right = Counter()
    for record in report.records:
        right[record.policy] += record.score == 100
    assert right["full"] >= 12
    assert right["random:keep=0.25"] <= right["full"] - 3


def test_generated_words_are_parsed_or_counted(films, tmp_path):
    report = evaluate(tmp_path / "run", "--films", 1, "--data-root", films, "--policy", "full", "--answer", "generate")
    for record in report.records:
        assert record.unparsed == (record.details["chosen"] is None)
        assert record.score == (100 if record.details["chosen"] == record.details["right"] else 0)
    assert sum(record.score for record in report.records) >= 200


def test_mlvu_layout_with_missing_and_damaged_videos(films, tmp_path, capsys):
    """Stand-ins under MLVU's names; a sample whose video cannot be read fails alone, and the run goes on."""
    source = sorted(films.glob("*.mp4"))[0]
    entries = [
        {"video": name, "duration": 64, "question": "What is it?", "candidates": ["red", "blue", "sand", "star"],
         "answer": "sand", "question_type": kind}
        for name, kind in (("good.mp4", "plotQA"), ("damaged.mp4", "plotQA"), ("missing.mp4", "plotQA"),
                           ("../../json/1_plotQA.json", "plotQA"))
    ]  # fmt: skip
    (tmp_path / "json").mkdir()
    (tmp_path / "video/1_plotQA").mkdir(parents=True)
    (tmp_path / "json/1_plotQA.json").write_text(json.dumps(entries))
    (tmp_path / "video/1_plotQA/good.mp4").write_bytes(source.read_bytes())
    (tmp_path / "video/1_plotQA/damaged.mp4").write_bytes(source.read_bytes()[:5000])
    report = evaluate(
        tmp_path / "run", "--benchmark", "mlvu", "--data-root", tmp_path, "--policy", "full", "--frames", 8
    )  # fmt: skip
    errors = {record.id: record.error for record in report.records}
    assert errors["1_plotQA/0"] is None
    assert "cannot be read" in errors["1_plotQA/1"]
    assert "does not exist" in errors["1_plotQA/2"]
    assert errors["1_plotQA/3"].startswith("VideoError")
    assert "leaves its folder" in errors["1_plotQA/3"]
    printed = capsys.readouterr().out
    assert "needle (json/2_needle.json)" in printed
    assert "plotQA (" not in printed
    headline = report.runs[0].description["headline"]
    assert headline["name"] == "M-Avg"
    assert headline["rule"] == "mean over categories"
    assert headline["categories"] == [
        "plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning"
    ]  # fmt: skip


def test_real_mlvu_annotations_with_stand_in_videos(films, tmp_path):
    """`NAMM_MLVU_ROOT`: MLVU's folder; the first question of every task about a generated film of the right name."""
    root = os.environ.get("NAMM_MLVU_ROOT")
    if not root:
        pytest.skip("NAMM_MLVU_ROOT names no folder of MLVU")
    (tmp_path / "json").mkdir()
    film = sorted(films.glob("*.mp4"))[0].read_bytes()
    tasks = sorted((Path(root) / "json").glob("*.json"))
    for task in tasks:
        (tmp_path / "json" / task.name).write_bytes(task.read_bytes())
        (tmp_path / "video" / task.stem).mkdir(parents=True)
        (tmp_path / "video" / task.stem / json.loads(task.read_text())[0]["video"]).write_bytes(film)
    flags = ("--benchmark", "mlvu", "--data-root", tmp_path, "--frames", 16, "--limit", len(tasks))
    report = evaluate(tmp_path / "run", *flags, "--policy", "full,namm")
    assert len(report.records) == 2 * len(tasks)
    assert len({record.category for record in report.records}) == len(tasks)
    assert all(record.error is None for record in report.records)


def test_longvideobench_layout_with_subtitles(films, tmp_path, capsys):
    """Stand-ins under LongVideoBench's names; scores by duration group, and a lost subtitle file fails alone."""
    entries = [
        {"id": f"q{number}", "question": "Where was the star?", "candidates": ["sand", "snow"], "correct_choice": 0,
         "topic_category": "KH", "question_category": kind, "video_path": f"{number}.mp4",
         "subtitle_path": f"{number}.json", "starting_timestamp_for_subtitles": 0, "duration": 64,
         "duration_group": group}
        for number, (kind, group) in enumerate((("T2E", 15), ("SSS", 15), ("T2E", 60)))
    ]  # fmt: skip
    for folder in ("videos", "subtitles"):
        (tmp_path / folder).mkdir()
    for number, source in zip(range(3), sorted(films.glob("*.mp4")), strict=False):
        (tmp_path / f"videos/{number}.mp4").write_bytes(source.read_bytes())
    for number in range(2):
        (tmp_path / f"subtitles/{number}.json").write_text('[{"timestamp": [7, 9], "text": "red star"}]')
    (tmp_path / "lvb_val.json").write_text(json.dumps(entries))
    report = evaluate(
        tmp_path / "run", "--benchmark", "longvideobench", "--data-root", tmp_path, "--policy", "full", "--frames", 16
    )  # fmt: skip
    records = {record.id: record for record in report.records}
    assert [record.id for record in report.records] == ["q0", "q1", "q2"]
    assert records["q0"].details["frames"] == 16
    assert records["q0"].details["groups"] == ["duration group 15", "topic KH"]
    assert "subtitle file" in records["q2"].error
    assert {row.category for row in report.categories} == {"T2E", "SSS", "duration group 15", "topic KH"}
    assert "no question of duration group 600, duration group 3600" in capsys.readouterr().out
    assert report.runs[0].description["headline"]["rule"] == "mean over samples"
    flags = ("--benchmark", "longvideobench-frames", "--data-root", tmp_path, "--policy", "full", "--blind")
    blind = evaluate(tmp_path / "blind", *flags)
    assert [record.error for record in blind.records] == [None] * 3, "neither films nor subtitles are read"


def test_a_checkpoint_of_the_published_layout_answers_by_letter(films, tmp_path):
    """The 7B model's path: MLVU's prompt, half precision, a device map, generated letters."""
    entry = {"video": "clip.mp4", "duration": 64, "question": "What is it?", "candidates": ["red", "sand"],
             "answer": "sand", "question_type": "plotQA"}  # fmt: skip
    (tmp_path / "json").mkdir()
    (tmp_path / "video/1_plotQA").mkdir(parents=True)
    (tmp_path / "json/1_plotQA.json").write_text(json.dumps([entry]))
    (tmp_path / "video/1_plotQA/clip.mp4").write_bytes(sorted(films.glob("*.mp4"))[0].read_bytes())
    model = save_tiny_llava(tmp_path / "model", "published")
    flags = ("--model", model, "--benchmark", "mlvu", "--data-root", tmp_path, "--frames", 12, "--dtype", "bfloat16")
    for answer, extra in (("loglik", ("--device-map", "auto")), ("generate", ())):
        report = evaluate(tmp_path / answer, *flags, *extra, "--policy", "full,h2o:keep=0.5", "--answer", answer)
        assert [record.error for record in report.records] == [None, None]
        assert report.runs[0].description["tokens_per_frame"] == 16
        assert report.runs[0].description["dtype"] == "bfloat16"
        full, evicted = report.records
        assert full.updates == 0
        assert evicted.updates >= 6
        assert evicted.kept_share < 0.7


def test_several_lengths_take_turns_and_change_nothing_for_each_other(films, tmp_path):
    """160 frames are 640 tokens, more than the shipped model's 512 positions; its neighbours of 64 do not notice."""
    flags = ("--data-root", films, "--policy", "full,h2o:keep=0.5", "--films", 1)
    both = evaluate(tmp_path / "both", *flags, "--frames", 64, 160)
    alone = outcomes(evaluate(tmp_path / "alone", *flags, "--frames", 64))
    assert all(record.error is None for record in both.records)
    frames = [record.details["frames"] for record in both.records if record.policy == "full"]
    assert frames == [64, 160] * 5
    assert {(policy, name.removesuffix("@64")): found for (policy, name), found in outcomes(both).items()
            if name.endswith("@64")} == alone  # fmt: skip
    rows = {(row.category, row.policy): row.n for row in both.categories}
    assert rows["64 frames", "full"] == rows["160 frames", "full"] == 5


def test_questions_from_one_cache_of_the_video_in_any_order(films, tmp_path):
    """The video is read before the question: full as ever, and an evicting policy answers the same in any order."""
    flags = ("--films", 1, "--data-root", films, "--policy", "full,h2o:keep=0.5", "--update-interval", 8)
    usual, early = (outcomes(evaluate(tmp_path / name, *flags, *more))
                    for name, more in (("usual", ()), ("early", ("--query-agnostic",))))  # fmt: skip
    for key, (score, answer, kept, _, logprobs) in usual.items():
        if key[0] == "full":
            assert early[key][:3] == (score, answer, kept)
            assert early[key][4] == pytest.approx(logprobs, abs=1e-4)
    assert any(early[key][4] != found[4] for key, found in usual.items() if key[0] != "full"), "the question has a say"
    assert {found[3] for key, found in early.items() if key[0] != "full"} == {257 // 8}
    film = next(films.glob("**/*.mp4"))
    asked = [
        {"id": text, "video": film.name, "question": text, "candidates": ["red", "blue"], "answer": "red"}
        for text in ("What color was the star?", "What color was the circle?", "What color was the square?")
    ]
    found = []
    for number, order in enumerate((asked, asked[::-1])):
        file = tmp_path / "asked.json"
        file.write_text(json.dumps(order))
        flags = ("--benchmark", file, "--data-root", film.parent, "--policy", "h2o:keep=0.5", "--query-agnostic")
        found.append(outcomes(evaluate(tmp_path / f"own{number}", *flags)))
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_parts_of_a_video_and_folders_of_frames(films, tmp_path):
    """Whatever a run keeps on disk of one part, or of one folder, it does not take for another."""
    film, pictures = next(films.glob("*.mp4")), open_video(next(films.glob("*.mp4"))).frames(range(16, 24))
    for name, frames in (("a", pictures), ("b", pictures[::-1])):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{number}.png")
    base = {"question": "What was seen?", "candidates": ["ring", "star"], "answer": "star"}
    asked = [
        {**base, "id": "clip", "video": "film.mp4", "start": 4, "end": 6},
        {**base, "id": "a", "video": "a", "frame_rate": 4},
        {**base, "id": "b", "video": "b", "frame_times": [10, 11, 12, 13, 14, 15, 16, 18]},
        {**base, "id": "whole", "video": "film.mp4", "note": {"page": 3}},
    ]
    (tmp_path / "film.mp4").symlink_to(shutil.copy(film, tmp_path / "copy.mp4"))
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    model = save_tiny_llava(tmp_path / "model", "shipped")
    flags = ("--benchmark", tmp_path / "asked.json", "--policy", "full", "--frames", 8, "--model", model)
    found = {record.id: record for record in evaluate(tmp_path / "run", *flags).records}
    assert {name: record.error for name, record in found.items()} == dict.fromkeys(("clip", "a", "b", "whole"))
    assert found["clip"].details["logprobs"] == found["a"].details["logprobs"]
    assert len({tuple(found[name].details["logprobs"]) for name in ("a", "b", "whole")}) == 3
    assert found["clip"].details["span"] == [4, 6]
    assert found["whole"].details["extra"] == {"note": {"page": 3}}
    assert "span" not in found["whole"].details


def test_films_are_watched_once_and_asked_about_at_known_ages(films, tmp_path):
    """Questions 2, 8 and 32 seconds after what they ask for was shown; the report has a row for each age."""
    flags = ("--streaming", "--films", 4, "--data-root", films)
    report = evaluate(tmp_path / "run", *flags, "--policy", "full,recent:budget=32")
    assert not any(record.error for record in report.records)
    rows = {(row.policy, row.category): row for row in report.categories}
    full, recent = (
        [rows[policy, f"answer shown {age} s before"].score for age in ("0 to 4", "4 to 16", "16 to 64")]
        for policy in ("full", "recent:budget=32")
    )
    assert full[0] > 60
    assert recent[2] < full[2]
    for record in report.records:
        assert record.details["frames"] == record.details["asked_at"], "one frame a second, those before the question"
    assert report.runs[0].description["streaming"] == "1 frames a second, in clips of 16"
    again = evaluate(tmp_path / "again", *flags, "--policy", "full,recent:budget=32", "--limit", 5)
    assert outcomes(again).items() <= outcomes(report).items()


def test_questions_with_times_are_refused_where_the_film_is_not_watched(films, tmp_path):
    entry = {"video": "a.mp4", "question": "?", "candidates": ["red", "blue"], "answer": "red", "asked_at": 3}
    (tmp_path / "own.json").write_text(json.dumps([entry]))
    with pytest.raises(NammTransferError, match=r"question 'own/0' is asked 3 s into its video: expected --streaming"):
        evaluate(tmp_path / "run", "--benchmark", tmp_path / "own.json")
    for flag in ("--query-agnostic", "--blind"):
        with pytest.raises(NammTransferError, match="expected neither --query-agnostic nor --blind"):
            evaluate(tmp_path / "run", "--streaming", flag, "--data-root", films)


def test_caches_of_videos_are_kept_for_other_runs(films, tmp_path, monkeypatch):
    flags = ("--films", 1, "--data-root", films, "--policy", "full,h2o:keep=0.5", "--query-agnostic")
    flags += ("--context-cache", tmp_path / "caches")
    first = evaluate(tmp_path / "first", *flags)
    assert len(list((tmp_path / "caches").iterdir())) == 2, "one film, two policies"
    monkeypatch.delattr(video.VideoLanguageAdapter, "read_context")
    assert outcomes(evaluate(tmp_path / "again", *flags)) == outcomes(first)
    with pytest.raises(NammTransferError, match="needs --query-agnostic"):
        evaluate(tmp_path / "none", "--context-cache", tmp_path / "caches")


def test_another_video_language_model_and_a_run_of_an_older_release(films, tmp_path):
    """A random Qwen3-VL; and records that were made before an option existed are gone on from."""
    model = save_tiny(tmp_path / "model", "qwen3_vl")
    flags = ("--model", model, "--films", 1, "--data-root", films, "--limit", 2, "--policy", "full,h2o:keep=0.5")
    report = evaluate(tmp_path / "run", *flags, "--frames", 16)
    assert [record.error for record in report.records] == [None] * 4
    assert all(record.details["frames"] == 16 for record in report.records)
    assert all(record.kept_share < 1 for record in report.records if record.policy != "full")
    (ledger,) = (tmp_path / "run").glob("records-*.jsonl")
    first, *records = ledger.read_text().splitlines(keepends=True)
    run = json.loads(first)
    for name in ("fps", "pixels", "query_agnostic", "streaming"):
        del run["options"][name]
    ledger.write_text("".join([json.dumps(run, separators=(",", ":")) + "\n", *records]))
    assert outcomes(evaluate(tmp_path / "run", *flags, "--frames", 16, "--resume")) == outcomes(report)
    with pytest.raises(NammTransferError, match=r"another configuration .*fps"):
        evaluate(tmp_path / "run", *flags, "--frames", 16, "--resume", "--fps", 0.25)
    more = evaluate(tmp_path / "more", *flags, "--frames", 16, "--fps", 0.25, "--pixels", 64, "--answer", "generate")
    assert {record.details["frames"] for record in more.records} == {4}
    with pytest.raises(NammTransferError, match="--fps 0"):
        evaluate(tmp_path / "none", *flags, "--fps", 0)
    with pytest.raises(NammTransferError, match="-1 pixels a frame"):
        evaluate(tmp_path / "none", *flags, "--pixels", -1)


def test_six_policies_decode_a_film_once(films, tmp_path, monkeypatch):
    opened = []
    read = reading.open_video
    monkeypatch.setattr(reading, "open_video", lambda path, backend: (opened.append(path.name), read(path, backend))[1])
    policies = "full,h2o:keep=0.5,l2:keep=0.5,streaming:sinks=4,window=60,snapkv:keep=0.5,random:keep=0.5"
    report = evaluate(tmp_path / "run", "--films", 2, "--data-root", films, "--policy", policies, "--limit", 7)
    assert len(report.records) == 6 * 7
    assert len(opened) == len(set(opened)) == 2


def test_thumbnails_are_the_frames_that_namm_kept_most_and_least_of(films, tmp_path):
    flags = ("--films", 3, "--data-root", films, "--limit", 13)
    evaluate(tmp_path / "run", *flags, "--policy", "full,namm")
    folders = sorted((tmp_path / "run/thumbnails").iterdir())
    assert len(folders) == 12
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert 4 <= len(names) <= 8
        assert all(re.fullmatch(r"00[0-6]\d\.jpg", name) for name in names)
        assert all(path.stat().st_size <= 3000 for path in folder.iterdir())
    evaluate(tmp_path / "none", *flags, "--policy", "full,h2o:keep=0.5")
    assert not (tmp_path / "none/thumbnails").exists()


def test_questions_alone_give_nothing_away(films, tmp_path):
    """20 answers about black frames: guessing among four gets 10 or more right once in 70 times. No film is opened."""
    lost = tmp_path / "films"
    lost.mkdir()
    for film in films.glob("*.mp4"):
        (lost / film.name).touch()
    report = evaluate(tmp_path / "run", "--films", 4, "--data-root", lost, "--policy", "full", "--blind")
    assert all(record.error is None for record in report.records)
    assert sum(record.score for record in report.records) < 10 * 100


def test_wrong_benchmarks_are_named(tmp_path):
    for name in ("mlvu", "longvideobench"):
        with pytest.raises(NammTransferError, match="--data-root"):
            evaluate(tmp_path / "run", "--benchmark", name)
    with pytest.raises(NammTransferError, match="expected one number, or as many"):
        evaluate(tmp_path / "run", "--films", 1, 2, "--frames", 16, 32, 64)
    with pytest.raises(NammTransferError, match=r"--frames \(0,\)"):
        evaluate(tmp_path / "run", "--films", 1, "--frames", 0)
    with pytest.raises(NammTransferError, match=r"'mvlu': expected generated, .*longvideobench, .*mlvu, .*\.json file"):
        evaluate(tmp_path / "run", "--benchmark", "mvlu")
    with pytest.raises(NammTransferError, match=r"nothing\.json"):
        evaluate(tmp_path / "run", "--benchmark", tmp_path / "nothing.json")


def test_two_processes_make_the_report_of_one(films, tmp_path):
    flags = ("--films", "1", "--data-root", str(films), "--policy", "full,h2o:keep=0.5")
    whole = outcomes(evaluate(tmp_path / "one", *flags))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_machines", "1", "--main_process_port", "0",
        str(ROOT / "evals/video.py"), *flags, "--out", str(tmp_path / "two"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    two = json.loads((tmp_path / "two/report.json").read_text())
    found = {
        (r["policy"], r["id"]): (r["score"], r["answer"], r["kept_share"], r["updates"], r["details"]["logprobs"])
        for r in two["records"]
    }
    assert found == whole
    assert len(list((tmp_path / "two").rglob("*.jsonl"))) == 2


def test_options_that_the_model_cannot_tell_apart_end_the_run_before_it_begins(films, tmp_path):
    """`yes` and `no` are no words of the shipped tokenizer when the answer is the option itself; letters are."""
    film = sorted(films.glob("*.mp4"))[0].name
    entries = [
        {"video": film, "question": "Is it?", "candidates": ["yes", "no"], "answer": "no", "id": f"q{number}"}
        for number in range(2)
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(entries))
    flags = ("--benchmark", file, "--data-root", films, "--policy", "full", "--frames", 8)
    assert [record.id for record in evaluate(tmp_path / "run", *flags).records] == ["q0", "q1"]
    question = video.load_json(file, films)[1]
    adapter, _ = video.load(video.Options(out=tmp_path / "out"), "cpu")
    with pytest.raises(
        NammTransferError, match=r"question 'q1': choice ' yes' holds no word|'q1': choices ' yes' and ' no'"
    ):
        video.check_choices(adapter, [video.replace(question, by_letter=False, lead="")])


def test_own_fields_are_in_the_record(films, tmp_path):
    film = sorted(films.glob("*.mp4"))[0].name
    entry = {"video": film, "question": "Is it?", "candidates": ["yes", "no"], "answer": "no", "id": "q", "level": 3}
    (tmp_path / "mine.json").write_text(json.dumps([entry]))
    flags = ("--benchmark", tmp_path / "mine.json", "--data-root", films, "--policy", "full", "--frames", 8)
    (record,) = evaluate(tmp_path / "run", *flags).records
    assert (record.id, record.details["extra"]) == ("q", {"level": 3})
    assert record.details["decoder"] == "decord"
    assert "fallback" not in record.details
