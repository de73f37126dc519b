import sys

from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import stream


def test_a_stream_is_measured_as_it_goes():
    rows = list(stream.watch("namm:budget=48", 96, 32, rows=3))
    frames, seen, held, *_ = zip(*rows, strict=True)
    assert frames == (32, 64, 96)
    assert seen == tuple(3 + 4 * count for count in frames), "<s> USER : and four tokens a frame"
    assert all(48 <= tokens < 48 + 32 for tokens in held)


def test_clips_are_films_in_a_row():
    found = list(stream.clips(72))
    assert [len(clip) for clip in found] == [16, 16, 16, 16, 8]
    assert found[0].shape == (16, 32, 32, 3)
    assert (found[0] != found[4][0]).any()
