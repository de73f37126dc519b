"""LongVideoBench's layout on a stand-in folder: prompt, groups, subtitles, archives in parts."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.adapters.video.subtitles import Subtitle
from namm_transfer.evals.tasks.video.longvideobench import load_longvideobench

ENTRY = {
    "video_id": "abc", "id": "abc_0", "question": "What is seen when the voice says 'star'?",
    "question_wo_referring_query": "What is seen?", "candidates": ["red", "blue", "sand", "snow", "ring"],
    "correct_choice": 2, "position": [10, 20], "topic_category": "KH-Knowledge-History", "question_category": "T2E",
    "level": "L1-Perception", "video_path": "abc.mp4", "subtitle_path": "abc_en.json", "duration": 23.98,
    "duration_group": 60, "view_count": 7, "starting_timestamp_for_subtitles": 100,
}  # fmt: skip


def write(root: Path, *entries: dict) -> Path:
    """A folder with annotations."""
    root.mkdir(exist_ok=True)
    (root / "lvb_val.json").write_text(json.dumps(entries))
    return root


def test_questions_have_the_official_prompt_and_their_groups(tmp_path):
    (question,) = load_longvideobench(write(tmp_path, ENTRY))
    assert question.prompt == (
        "Question: What is seen when the voice says 'star'?\nA. red\nB. blue\nC. sand\nD. snow\nE. ring\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (question.lead, question.choices, question.answer) == ("", (" A", " B", " C", " D", " E"), 2)
    assert (question.id, question.kind) == ("abc_0", "T2E")
    assert question.groups == ("duration group 60", "topic KH-Knowledge-History")
    assert (question.sampling, question.frames) == ("longvideobench", 23), "at most one frame a second"
    assert question.video == tmp_path / "videos/abc.mp4"


def test_subtitles_are_in_the_time_of_the_clip(tmp_path):
    (question,) = load_longvideobench(write(tmp_path, ENTRY))
    (tmp_path / "subtitles").mkdir()
    (tmp_path / "subtitles/abc_en.json").write_text(json.dumps([{"timestamp": [101, 103.5], "text": "a star"}]))
    assert question.subtitles.read() == (Subtitle(1, 3.5, "a star"),)


def test_videos_and_subtitles_are_unpacked_once(tmp_path):
    root = write(tmp_path / "root", ENTRY)
    for name, file in (("videos", "abc.mp4"), ("subtitles", "abc_en.json")):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = 5
            tar.addfile(member, io.BytesIO(b"bytes"))
        whole = data.getvalue()
        if name == "videos":
            (root / "videos.tar.part.aa").write_bytes(whole[:700])
            (root / "videos.tar.part.ab").write_bytes(whole[700:])
        else:
            (root / "subtitles.tar").write_bytes(whole)
    (question,) = load_longvideobench(root)
    assert question.video.read_bytes() == b"bytes"
    assert (root / "subtitles/abc_en.json").is_file()
    for archive in root.glob("*.tar*"):
        archive.write_bytes(b"not read again")
    assert load_longvideobench(root) == [question]


def test_files_outside_their_folder_are_refused_when_asked_for(tmp_path):
    entry = {**ENTRY, "video_path": "../lvb_val.json", "subtitle_path": "/etc/passwd"}
    (question,) = load_longvideobench(write(tmp_path, entry))
    with pytest.raises(VideoError, match="leaves its folder"):
        _ = question.video
    with pytest.raises(NammTransferError, match="leaves its folder"):
        question.subtitles.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_choice": 5}, "'correct_choice' is 5"),
        ({"correct_choice": -1}, "'correct_choice' is -1"),
        ({"correct_choice": True}, "'correct_choice' is True"),
        ({"candidates": "red"}, "'candidates' is 'red'"),
        ({"duration": None}, "'duration' is None"),
        ({"duration": -3}, "'duration' is -3"),
        ({"subtitle_path": 3}, "'subtitle_path' is 3"),
    ],
)
def test_entries_that_do_not_fit_are_named(change, message, tmp_path):
    with pytest.raises(NammTransferError, match=rf"entry 1: {message}"):
        load_longvideobench(write(tmp_path, ENTRY, {**ENTRY, **change}))


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(NammTransferError, match=r"lvb_val\.json"):
        load_longvideobench(tmp_path)
