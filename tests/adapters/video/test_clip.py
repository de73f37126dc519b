"""Parts of films, and folders of frames as films."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.clip import ClipReader, check_span
from namm_transfer.adapters.video.container import VideoError
from namm_transfer.adapters.video.frame_folder import FolderReader
from namm_transfer.adapters.video.frames import ArrayReader, facts_of, open_video
from namm_transfer.adapters.video.reading import identity, readers_of
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.adapters.video.sampling import model_indices


def write_frames(folder: Path, names: list[str], size: tuple[int, int] = (20, 12)) -> Path:
    """Pictures of one shade each: the first is 0, the second 10, and so on."""
    folder.mkdir(exist_ok=True)
    for shade, name in enumerate(names):
        Image.new("RGB", size, (10 * shade, 0, 0)).save(folder / name)
    return folder


def test_a_clip_shows_the_frames_that_are_on_screen_in_it(film_file):
    """A film of 16 seconds and 4 frames a second, from 5.1 seconds to 7."""
    film = open_video(film_file)
    clip = ClipReader(film, (5.1, 7.0))
    assert clip.times.tolist() == [5.0, 5.25, 5.5, 5.75, 6.0, 6.25, 6.5, 6.75]
    assert clip.seconds == pytest.approx(1.9)
    assert clip.count == 8
    assert np.array_equal(clip.frames([0, 7]), film.frames([20, 27]))


def test_a_clip_may_have_no_end_or_end_behind_the_film():
    film = ArrayReader(np.zeros((10, 4, 4, 3), np.uint8))
    for end in (None, 99.0):
        clip = ClipReader(film, (7.5, end))
        assert clip.times.tolist() == [7.0, 8.0, 9.0]
        assert clip.seconds == 2.5
    assert ClipReader(film, (3.2, 3.4)).times.tolist() == [3.0]
    with pytest.raises(VideoError, match=r"from 10 seconds on; the film lasts 10\.0"):
        ClipReader(film, (10.0, 12.0))


@pytest.mark.parametrize(("start", "end"), [(-1.0, 2.0), (3.0, 3.0), (None, 0.0), (float("nan"), 2.0)])
def test_a_span_that_is_none_is_refused(start, end):
    with pytest.raises(NammTransferError, match="expected it to begin at 0 or later"):
        check_span(start, end)


def test_a_span_has_defaults():
    assert check_span(None, None) is None
    assert check_span(2.0, None) == (2.0, None)
    assert check_span(None, 3.0) == (0.0, 3.0)


def test_the_rule_of_a_model_samples_within_the_clip():
    class Rule:
        def sample_frames(self, metadata, fps):
            return np.arange(0, metadata.total_num_frames, metadata.fps / fps)

    clip = ClipReader(ArrayReader(np.zeros((60, 4, 4, 3), np.uint8)), (20.0, 40.0))
    assert clip.times[model_indices(Rule(), clip, 0.25, 64)].tolist() == [20, 24, 28, 32, 36]


def test_facts_of_a_clip_are_those_of_its_film(film_file):
    sample = VideoSample(film_file, "", span=(2.0, 4.0), duration=99.0)
    (reader,) = readers_of(sample, "pyav")
    assert facts_of([reader], sample.duration) == {
        "decoder": "pyav", "length": "the film lasts 16.0 seconds, the annotations say 99.0",
    }  # fmt: skip


def test_a_folder_of_frames_is_read_in_the_order_of_numbers(tmp_path):
    folder = write_frames(tmp_path / "frames", ["f1.png", "f2.png", "f10.png"])
    (folder / "notes.txt").write_text("no frame")
    reader = FolderReader(folder, 2.0)
    assert reader.times.tolist() == [0.0, 0.5, 1.0]
    assert (reader.seconds, reader.rate, reader.pixels) == (1.5, 2.0, 240)
    assert reader.frames([0, 2])[:, 0, 0, 0].tolist() == [0, 20]
    timed = FolderReader(folder, (0.5, 3.0, 9.5))
    assert timed.times.tolist() == [0.5, 3.0, 9.5]
    assert timed.seconds == 14.0
    (clip,) = readers_of(VideoSample(folder, "", span=(3.0, 5.0), frame_times=(0.5, 3.0, 9.5)), "decord")
    assert clip.times.tolist() == [3.0]
    assert clip.frames([0])[0, 0, 0, 0] == 10


def test_frames_are_turned_upright(tmp_path):
    picture = Image.new("RGB", (20, 12))
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    (tmp_path / "frames").mkdir()
    picture.save(tmp_path / "frames/1.jpg", exif=exif)
    assert FolderReader(tmp_path / "frames", 1.0).frames([0]).shape == (1, 20, 12, 3)


def test_frames_of_16_bits_are_scaled(tmp_path):
    (tmp_path / "frames").mkdir()
    for name, value in (("1.png", 0x1234), ("2.png", 0xFFFF)):
        Image.fromarray(np.full((4, 6), value, dtype=np.uint16)).save(tmp_path / "frames" / name)
    assert FolderReader(tmp_path / "frames", 1.0).frames([0, 1])[:, 0, 0].tolist() == [[0x12] * 3, [0xFF] * 3]


@pytest.mark.parametrize(
    ("timing", "message"),
    [
        (0.0, "0.0 frames a second; expected a positive"),
        ((0.0, 1.0), "2 times for 3 frames"),
        ((0.0, 2.0, 1.0), "ascending"),
        ((-1.0, 2.0, 3.0), "from 0 on"),
    ],
)
def test_times_that_do_not_fit_are_refused(timing, message, tmp_path):
    with pytest.raises(VideoError, match=message):
        FolderReader(write_frames(tmp_path / "frames", ["1.png", "2.png", "3.png"]), timing)


def test_folders_that_cannot_be_read_are_one_error(tmp_path):
    with pytest.raises(VideoError, match="holds no frames"):
        FolderReader(write_frames(tmp_path / "none", []), 1.0)
    folder = write_frames(tmp_path / "sizes", ["1.png"])
    Image.new("RGB", (8, 8)).save(folder / "2.png")
    with pytest.raises(VideoError, match=r"2\.png' has 8 x 8 pixels and the first one 20 x 12"):
        FolderReader(folder, 1.0).frames([0, 1])
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(VideoError, match=r"2\.png' cannot be read"):
        FolderReader(folder, 1.0).frames([0, 1])
    outside = write_frames(tmp_path / "outside", ["secret.png"]) / "secret.png"
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to(outside)
    with pytest.raises(VideoError, match="leaves its folder"):
        FolderReader(folder, 1.0)
    Image.new("1", (30_000, 2_000)).save(write_frames(tmp_path / "huge", []) / "1.png")
    with pytest.raises(VideoError, match="30000 x 2000 pixels; expected"):
        FolderReader(tmp_path / "huge", 1.0)


def test_a_changed_frame_changes_the_identity_of_its_folder(tmp_path):
    folder = write_frames(tmp_path / "frames", ["1.png", "2.png"])
    before = identity(folder)
    assert len(before) == 2
    write_frames(folder, ["2.png"], size=(40, 40))
    assert identity(folder) != before
    assert identity(tmp_path / "missing") == []
