"""Both forms of subtitle files, and the places of their lines between the frames."""

import json

import pytest

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.subtitles import Subtitle, SubtitleFile, interleave


def test_both_forms_are_read_in_the_time_of_the_film(tmp_path):
    entries = [
        {"timestamp": [100.5, 102.5], "text": "first"},
        {"timestamp": [103, None], "text": "open end"},
        {"start": "00:01:41.250", "end": "01:00:00.000", "line": "clock"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    assert SubtitleFile(tmp_path, "a.json", begins=100, seconds=20).read() == (
        Subtitle(0.5, 2.5, "first"), Subtitle(3, 20, "open end"), Subtitle(1.25, 3500, "clock"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["[", "7", '[{"text": "no time"}]', '[{"timestamp": [1], "text": ""}]', '[{"start": "1", "end": "2"}]', "[3]"],
)
def test_what_does_not_fit_is_named(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(NammTransferError, match=r"a\.json"):
        SubtitleFile(tmp_path, "a.json", 0, 10).read()


def test_files_missing_or_outside_are_refused(tmp_path):
    with pytest.raises(NammTransferError, match="cannot be read"):
        SubtitleFile(tmp_path, "nothing.json", 0, 10).read()
    with pytest.raises(NammTransferError, match="leaves its folder"):
        SubtitleFile(tmp_path, "../a.json", 0, 10).read()


def lay(*lines: tuple[float, float, str]) -> str:
    """Frames at 0, 4, 8 and 12 seconds with lines between them."""
    return interleave("0123", [0, 4, 8, 12], [Subtitle(*line) for line in lines]).replace("\n", "")


def test_lines_stand_behind_the_frames_up_to_their_middle():
    assert lay((3, 7, "a")) == "01a23"
    assert lay((3, 5, "a")) == "01a23", "a frame in its very middle comes first"
    assert lay((11, 30, "z"), (-5, 1, "a")) == "a0123z"
    assert lay((4, 9, "b"), (3, 9, "a")) == "01ab23", "in the order of their middles"


def test_lines_that_no_frame_falls_into_are_left_out():
    assert lay((1, 3, "a"), (5, 7.9, "b"), (13, 20, "c")) == "0123"
    assert lay((3.3, 3.5, "a")) == "0123", "half a second around 3.4 ends at 3.9"
    assert lay((3.5, 3.7, "a")) == "0a123"
    assert lay() == "0123"
