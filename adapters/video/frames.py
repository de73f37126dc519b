"""Reading frames of any video file: the pictures that a player shows, upright, by number or by time.

`index.py` lists the pictures of a file with their time stamps. PyAV reads every file and checks by time stamp, or by
checksum where the film had to be decoded once anyway, that the picture it reached is the one asked for. decord reads
plain files, whose frame numbers mean the same to it; for all others, and whenever it fails, PyAV takes over, and the
reader's `backend` says so. Neither holds more pictures than it is asked for at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from namm_transfer.adapters.video.container import (
    VideoError,
    checksum,
    import_backend,
    open_film,
    orientation,
    prepare,
)
from namm_transfer.adapters.video.index import FilmIndex, index_film
from namm_transfer.adapters.video.sampling import SAMPLING, length_warning, uniform_indices
from namm_transfer.errors import NammTransferError

__all__ = [
    "BACKENDS",
    "SAMPLING",
    "ArrayReader",
    "FilmReader",
    "FrameReader",
    "VideoError",
    "facts_of",
    "in_batches",
    "open_video",
    "uniform_indices",
]

BACKENDS = ("decord", "pyav")
BATCH_PIXELS = 2**25
"""Pixels in memory at once: 16 frames of full HD, fewer of larger ones."""
ROUNDING = 2.0
"""Mean difference, of 255, that two decoders' conversions of one picture to RGB stay below."""


class FrameReader(Protocol):
    """Random access to the frames of one film."""

    count: int
    """Number of frames that a player shows, at least 1."""
    times: np.ndarray
    """(count,) float64 seconds at which each frame is shown, ascending."""
    seconds: float
    """Length of the film in seconds."""
    rate: float
    """Average frames a second that the file states."""
    pixels: int
    """Width times height of a frame."""
    backend: str
    """Decoder of the frames: "decord", "pyav", or "array" for frames in memory."""

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames at ascending `indices`, (n, height, width, 3) uint8 RGB; `VideoError` if one is undecodable."""


def open_video(path: str | os.PathLike[str], backend: str = "decord") -> FilmReader:
    """Open the file at `path` with "decord" if it reads this file correctly, else with "pyav".

    Raises:
        VideoError: the file is missing, empty, no video, damaged, truncated, or without a single frame.
        NammTransferError: there is no such backend, or its package is not installed.
    """
    if backend not in BACKENDS:
        raise NammTransferError(f"video backend {backend!r} does not exist; choose one of {', '.join(BACKENDS)}")
    import_backend({"decord": "decord", "pyav": "av"}[backend])
    return FilmReader(index_film(Path(path)), backend)


def in_batches(reader: FrameReader, indices: np.ndarray, size: int = 16) -> Iterator[np.ndarray]:
    """Yield the frames at `indices` in batches of at most `size` frames and `BATCH_PIXELS` pixels."""
    size = max(1, min(size, BATCH_PIXELS // reader.pixels))
    for start in range(0, len(indices), size):
        yield reader.frames(indices[start : start + size])


class ArrayReader:
    """A reader of frames in memory, one a second."""

    backend = "array"
    rate = 1.0

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self.count, self.seconds = len(frames), float(len(frames))
        self.times = np.arange(self.count, dtype=np.float64)
        self.pixels = frames.shape[1] * frames.shape[2]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames at ascending `indices`, as `FrameReader.frames` describes."""
        return self._frames[indices]


class FilmReader:
    """A reader of a video file; `backend` names the decoder, `fallback` the reason if it is not the requested one."""

    def __init__(self, index: FilmIndex, backend: str) -> None:
        self._index = index
        self.count, self.times, self.seconds, self.rate = index.count, index.times, index.seconds, index.rate
        self.pixels = index.size[0] * index.size[1]
        self._pyav = _PyAVReader(index)
        self._decord: _DecordReader | None = None
        self.backend, self.fallback = "pyav", None if backend == "pyav" else index.why_not_plain
        if backend == "decord" and index.why_not_plain is None:
            try:
                self._decord = _DecordReader(index, self._pyav)
                self.backend = "decord"
            except _Unfit as reason:
                self.fallback = str(reason)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames at ascending `indices`, as `FrameReader.frames` describes."""
        wanted = [int(number) for number in indices]
        if any(not 0 <= number < self.count for number in wanted):
            raise self._index.error(f"frames {wanted} are asked for, but it has {self.count}")
        if self._decord is not None:
            try:
                return self._decord.frames(wanted)
            except _Unfit as reason:
                self._decord, self.backend, self.fallback = None, "pyav", str(reason)
        return self._pyav.frames(wanted)


def facts_of(readers: Sequence[FrameReader], duration: float | None) -> dict[str, str]:
    """Describe how the files of a sample, annotated with a duration in seconds, were read, for its record.

    Returns:
        `decoder`: what read them; `fallback`: why it is not what was asked for; `length`: that a film lasts longer or
        shorter than annotated. Each is there only if there is something to say.
    """
    films = [film for reader in readers if isinstance(film := getattr(reader, "film", reader), FilmReader)]  # of clips
    facts = {
        "decoder": [film.backend for film in films],
        "fallback": [film.fallback for film in films if film.fallback],
        "length": list(filter(None, (length_warning(film, duration) for film in films))),
    }
    return {name: "; ".join(dict.fromkeys(texts)) for name, texts in facts.items() if texts}


class _Unfit(Exception):
    """Raised if decord does not read this file correctly; the message says why."""


class _DecordReader:
    """Frames of a plain file by decord (`pip install decord2`, the maintained line)."""

    def __init__(self, index: FilmIndex, check: _PyAVReader) -> None:
        decord = import_backend("decord")
        decord.logging.set_level(decord.logging.QUIET)
        self._index, self._check = index, check
        self._is_checked = False
        try:
            self._reader = decord.VideoReader(str(index.path.absolute()), ctx=decord.cpu(0), num_threads=1)
            times = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0]
        except Exception as error:  # DECORDError, RuntimeError, IndexError: all mean a file it cannot read
            raise _Unfit(f"decord cannot read it: {index.error(error)}") from error
        stamps = index.times - index.times[0]
        if len(times) != index.count or not np.allclose(times - times[0], stamps, rtol=1e-6, atol=1e-3):
            raise _Unfit("decord finds another number of frames")

    def frames(self, wanted: list[int]) -> np.ndarray:
        """Read frames at ascending indices; one of them is compared with PyAV's after a seek."""
        try:
            found: np.ndarray = self._reader.get_batch(wanted).asnumpy()
            # decord goes on decoding in a thread of its own, without limit; a seek stops it and drops what it has.
            self._reader.seek(0)
        except Exception as error:
            raise _Unfit(f"decord cannot read it: {self._index.error(error)}") from error
        if not self._is_checked and (after := [n for n in wanted if self._index.distance(n) < n]):
            number = min(after, key=self._index.distance)
            (expected,) = self._check.frames([number])
            shown = found[wanted.index(number)]
            if shown.shape != expected.shape or np.abs(shown.astype(np.int16) - expected).mean() > ROUNDING:
                raise _Unfit("decord returns another picture than PyAV")
            self._is_checked = True
        return found


