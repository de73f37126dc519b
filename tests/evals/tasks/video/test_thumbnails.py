"""Which frames are shown, and how small their pictures are."""

import io

import numpy as np
from PIL import Image

from namm_transfer.evals.tasks.video.thumbnails import most_and_least, write_thumbnails


def test_few_frames_are_shown_whole():
    assert most_and_least(np.random.default_rng(0).random((2, 3, 16))) == list(range(16))


def test_of_many_frames_the_four_most_and_the_four_least_kept_are_shown():
    shares = np.full(20, 0.5)
    shares[[19, 3, 7, 11, 12]] = [1, 0.9, 0.8, 0.7, 0.6]
    shares[[0, 2, 4, 6, 8]] = [0, 0.1, 0.2, 0.3, 0.4]
    kept = np.stack([shares * 0.5, shares * 1.5])[None]
    assert most_and_least(kept) == [0, 2, 3, 4, 6, 7, 11, 19]


def test_ties_go_to_earlier_frames():
    assert most_and_least(np.ones((1, 1, 20))) == [0, 1, 2, 3]


def test_pictures_are_small_and_the_same_every_time(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 300, 200, 3), np.uint8)
    for name in ("a", "b"):
        write_thumbnails(tmp_path / name, [3, 17], noise)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0003.jpg", "0017.jpg"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.stat().st_size <= 3000
        assert Image.open(io.BytesIO(path.read_bytes())).size == (43, 64)
