"""The places of lines of speech between the frames."""

from namm_transfer.adapters.video.subtitles import Subtitle, interleave


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
