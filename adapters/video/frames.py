"""Reading frames of any video file: decord first, PyAV with key-frame seeks second, behind one small protocol.

Both readers number frames in display order, turn them upright, seek to the key frame before a wanted frame, and hold no
more pictures than they are asked for at once, so an hour-long film costs no more memory than a short one.
"""

from __future__ import annotations

import bisect
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from namm_transfer.errors import NammTransferError

BACKENDS = ("decord", "pyav")
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif"
"""FFmpeg's names of the formats that are read; playlists, which make it open other files and hosts, are not."""
MAX_PIXELS = 8192 * 4320
"""Largest frame that is decoded; a few bytes of header can promise any size."""
BATCH_PIXELS = 2**25
"""Pixels in memory at once: 16 frames of full HD, fewer of larger ones."""


class VideoError(NammTransferError):
    """A file that cannot be read as video; an evaluation records it and goes on with the next sample."""


class FrameReader(Protocol):
    """Random access to the frames of one file."""

    count: int
    """Frames in the file, at least 1."""
    seconds: float
    """Length of the film."""
    pixels: int
    """Width times height of a frame."""

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, height, width, 3) uint8 RGB frames at ascending `indices`; `VideoError` if one cannot be decoded."""


def open_video(path: str | os.PathLike[str], backend: str = "decord") -> FrameReader:
    """A reader of the file at `path` by "decord" or "pyav".

    Raises:
        VideoError: the file is missing, empty, no video, damaged, or without a single frame.
        NammTransferError: there is no such backend, or its package is not installed.
    """
    if backend not in BACKENDS:
        raise NammTransferError(f"video backend {backend!r} does not exist; choose one of {', '.join(BACKENDS)}")
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"video file {str(path)!r} does not exist")
    if path.stat().st_size == 0:
        raise VideoError(f"video file {str(path)!r} is empty")
    pixels = _probe(path)
    return DecordReader(path, pixels) if backend == "decord" else PyAVReader(path, pixels)


def _probe(path: Path) -> int:
    """Pixels of a frame by the file's header, before a backend that cannot be limited opens it."""
    av = _import("av")
    try:
        with av.open(str(path), container_options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise VideoError(f"video file {str(path)!r} has no video stream")
            context = container.streams.video[0].codec_context
            width, height = context.width, context.height
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(
            f"video file {str(path)!r} has {width} x {height} pixels; expected 1 to {MAX_PIXELS:,} of them"
        )
    return width * height


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NammTransferError(f"reading video by {name} needs: pip install 'namm-transfer[video]'") from error


def uniform_indices(count: int, frames: int) -> np.ndarray:
    """Middles of `frames` equal parts of a film of `count` frames: (frames,) int64, ascending.

    This is the sampling of MLVU's official evaluation. Short films repeat frames.
    """
    if frames < 1:
        raise NammTransferError(f"cannot sample {frames} frames; at least 1 is needed")
    return np.floor((np.arange(frames) + 0.5) * count / frames).astype(np.int64)


def starts_of_parts(count: int, frames: int) -> np.ndarray:
    """Beginnings of `frames` equal parts of a film of `count` frames: (frames,) int64, ascending.

    This is the sampling of LongVideoBench's own loader. A film of fewer frames is its first one.
    """
    return np.arange(frames) * (count // frames)


SAMPLING = {"middles": uniform_indices, "starts": starts_of_parts}
"""Rules by which frames are chosen."""


def in_batches(reader: FrameReader, indices: np.ndarray, size: int = 16) -> Iterator[np.ndarray]:
    """The frames at `indices`, at most `size` and at most `BATCH_PIXELS` in memory at a time."""
    size = max(1, min(size, BATCH_PIXELS // reader.pixels))
    for start in range(0, len(indices), size):
        yield reader.frames(indices[start : start + size])


class ArrayReader:
    """Frames that are decoded already, one a second."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self.count, self.seconds = len(frames), float(len(frames))
        self.pixels = frames.shape[1] * frames.shape[2]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `FrameReader.frames`."""
        return self._frames[indices]


class DecordReader:
    """Frames by decord (`pip install decord2`, the maintained line)."""

    def __init__(self, path: Path, pixels: int) -> None:
        decord = _import("decord")
        decord.logging.set_level(decord.logging.QUIET)
        self.path, self.pixels = path, pixels
        try:
            self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            self.count = len(self._reader)
            rate = float(self._reader.get_avg_fps())
        except Exception as error:  # DECORDError, RuntimeError, IndexError: all mean a file it cannot read
            raise _unreadable(path, error) from error
        if self.count < 1:
            raise VideoError(f"video file {str(path)!r} has no frames")
        self.seconds = self.count / rate if rate > 0 else float(self.count)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `FrameReader.frames`."""
        try:
            return self._reader.get_batch([int(index) for index in indices]).asnumpy()
        except Exception as error:
            raise _unreadable(self.path, error) from error


class PyAVReader:
    """Frames by PyAV: one pass over the packets' time stamps, then key-frame seeks."""

    def __init__(self, path: Path, pixels: int) -> None:
        self._av: Any = _import("av")
        self.path, self.pixels = path, pixels
        try:
            with self._av.open(str(path)) as container:
                stream = container.streams.video[0]
                base = float(stream.time_base or 0)
                packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
                self._stamps = sorted(stamp for stamp, _ in packets)
                self._keys = sorted(stamp for stamp, is_key in packets if is_key)
        except self._av.FFmpegError as error:
            raise _unreadable(path, error) from error
        self.count = len(self._stamps)
        if self.count < 1:
            raise VideoError(f"video file {str(path)!r} has no frames")
        span = self._stamps[-1] - self._stamps[0]
        self.seconds = span * base * self.count / max(1, self.count - 1)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `FrameReader.frames`."""
        wanted = sorted({self._stamps[int(index)] for index in indices})
        found: dict[int, np.ndarray] = {}
        try:
            with self._av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_count = 1
                for group in self._by_key_frame(wanted):
                    container.seek(group[0], stream=stream, backward=True)
                    for frame in container.decode(stream):
                        if frame.pts in group:
                            found[frame.pts] = _upright(frame, stream.codec_context)
                        if frame.pts is not None and frame.pts >= group[-1]:
                            break
        except self._av.FFmpegError as error:
            raise _unreadable(self.path, error) from error
        missing = [stamp for stamp in wanted if stamp not in found]
        if missing:
            raise VideoError(f"video file {str(self.path)!r}: {len(missing)} of {len(wanted)} frames cannot be decoded")
        return np.stack([found[self._stamps[int(index)]] for index in indices])

    def _by_key_frame(self, stamps: list[int]) -> list[list[int]]:
        """Wanted time stamps that share a key frame, decoded together after one seek."""
        groups: dict[int, list[int]] = {}
        for stamp in stamps:
            groups.setdefault(bisect.bisect_right(self._keys, stamp), []).append(stamp)
        return list(groups.values())


def _upright(frame: Any, context: Any) -> np.ndarray:
    """(height, width, 3) uint8 of a PyAV frame in the size of its stream, turned as its display matrix says."""
    picture = frame.reformat(width=context.width, height=context.height, format="rgb24").to_ndarray()
    return np.rot90(picture, round(frame.rotation / 90))


def _unreadable(path: Path, error: Exception) -> VideoError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # decord writes the time and its own source line before every message; a report should not differ by them.
    reason = re.sub(r"\[[\d:]+\] \S+: ", "", lines[-1]).strip()
    return VideoError(f"video file {str(path)!r} cannot be read: {reason}")
