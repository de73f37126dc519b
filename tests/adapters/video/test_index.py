"""Files of many kinds: both backends give the pictures that a player shows, with their real times, or one error."""

from collections.abc import Callable
from pathlib import Path

import coded_films as films
import numpy as np
import pytest

from namm_transfer.adapters.video.frames import BACKENDS, FilmReader, VideoError, open_video

Maker = Callable[[Path], Path]
OPEN = "open-gop=1:bframes=3:keyint=8:scenecut=0:b-adapt=0"
TO_BYTES = "h264_mp4toannexb"


def x264(folder: Path, **options: str) -> Path:
    """60 pictures at 10 a second with a key frame every 8 and B-frames."""
    return films.write(folder / "plain.mp4", **options)


def x265(folder: Path, parameters: str) -> Path:
    """Encode the film as HEVC with libx265, whose parameters have other names."""
    options = {"x265-params": f"keyint=8:log-level=none:{parameters}"}
    return films.write(folder / "x265.mp4", codec="libx265", **options)


def uneven(place: int) -> int:
    """Milliseconds: slow at first, fast later."""
    return 500 * place if place < 10 else 4600 + 40 * (place - 9)


def joined(folder: Path) -> Path:
    """Two recordings with the same clock in one transport stream."""
    first, second = (films.write(folder / f"{n}.ts", 40, first=n, bf="0") for n in (0, 40))
    return films.joined(folder / "joined.ts", first, second)


def packed(folder: Path, name: str, **options) -> Path:
    """The H.264 film in another container."""
    return films.remux(x264(folder), folder / name, **options)


# What a player shows (the first number and the count), and who reads it when decord is asked for.
KINDS: dict[str, tuple[Maker, int, int, str]] = {
    "mp4": (x264, 0, 60, "decord"),
    "mov": (lambda f: packed(f, "a.mov"), 0, 60, "decord"),
    "mkv": (lambda f: packed(f, "a.mkv"), 0, 60, "decord"),
    "index first": (lambda f: packed(f, "a.mp4", movflags="faststart"), 0, 60, "decord"),
    "fragmented": (lambda f: packed(f, "a.mp4", movflags="frag_keyframe+empty_moov"), 0, 60, "decord"),
    "transport stream": (lambda f: packed(f, "a.ts"), 0, 60, "pyav"),
    "transport stream, cut": (lambda f: packed(f, "a.ts", begin=1.3), 8, 52, "pyav"),
    "transport stream, late": (lambda f: packed(f, "a.ts", shift=5000), 0, 60, "pyav"),
    "transport streams, joined": (joined, 0, 80, "pyav"),
    "avi": (lambda f: packed(f, "a.avi", filter=TO_BYTES), 0, 60, "pyav"),
    "flv": (lambda f: packed(f, "a.flv"), 0, 60, "pyav"),
    "cut": (lambda f: packed(f, "a.mp4", begin=1.3), 13, 47, "pyav"),
    "cut at a key frame": (lambda f: packed(f, "a.mp4", begin=1.6), 16, 44, "decord"),
    "cut, mov": (lambda f: packed(f, "a.mov", begin=3.1), 31, 29, "pyav"),
    "cut, mkv": (lambda f: packed(f, "a.mkv", begin=1.3), 8, 52, "decord"),
    "open groups": (lambda f: x264(f, **{"x264-params": OPEN}), 0, 60, "pyav"),
    "open groups, cut": (
        lambda f: films.remux(x264(f, **{"x264-params": OPEN}), f / "a.mp4", begin=2.5), 25, 35, "pyav"),
    "open groups, transport stream": (
        lambda f: films.remux(x264(f, **{"x264-params": OPEN}), f / "a.ts"), 0, 60, "pyav"),
    "intra refresh": (lambda f: x264(f, **{"x264-params": "intra-refresh=1:keyint=8"}), 0, 60, "pyav"),
    "interlaced": (lambda f: x264(f, flags="+ilme+ildct", **{"x264-params": "interlaced=1"}), 0, 60, "decord"),
    "one picture": (lambda f: x264(f, count=1), 0, 1, "decord"),
    "two pictures": (lambda f: x264(f, count=2), 0, 2, "decord"),
    "10 bits": (lambda f: x264(f, pix_fmt="yuv420p10le"), 0, 60, "pyav"),
    "4:4:4": (lambda f: x264(f, pix_fmt="yuv444p"), 0, 60, "pyav"),
    "48 pixels wide": (lambda f: x264(f, size=(64, 48)), 0, 60, "pyav"),
    "HEVC, open groups": (lambda f: x265(f, "open-gop=1"), 0, 60, "pyav"),
    "HEVC, closed groups": (lambda f: x265(f, "open-gop=0"), 0, 60, "pyav"),
    "HEVC, cut": (lambda f: films.remux(x265(f, "open-gop=1"), f / "a.mp4", begin=2.1), 21, 39, "pyav"),
    "VP8": (lambda f: films.write(f / "a.webm", codec="libvpx", g="8", **{"auto-alt-ref": "1"}), 0, 60, "pyav"),
    "VP9": (lambda f: films.write(f / "a.webm", codec="libvpx-vp9", g="8"), 0, 60, "pyav"),
    "webm, live": (lambda f: films.write(f / "a.webm", codec="libvpx", muxer={"live": "1"}), 0, 60, "pyav"),
    "mkv, live": (lambda f: packed(f, "a.mkv", live="1"), 0, 60, "pyav"),
    "AV1": (lambda f: films.write(f / "a.mp4", 30, codec="libsvtav1", g="8", preset="12"), 0, 30, "pyav"),
    "MPEG-1": (lambda f: films.write(f / "a.mpg", codec="mpeg1video", rate=25, g="9", bf="2"), 0, 60, "pyav"),
    "MPEG-2": (lambda f: films.write(f / "a.vob", codec="mpeg2video", rate=25, g="9", bf="2"), 0, 60, "pyav"),
    "MPEG-4, avi": (lambda f: films.write(f / "a.avi", codec="mpeg4", g="9", bf="2"), 0, 60, "pyav"),
    "MPEG-4, mp4": (lambda f: films.write(f / "a.mp4", codec="mpeg4", g="9", bf="2"), 0, 60, "pyav"),
    "motion JPEG": (lambda f: films.write(f / "a.avi", codec="mjpeg", pix_fmt="yuvj420p"), 0, 60, "pyav"),
    "wmv": (lambda f: films.write(f / "a.wmv", codec="wmv2", g="9"), 0, 60, "pyav"),
    "gif": (lambda f: films.write(f / "a.gif", codec="gif", pix_fmt="rgb8"), 0, 60, "pyav"),
    "odd sizes": (lambda f: films.write(f / "a.mkv", codec="ffv1", size=(97, 161)), 0, 60, "pyav"),
    "second stream the default": (lambda f: films.several(f / "a.mkv", [(0, 9, 0), (100, 30, 1)]), 100, 30, "pyav"),
    "first stream the default": (lambda f: films.several(f / "a.mkv", [(100, 9, 1), (0, 30, 0)]), 100, 9, "pyav"),
    "two defaults": (lambda f: films.several(f / "a.mkv", [(100, 9, 1), (0, 30, 1)]), 100, 9, "pyav"),
    "cover": (lambda f: films.several(f / "a.mp4", [(500, 1, films.COVER), (100, 30, films.DEFAULT)]), 100, 30, "pyav"),
}  # fmt: skip


