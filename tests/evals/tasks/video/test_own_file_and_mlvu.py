"""Benchmarks become questions: generated films, MLVU's layout, a user's own file."""

import json
import os
from pathlib import Path

import av
import pytest

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.evals.tasks.video.generate import generate
from namm_transfer.evals.tasks.video.generated import load_generated
from namm_transfer.evals.tasks.video.mlvu import FILES, load_mlvu
from namm_transfer.evals.tasks.video.own_file import load_json
from namm_transfer.evals.tasks.video.scenes import TYPES

ENTRY = {
    "video": "a/clip.mp4", "duration": 12.5, "question": "What happens?", "candidates": ["Rain", "Snow", "Wind"],
    "answer": "Wind", "question_type": "weather",
}  # fmt: skip


def write(folder: Path, name: str, entries) -> Path:
    """A benchmark file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


def test_generated_films_are_written_once_as_h264_with_a_manifest(tmp_path):
    asked = load_generated(films=2, seconds=16, folder=tmp_path)
    assert [question.kind for question in asked] == [*TYPES, *TYPES]
    assert len({question.id for question in asked}) == len(asked)
    with av.open(str(asked[0].video)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == 64
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.mp4")}
    assert load_generated(films=2, seconds=16, folder=tmp_path) == asked
    assert files == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.mp4")}
    assert sorted(tmp_path.iterdir()) == sorted([*files, generate(tmp_path, "test", 2, 16)])


def test_generated_films_are_the_same_elsewhere(tmp_path):
    first, second = (load_generated(films=1, seconds=16, folder=tmp_path / name) for name in ("a", "b"))
    assert first[0].video.read_bytes() == second[0].video.read_bytes()
    assert [(q.id, q.prompt, q.options, q.answer) for q in first] == [
        (q.id, q.prompt, q.options, q.answer) for q in second
    ]


def test_generated_questions_are_answered_in_words(tmp_path):
    for question in load_generated(films=1, seconds=16, folder=tmp_path):
        assert question.lead == ""
        assert question.choices == tuple(f" {option}" for option in question.options)
        assert "(A)" not in question.prompt


def test_own_file_is_answered_by_letter(tmp_path):
    (question,) = load_json(write(tmp_path, "mine.json", [ENTRY]))
    assert question.prompt == "What happens?\n(A) Rain\n(B) Snow\n(C) Wind"
    assert (question.lead, question.choices, question.answer) == ("Best option: (", ("A", "B", "C"), 2)
    assert (question.kind, question.duration, question.id) == ("weather", 12.5, "mine/0")
    assert question.video == tmp_path / "a/clip.mp4"
    (elsewhere,) = load_json(tmp_path / "mine.json", tmp_path / "videos")
    assert elsewhere.video == tmp_path / "videos/a/clip.mp4"


def test_a_part_of_a_video_and_the_times_of_a_folder_of_frames(tmp_path):
    entries = [
        {**ENTRY, "start": 2, "end": 8.5},
        {**ENTRY, "start": 2, "frame_rate": 3},
        {**ENTRY, "frame_times": [0, 1.5, 4], "source": "a note of my own"},
        ENTRY,
    ]
    asked = load_json(write(tmp_path, "mine.json", entries))
    assert [question.span for question in asked] == [(2, 8.5), (2, None), None, None]
    assert [question.frame_times for question in asked] == [1, 3, (0, 1.5, 4), 1]
    assert [dict(question.extra) for question in asked] == [{}, {}, {"source": "a note of my own"}, {}]
    assert len({question.cluster for question in asked}) == 1, "parts of one video are no independent draws"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, "'video' is None; expected a str"),
        ({"candidates": ["one"]}, "expected 2 to 26 texts"),
        ({"candidates": [1, 2]}, "expected 2 to 26 texts"),
        ({"answer": "Hail"}, "none of"),
        ({"duration": "long"}, "'duration' is 'long'; expected a float"),
        ({"start": "0:05"}, "'start' is '0:05'; expected a float"),
        ({"start": 5, "end": 5}, "entry 1: a clip from 5 to 5 seconds"),
        ({"frame_rate": 2, "frame_times": [0]}, "expected one of them"),
        ({"frame_times": [0, None]}, "'frame_times' is None; expected a float"),
    ],
)
def test_entries_that_do_not_fit_are_named(change, message, tmp_path):
    file = write(tmp_path, "mine.json", [ENTRY, {**ENTRY, **change}])
    with pytest.raises(NammTransferError, match=message):
        load_json(file)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "link/clip.mp4"])
def test_a_video_outside_its_folder_fails_when_it_is_asked_for(name, tmp_path):
    """And not before: the other questions can still be asked."""
    root = tmp_path / "videos"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    first, second = load_json(write(tmp_path, "mine.json", [{**ENTRY, "video": name}, ENTRY]), root)
    with pytest.raises(VideoError, match="leaves its folder"):
        _ = first.video
    assert second.video == root / "a/clip.mp4"


def test_videos_of_a_hub_download_are_links_into_its_cache(tmp_path):
    repository = tmp_path / "datasets--MLVU--MVLU"
    root = repository / "snapshots/0123"
    write(root, "json/1_plotQA.json", [ENTRY])
    (root / "video/1_plotQA/a").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs/f00d").write_text("film")
    (root / "video/1_plotQA/a/clip.mp4").symlink_to("../../../../../blobs/f00d")
    (question,) = load_mlvu(root)
    assert question.video.read_text() == "film"


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(NammTransferError, match="cannot be read"):
        load_json(tmp_path / "nothing.json")
    with pytest.raises(NammTransferError, match="holds a dict"):
        load_json(write(tmp_path, "mine.json", {"questions": []}))
    with pytest.raises(NammTransferError, match="is a str"):
        load_json(write(tmp_path, "mine.json", ["a"]))


def test_mlvu_layout_and_official_prompt(tmp_path):
    right_missing = {**ENTRY, "answer": "Hail"}
    doubled = {**ENTRY, "candidates": ["Wind", "Snow", "Wind", "Hail"]}
    write(tmp_path, "json/2_needle.json", [ENTRY, right_missing, doubled])
    write(tmp_path, "json/5_order.json", [ENTRY])
    asked = load_mlvu(tmp_path)
    assert [question.id for question in asked] == ["2_needle/0", "2_needle/1", "2_needle/2", "5_order/0"]
    assert asked[0].prompt == (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\n"
        "Question: What happens?\nOptions:\n(A) Rain\n(B) Snow\n(C) Wind\nOnly give the best option."
    )
    assert asked[0].lead == "Best option: ("
    assert asked[0].video == tmp_path / "video/2_needle/a/clip.mp4"
    assert [question.answer for question in asked] == [2, None, 2, 2]
    assert [question.kind for question in asked] == ["needle", "needle", "needle", "order"]
    assert [bool(question.flaw) for question in asked] == [False, False, True, False]
    assert "2_needle.json', entry 2: option 'Wind' is there twice" in asked[2].flaw
    with pytest.raises(NammTransferError, match="none of MLVU's files"):
        load_mlvu(tmp_path / "video")


def test_real_mlvu_annotations():
    """`NAMM_MLVU_ROOT`: MLVU's folder, with json/ and video/ in it (annotations are enough)."""
    root = os.environ.get("NAMM_MLVU_ROOT")
    if not root:
        pytest.skip("NAMM_MLVU_ROOT names no folder of MLVU")
    asked = load_mlvu(Path(root))
    present = [name for name in FILES.values() if (Path(root) / "json" / f"{name}.json").is_file()]
    assert {question.id.split("/")[0] for question in asked} == set(present)
    assert sum(question.answer is None for question in asked) <= 2
    assert all(len(question.options) == 4 for question in asked)
