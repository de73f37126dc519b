"""Opening a film file with PyAV: which formats, which video stream, how large, and which way is up."""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError

CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif"
"""FFmpeg's names of the formats that are read. Playlists, which make FFmpeg open other files and hosts, are not."""
MAX_PIXELS = 8192 * 4320
"""Largest frame that is decoded; a few bytes of header can promise any size."""

UPRIGHT = (False, False, False)
_DEFAULT, _ATTACHED = 1, 1 << 10
"""FFmpeg's AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC"""


class VideoError(NammTransferError):
    """Raised for a file that cannot be read as video; an evaluation records it and continues with the next sample."""


def unreadable(path: Path, reason: object) -> VideoError:
    """Make a `VideoError` that names the file and the last line of a library's message."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    # decord writes the time and its own source line before every message; a report should not differ by them.
    line = re.sub(r"\[[\d:]+\] \S+: ", "", lines[-1]).strip()
    return VideoError(f"video file {str(path)!r} cannot be read: {line}")


def import_backend(name: str) -> Any:
    """Import a video library; a `NammTransferError` says how to install it if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NammTransferError(f"reading video by {name} needs: pip install 'namm-transfer[video]'") from error


@contextmanager
def open_film(path: Path) -> Iterator[Any]:
    """Open a file with PyAV; every error of FFmpeg becomes a `VideoError`."""
    av = import_backend("av")
    options = {"format_whitelist": CONTAINERS}
    try:
        # An absolute path: FFmpeg takes what stands before a colon for a protocol.
        container = av.open(str(path.absolute()), metadata_errors="replace", container_options=options)
    except av.FFmpegError as error:
        reason = f"{error.strerror}; expected a video ({CONTAINERS}), or a folder of pictures"
        raise unreadable(path, reason) from error
    try:
        with container:
            yield container
    except av.FFmpegError as error:
        raise unreadable(path, error) from error


def prepare(container: Any, number: int) -> Any:
    """Return the stream of that number, set to decode in one thread and to refuse more than `MAX_PIXELS`."""
    stream = container.streams[number]
    stream.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def checksum(frame: Any) -> int:
    """Compute a checksum of every eighth row of a decoded frame's first plane, without row padding."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, plane.line_size)
    return zlib.crc32(rows[::8, : plane.width].tobytes())


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Read a decoded frame's display matrix: whether to transpose, then reverse rows, then reverse columns.

    The matrix (ISO/IEC 14496-12, 6.2.2) takes the point (x, y) to (a x + c y, b x + d y).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def choose_stream(path: Path, container: Any) -> Any:
    """Choose the video stream that a player shows: the first default one, else the first; never a cover picture."""
    streams = [stream for stream in container.streams.video if not stream.disposition.value & _ATTACHED]
    if not streams:
        raise VideoError(f"video file {str(path)!r} has no video stream")
    chosen = next((stream for stream in streams if stream.disposition.value & _DEFAULT), streams[0])
    if chosen.codec_context is None:
        raise unreadable(path, "FFmpeg has no decoder for its video stream")
    width, height = chosen.codec_context.width, chosen.codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(
            f"video file {str(path)!r} has {width} x {height} pixels; expected 1 to {MAX_PIXELS:,} of them"
        )
    return chosen
