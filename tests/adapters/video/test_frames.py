"""Frames of real files by both readers, and a typed error for everything that is no readable video."""

import os
import subprocess
import sys
from pathlib import Path

import av
import coded_films as films
import numpy as np
import pytest
from PIL import Image

from namm_transfer import NammTransferError
from namm_transfer.adapters.video.frames import (
    BACKENDS,
    VideoError,
    in_batches,
    open_video,
    uniform_indices,
)
from namm_transfer.evals.tasks.video.draw import draw
from namm_transfer.evals.tasks.video.scenes import make_film


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


def hostile(kind: str, film_file: Path, folder: Path) -> Path:
    """A file that is no readable video, of the kind asked for."""
    path = folder / f"{kind}.mp4"
    whole = film_file.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "truncated data":  # index in front, so that opening works and decoding fails
        films.remux(film_file, path, movflags="faststart")
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
import sys, time
from pathlib import Path
import numpy as np
from namm_transfer.adapters.video.frames import in_batches, open_video, uniform_indices

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

path, backend = sys.argv[1:]
reader = open_video(path, backend)
before = most = resident()
for frames in in_batches(reader, uniform_indices(reader.count, 8), 4):
    del frames
    for _ in range(4):  # a model is at work
        time.sleep(0.25)
        most = max(most, resident())
print(reader.backend, reader.count, most - before)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_does_not_grow_while_the_model_works(backend, tmp_path):
    """600 pictures of 640 x 352 are 400 MB; those in a batch of 4 are 3 MB."""
    path = films.write(tmp_path / "long.mp4", 600, size=(352, 640), g="300", preset="ultrafast")
    command = [sys.executable, "-c", MEMORY, str(path), backend]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found[:2] == [backend, "600"]
    assert int(found[2]) < 100e6


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


@pytest.mark.parametrize("kind", ["picture", "text"])
def test_a_file_that_is_no_video_is_told_what_was_expected(kind, film_file, tmp_path):
    path = hostile("text", film_file, tmp_path)
    if kind == "picture":
        path = tmp_path / "picture.png"
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(VideoError, match=f"{path.name}' cannot be read: .*expected a video .* folder of pictures"):
        open_video(path)


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_that_are_no_files_are_typed_errors(backend, tmp_path):
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("x" * 300), tmp_path / "a\0b.mp4", tmp_path):
        with pytest.raises(VideoError):
            open_video(path, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_and_titles_do_not_decide_how_a_file_is_read(backend, tmp_path, monkeypatch):
    """FFmpeg takes what stands before a colon for a protocol, and titles need not be UTF-8."""
    monkeypatch.chdir(tmp_path)
    written = films.write(tmp_path / "a.mkv", 12, title="x" * 8)
    Path("concat:a.mkv").write_bytes(written.read_bytes().replace(b"x" * 8, b"\xe9\xff\xfex\xe9xxx"))
    assert films.numbers(open_video("concat:a.mkv", backend).frames([3, 11])) == [3, 11]


def test_frames_beyond_the_film_are_refused(film_file):
    with pytest.raises(VideoError, match="it has 64"):
        open_video(film_file, "pyav").frames([64])


def test_a_picture_that_decord_gets_wrong_hands_the_film_to_pyav(monkeypatch, tmp_path):
    """One picture that was reached by a seek is compared; a file with other pictures is read by PyAV from then on."""
    import decord

    path = films.write(tmp_path / "a.mp4")
    original = decord.VideoReader.get_batch
    monkeypatch.setattr(decord.VideoReader, "get_batch", lambda self, places: original(self, [n - 2 for n in places]))
    reader = open_video(path)
    assert reader.backend == "decord"
    assert films.numbers(reader.frames([9, 20, 33])) == [9, 20, 33]
    assert (reader.backend, reader.fallback) == ("pyav", "decord returns another picture than PyAV")