class _PyAVReader:
    """A reader by PyAV that seeks to a key frame and verifies the pictures it decodes."""

    def __init__(self, index: FilmIndex) -> None:
        self._index = index
        self._open = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._run: Iterator[tuple[int, Any]] = iter(())
        self._at: int | None = None
        """Number of the picture that `_run` yielded last."""

    def frames(self, wanted: Sequence[int]) -> np.ndarray:
        """Read frames at any indices; ascending ones are fastest."""
        found = {number: self._picture(number) for number in sorted(set(wanted))}
        return np.stack([found[number] for number in wanted])

    def _picture(self, number: int) -> np.ndarray:
        index = self._index
        error: Exception | None = None
        if self._at is not None and number - index.distance(number) - 1 <= self._at < number:
            runs: Iterator[Iterator[tuple[int, Any]]] = itertools.chain([self._run], self._runs(number))
        else:
            runs = self._runs(number)
        for run in runs:
            self._run = run
            try:
                for at, frame in run:
                    self._at = at
                    if at == number and (index.checksums is None or checksum(frame) == index.checksums[number]):
                        return _upright(frame, index.size)
                    if at >= number:
                        break
            except import_backend("av").FFmpegError as problem:
                error = problem
        self._at = None
        raise index.error(error or f"frame {number} of {index.count} cannot be decoded")

    def _runs(self, number: int) -> Iterator[Iterator[tuple[int, Any]]]:
        """Yield decodings of the pictures up to `number`, from ever earlier key frames, at last from the first.

        Each yields numbered pictures, which the caller must verify.
        """
        stamps, keys = self._index.stamps, self._index.keys
        last = int(np.searchsorted(keys, stamps[number], side="right")) - 1
        back = 0
        while last - back > 0:
            if self._container is None:
                self._reopen()
            yield self._from_key(int(keys[last - back]))
            back = 2 * back + 1
        self._reopen()
        yield self._followed(0, self._decoded(self._container.demux(self._stream)))

    def _reopen(self) -> None:
        self._open.close()
        self._container = self._open.enter_context(open_film(self._index.path))
        self._stream = prepare(self._container, self._index.stream)

    def _from_key(self, stamp: int) -> Iterator[tuple[int, Any]]:
        stamps = self._index.stamps
        self._container.seek(stamp, stream=self._stream)
        packets = self._container.demux(self._stream)
        key = next((packet for packet in packets if packet.is_keyframe), None)
        if key is None:
            return
        frames = self._decoded(itertools.chain([key], packets))
        if self._index.checksums is None:
            # Pictures shown before the key frame at which decoding began may need some from before it.
            yield from self._followed(int(np.searchsorted(stamps, key.pts)), (f for f in frames if f.pts >= key.pts))
            return
        for frame in frames:
            place = int(np.searchsorted(stamps, -1 if frame.pts is None else frame.pts))
            if place < len(stamps) and stamps[place] == frame.pts:
                yield place, frame

    def _decoded(self, packets: Iterable[Any]) -> Iterator[Any]:
        return itertools.chain.from_iterable(packet.decode() for packet in packets)

    def _followed(self, first: int, frames: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """Number frames from `first` on, as long as their time stamps are those of the index."""
        index = self._index
        for number, frame in zip(range(first, index.count), frames, strict=False):
            if len(index.keys) and frame.pts != index.stamps[number]:
                return
            yield number, frame


def _upright(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """Convert a decoded frame to (height, width, 3) uint8 in its stream's size, oriented by its display matrix."""
    picture: np.ndarray = frame.reformat(width=size[1], height=size[0], format="rgb24").to_ndarray()
    is_transposed, reverse_rows, reverse_columns = orientation(frame)
    if is_transposed:
        picture = picture.swapaxes(0, 1)
    return picture[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]
