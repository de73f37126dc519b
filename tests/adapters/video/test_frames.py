"""Frames of real files by both readers, and a typed error for everything that is no readable video."""

import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.frames import (
    BACKENDS,
    VideoError,
    in_batches,
    open_video,
    starts_of_parts,
    uniform_indices,
)
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.scenes import make_film


def remux(source: Path, target: Path, **options: str) -> None:
    """The same stream in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)


def test_uniform_indices_are_the_middles_of_equal_parts():
    assert uniform_indices(256, 4).tolist() == [32, 96, 160, 224]
    assert uniform_indices(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(NammTransferError, match="0 frames"):
        uniform_indices(10, 0)


def test_starts_of_parts_are_longvideobenchs():
    assert starts_of_parts(256, 4).tolist() == [0, 64, 128, 192]
    assert starts_of_parts(10, 4).tolist() == [0, 2, 4, 6]
    assert starts_of_parts(2, 5).tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_those_that_were_drawn(film_file, backend):
    reader = open_video(film_file, backend)
    assert (reader.count, reader.seconds) == (64, 16)
    indices = uniform_indices(reader.count, 24)
    frames = reader.frames(indices)
    assert frames.shape == (24, 64, 64, 3)
    assert frames.dtype == np.uint8
    drawn = draw(make_film("test", 1, 16), (indices + 0.5) / 4, 64)
    distance = np.abs(frames[:, None].astype(int) - drawn[None]).mean((2, 3, 4))
    assert np.diag(distance).max() < 12  # compression
    assert np.array_equal(np.concatenate(list(in_batches(reader, indices, 5))), frames)


def test_both_backends_see_the_same_frames(film_file, tmp_path):
    """Also with a variable frame rate, where time stamps and frame numbers part."""
    variable = tmp_path / "variable.mp4"
    with av.open(str(variable), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 7
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 40 * number + 17 * number**2, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for path in (film_file, variable):
        first, second = (open_video(path, backend) for backend in BACKENDS)
        assert first.count == second.count
        indices = uniform_indices(first.count, 11)
        assert np.abs(first.frames(indices).astype(int) - second.frames(indices)).max() <= 2


def hostile(kind: str, film_file: Path, folder: Path) -> Path:
    """A file that is no readable video, of the kind asked for."""
    path = folder / f"{kind}.mp4"
    whole = film_file.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "truncated data":  # index in front, so that opening works and decoding fails
        remux(film_file, path, movflags="faststart")
        path.write_bytes(path.read_bytes()[: len(whole) // 2])
    elif kind == "garbled":
        bad = np.frombuffer(whole, np.uint8).copy()
        places = np.random.default_rng(0).integers(200, len(bad) // 2, size=4000)
        bad[places] ^= 0x5A
        path.write_bytes(bad.tobytes())
    elif kind == "text":
        path.write_text("no video at all " * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "audio only":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            container.mux(stream.encode(silence))
            container.mux(stream.encode())
    elif kind == "no frames":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
    return path


def encode(path: Path, pictures: list[np.ndarray], **settings) -> None:
    """An H.264 file of pictures, one a second, of which the first gives the size."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast", **settings})
        (stream.height, stream.width), stream.pix_fmt = pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotated_films_are_turned_upright(backend, tmp_path):
    """A phone held upright writes a lying picture and a display matrix that turns it by 90 degrees."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:16] = 255
    path = tmp_path / "phone.mp4"
    encode(path, [picture])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes come before it
    assert struct.unpack_from(">9i", data, matrix)[0] == 1 << 16
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(data)
    (frame,) = open_video(path, backend).frames([0])
    assert frame.shape == (96, 64, 3)
    assert frame[:, -12:].mean() > 240, "what was above lies to the right"
    assert frame[:, :40].mean() < 15


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_too_large_to_decode_is_refused_by_its_header(backend, tmp_path):
    """11,904 x 3,008 pixels, which H.264 packs into 107 kB."""
    path = tmp_path / "huge.mp4"
    encode(path, [np.zeros((3008, 11904, 3), np.uint8)])
    assert path.stat().st_size < 200_000
    with pytest.raises(VideoError, match="11904 x 3008 pixels"):
        open_video(path, backend)


def test_large_frames_come_in_smaller_batches(monkeypatch, film_file):
    reader = open_video(film_file, "pyav")
    monkeypatch.setattr("namm_transfer.adapters.video.frames.BATCH_PIXELS", 3 * 64 * 64 + 5)
    assert [len(frames) for frames in in_batches(reader, uniform_indices(reader.count, 8))] == [3, 3, 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{film}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {film}\n"],
)
def test_playlists_open_no_other_files(text, backend, film_file, tmp_path):
    path = tmp_path / "list.mp4"
    path.write_text(text.format(film=film_file))
    with pytest.raises(VideoError, match=r"list\.mp4"):
        open_video(path, backend)


MEMORY = """
import resource, sys
from namm_transfer.adapters.video.frames import BACKENDS, in_batches, open_video, uniform_indices
for path in sys.argv[1:]:
    for backend in BACKENDS:
        reader = open_video(path, backend)
        count = sum(len(frames) for frames in in_batches(reader, uniform_indices(reader.count, 32)))
        print(reader.count, count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_an_hour_needs_no_more_memory_than_a_minute(tmp_path):
    """32 frames of 3,600; all of them in memory would be 130 MB."""
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (12, 16, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(60)]
    minute, hour = tmp_path / "minute.mp4", tmp_path / "hour.mp4"
    encode(minute, pictures, g="20")
    with av.open(str(minute)) as old, av.open(str(hour), "w") as new:
        stream = old.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in old.demux(stream) if p.dts is not None]
        copy = new.add_stream_from_template(stream)
        for repeat in range(60):
            for data, pts, dts, is_key in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, is_key
                packet.pts, packet.dts = (round(stamp + 60 * repeat / stream.time_base) for stamp in (pts, dts))
                new.mux(packet)
    command = [sys.executable, "-c", MEMORY, str(minute), str(hour)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [tuple(map(int, line.split())) for line in printed.splitlines()]
    assert [line[:2] for line in lines] == [(60, 32), (60, 32), (3600, 32), (3600, 32)]
    assert lines[-1][2] - lines[1][2] < 20_000, "kB more for the hour"


def read(path: Path, backend: str) -> np.ndarray:
    """Eight frames of a file."""
    reader = open_video(path, backend)
    return reader.frames(uniform_indices(reader.count, 8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "kind",
    ["truncated", "truncated data", "garbled", "text", "empty", "audio only", "no frames", "missing"],
)
def test_unreadable_files_raise_a_video_error(kind, backend, film_file, tmp_path):
    path = hostile(kind, film_file, tmp_path)
    with pytest.raises(VideoError, match=path.name):
        read(path, backend)


def test_unknown_backend_is_named(film_file):
    with pytest.raises(NammTransferError, match="'opencv'"):
        open_video(film_file, "opencv")


@pytest.mark.parametrize("backend", BACKENDS)
def test_real_clips(backend):
    """`NAMM_VIDEO_CLIPS`: a folder with real clips; those named corrupted* must be refused."""
    folder = os.environ.get("NAMM_VIDEO_CLIPS")
    if not folder:
        pytest.skip("NAMM_VIDEO_CLIPS names no folder of real clips")
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".avi")):
        if path.name.startswith("corrupted"):
            with pytest.raises(VideoError):
                read(path, backend)
        else:
            assert read(path, backend).std() > 1
