"""Our rule, and the official ones against arithmetic done by hand."""

import coded_films as films
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.frames import VideoError, open_video
from namm_transfer.adapters.video.sampling import (
    SAMPLING,
    length_warning,
    longvideobench_indices,
    mlvu_indices,
    some_of,
    uniform_indices,
)


def test_uniform_frames_are_the_middles_of_equal_parts():
    assert uniform_indices(256, 4).tolist() == [32, 96, 160, 224]
    assert uniform_indices(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(NammTransferError, match="0 frames"):
        uniform_indices(10, 0)


def test_mlvu_rounds_each_part_to_the_nearest_frame():
    """101 frames are 100 steps, in 16 parts of 6.25: 3 (half a part, rounded down) + 0, 6.25, 12.5, ... rounded."""
    expected = [3, 9, 15, 22, 28, 34, 41, 47, 53, 59, 65, 72, 78, 84, 91, 97]
    assert mlvu_indices(101, 16).tolist() == expected
    assert (mlvu_indices(101, 16) != uniform_indices(101, 16)).sum() == 2
    assert mlvu_indices(3, 4).tolist() == [0, 0, 1, 2], "0.5 and 1.5 become 0 and 2"
    assert mlvu_indices(1, 2).tolist() == [0, 0]
    with pytest.raises(NammTransferError, match="0 frames"):
        mlvu_indices(10, 0)


def test_longvideobench_samples_within_the_annotated_duration():
    """int(10.9 x 29.97) = 326 frames in 10 parts of 32.6, of which each begins 32 frames after the last."""
    assert longvideobench_indices(400, 30000 / 1001, 10.9, 256).tolist() == [32 * part for part in range(10)]
    assert longvideobench_indices(400, 25, 10, 4).tolist() == [0, 62, 124, 186]
    with pytest.raises(VideoError, match=r"frame 243 .* 10\.9 seconds; the film has 240 frames"):
        longvideobench_indices(240, 25, 10.9, 256)
    with pytest.raises(VideoError, match="at least 1"):
        longvideobench_indices(240, 25, 0.9, 4)


@pytest.fixture
def slow_then_fast(tmp_path):
    """20 pictures half a second apart, then 40 pictures 50 ms apart: 12 seconds, 5 a second on average."""
    times = [500 * place if place < 20 else 10000 + 50 * (place - 20) for place in range(60)]
    return films.write(tmp_path / "a.mkv", 60, stamps=times.__getitem__)


def test_every_rule_is_found_by_its_name(slow_then_fast):
    film = open_video(slow_then_fast, "pyav")
    assert SAMPLING["uniform"](film, 4, None).tolist() == [7, 22, 37, 52]
    assert SAMPLING["mlvu"](film, 4, None).tolist() == [7, 22, 37, 51]
    assert SAMPLING["longvideobench"](film, 4, 5.5).tolist() == [
        part * int(int(5.5 * film.rate) / 4) for part in range(4)
    ]
    with pytest.raises(NammTransferError, match="annotated duration"):
        SAMPLING["longvideobench"](film, 4, None)


def test_some_of_the_sampled_frames():
    sampled = np.arange(0, 100, 10)
    assert some_of(sampled, None) is sampled
    assert some_of(sampled, "last:3").tolist() == [70, 80, 90]
    assert some_of(sampled, "even:5").tolist() == [10, 30, 50, 70, 90]
    assert some_of(sampled, "even:64").tolist() == some_of(sampled, "last:64").tolist() == sampled.tolist()
    for wrong in ("last", "last:0", "first:3", "even:-1"):
        with pytest.raises(NammTransferError, match=f"shown frames '{wrong}'"):
            some_of(sampled, wrong)


def test_a_film_that_is_not_as_long_as_annotated_is_told(tmp_path):
    """A transport stream states no length: half of it is a film like any other."""
    whole = films.remux(films.write(tmp_path / "a.mp4"), tmp_path / "a.ts")
    film = open_video(films.truncate(whole, tmp_path / "cut.ts"), "pyav")
    assert film.seconds < 4
    assert length_warning(film, 6.0) == f"the film lasts {film.seconds:.1f} seconds, the annotations say 6.0"
    assert length_warning(open_video(whole, "pyav"), 6.0) is None
    assert length_warning(film, None) is None
