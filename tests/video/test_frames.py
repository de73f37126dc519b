"""Frames of real files by both readers, and a typed error for everything that is no readable video."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.video.draw import draw
from namm_transfer.video.frames import BACKENDS, VideoError, in_batches, open_video, uniform_indices
from namm_transfer.video.scenes import make_film


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