def shown(reader: FilmReader) -> list[int]:
    """The numbers of all pictures, read seven at a time."""
    parts = (range(reader.count)[start : start + 7] for start in range(0, reader.count, 7))
    return [number for part in parts for number in films.numbers(reader.frames(part))]


@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_show_what_a_player_shows(kind, tmp_path):
    """In order, one by one after a seek, and each with its time."""
    make, first, count, by = KINDS[kind]
    path = make(tmp_path)
    for backend in BACKENDS:
        reader = open_video(path, backend)
        assert shown(reader) == list(range(first, first + count))
        assert reader.backend == (by if backend == "decord" else "pyav")
        assert (reader.fallback is None) == (reader.backend == backend)
        lonely = np.random.default_rng(0).permutation(count)[:12]
        assert [films.number(reader.frames([place])[0]) for place in lonely] == (first + lonely).tolist()
        rate = 25 if kind.startswith(("MPEG-1", "MPEG-2")) else 10
        assert reader.times == pytest.approx(np.arange(count) / rate, abs=0.006)
        assert reader.seconds == pytest.approx(count / rate, abs=0.006)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_are_those_of_the_pictures(suffix, backend, tmp_path):
    """At a variable rate the average says nothing of one picture."""
    reader = open_video(films.write(tmp_path / f"a.{suffix}", 36, stamps=uneven), backend)
    assert reader.times == pytest.approx([uneven(place) / 1000 for place in range(36)], abs=0.001)
    assert shown(reader) == list(range(36))
    assert 5.64 <= reader.seconds <= 6.2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_is_shown_in_one_size(backend, tmp_path):
    """Where the pictures of a transport stream change their size, they come in that of the first."""
    parts = [
        films.write(tmp_path / "0.ts", 20, bf="0"),
        films.write(tmp_path / "1.ts", 20, first=20, size=(192, 320), bf="0"),
    ]
    reader = open_video(films.joined(tmp_path / "a.ts", *parts), backend)
    assert shown(reader) == list(range(40))


MATRICES = {
    "mirrored left to right": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "mirrored top to bottom": ((1, 0, 0, -1), lambda p: p[::-1]),
    "turned by 180": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "turned clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "turned counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transposed and turned by 180": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", MATRICES)
def test_display_matrices_are_obeyed(kind, backend, tmp_path):
    matrix, turn = MATRICES[kind]
    path = films.set_matrix(films.write(tmp_path / "a.mp4", 12), *matrix)
    (frame,) = open_video(path, backend).frames([9])
    expected = turn(films.picture(9)).astype(int)
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).mean() < 10


TRUNCATED: dict[str, Maker] = {
    "mp4, index first": lambda f: packed(f, "a.mp4", movflags="faststart"),
    "mp4, index last": x264,
    "mkv": lambda f: packed(f, "a.mkv"),
    "avi": lambda f: packed(f, "a.avi", filter=TO_BYTES),
    "avi, motion JPEG": lambda f: films.write(f / "a.avi", codec="mjpeg", pix_fmt="yuvj420p"),
    "webm": lambda f: films.write(f / "a.webm", codec="libvpx"),
    "flv": lambda f: packed(f, "a.flv"),
    "gif": lambda f: films.write(f / "a.gif", codec="gif", pix_fmt="rgb8"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncated_films_are_not_shorter_films(kind, backend, tmp_path):
    whole = TRUNCATED[kind](tmp_path)
    with pytest.raises(VideoError, match="cut"):
        open_video(films.truncate(whole, tmp_path / f"cut{whole.suffix}"), backend)
