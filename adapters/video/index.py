"""The index of a film file: the pictures that a player shows, in order, each with its real time stamp.

A frame number means nothing before it is known which pictures a player shows. Edit lists hide pictures, time stamps may
be missing, repeated or start anywhere, and frames come as often as they like. For the usual files (H.264, HEVC, VP9 or
AV1 in MP4 or Matroska with complete time stamps) the packets tell all of this without decoding. All other files are
decoded once, and a checksum of every picture is kept, by which a picture that was reached by a seek can be verified.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.adapters.video.container import (
    UPRIGHT,
    VideoError,
    checksum,
    choose_stream,
    import_backend,
    open_film,
    orientation,
    prepare,
    unreadable,
)

EXACT_CONTAINERS = ("mov", "matroska")
EXACT_DECODERS = ("h264", "hevc", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1")
"""Decoders and container formats for which each packet is one picture and carries its presentation time."""
PROBED = 4
"""Pictures that are decoded at opening, to see that their time stamps are those of the packets."""
UNPROMISING = ("mpegts", "mpeg", "ogg")
"""Formats that do not state their length; what FFmpeg gives for it is an estimate from the file's last bytes."""
CLOCK_RESET = (-1.0, 10.0)
"""Seconds between two pictures beyond which their clock was set anew, as where two recordings were joined; gaps count
in formats without a stated length only."""
SMALLEST_PLAIN = 64
"""Smallest width or height that decord decodes correctly, in pixels."""
_MICROSECONDS = 10**6
"""FFmpeg's AV_TIME_BASE: units in a second."""


@dataclass(frozen=True)
class FilmIndex:
    """The pictures that a player shows of one video stream of a file."""

    path: Path
    stream: int
    """Number of the video stream among the file's streams"""
    size: tuple[int, int]
    """Height and width of the coded pictures, before they are turned upright"""
    stamps: np.ndarray
    """(n,) int64 presentation time stamps in the stream's unit, as the decoder gives them"""
    times: np.ndarray
    """(n,) float64 seconds since the film's beginning, ascending"""
    seconds: float
    """End of the last picture"""
    rate: float
    """Average frames a second that the header states; where it states none, that of `times`"""
    keys: np.ndarray
    """(k,) int64 ascending time stamps of the key frames; empty where time stamps do not identify pictures"""
    checksums: np.ndarray | None
    """(n,) uint32 of `checksum`, where the film was decoded; None where its packets told all"""
    why_not_plain: str | None
    """Why frame numbers of another reader would not be trusted; None for a plain file"""

    @property
    def count(self) -> int:
        """Number of pictures, at least 1."""
        return len(self.stamps)

    def distance(self, number: int) -> int:
        """Number of pictures from the preceding key frame to this one; from the first picture if there are none."""
        key = int(np.searchsorted(self.keys, self.stamps[number], side="right")) - 1
        return number - int(np.searchsorted(self.stamps, self.keys[key])) if key >= 0 else number

    def error(self, reason: object) -> VideoError:
        """Make the error that says what is wrong with this file."""
        return unreadable(self.path, reason)


def index_film(path: Path) -> FilmIndex:
    """Build the index of the file at `path`, or take it from memory if the file has not changed since.

    Raises:
        VideoError: the file is missing, empty, no video, damaged, shorter than its header promises, or has no picture.
    """
    try:
        if not path.is_file():
            raise VideoError(f"video file {str(path)!r} does not exist")
        found = path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name too long, a NUL in it
        raise unreadable(path, error) from error
    if found.st_size == 0:
        raise VideoError(f"video file {str(path)!r} is empty")
    return _index(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _index(path: Path, identity: tuple[int, ...]) -> FilmIndex:
    with open_film(path) as container:
        header = _Header.of(path, container)
        listed = _list_packets(container, header) if header.is_exact else None
    if listed is None:
        with open_film(path) as container:
            listed = _list_pictures(container, header)
    times = _times(header, listed.shown)
    last = float(listed.duration * header.unit) or float(np.diff(times)[-1:].sum()) or 1 / (header.rate or 25)
    seconds = float(times[-1]) + last
    _check_length(header, times, seconds)
    return FilmIndex(
        path,
        header.stream,
        header.size,
        listed.stamps,
        times,
        seconds,
        header.rate or len(times) / (seconds - times[0]),
        listed.keys,
        listed.checksums,
        header.why_not_plain or listed.why_not_plain,
    )


@dataclass(frozen=True)
class _Header:
    """Properties of a file known from its header, before its packets are read."""

    path: Path
    format: str
    stream: int
    size: tuple[int, int]
    unit: Fraction
    """Seconds of a time stamp"""
    start: int | None
    """The time stamp that a player calls 0; None where the format stores no presentation times"""
    promised: float | None
    """Seconds that the video stream, or else the longest stream, lasts; None where the format has no such statement"""
    is_stream_promise: bool
    rate: float | None
    is_exact: bool
    why_not_plain: str | None

    @classmethod
    def of(cls, path: Path, container: Any) -> _Header:
        stream = choose_stream(path, container)
        context, name = stream.codec_context, container.format.name.split(",")[0]
        unit = stream.time_base
        begin = container.start_time
        promised = None
        if name == "avi" and stream.frames and stream.average_rate:  # its duration is that of what is there
            promised = float(stream.frames / stream.average_rate)
        elif name not in UNPROMISING and stream.duration is not None:
            promised = float(stream.duration * unit)
        elif name not in UNPROMISING and container.duration is not None:
            promised = container.duration / _MICROSECONDS
        why = None
        if name not in EXACT_CONTAINERS or context.name != "h264" or context.pix_fmt != "yuv420p":
            why = f"it is {context.name} ({context.pix_fmt}) in {name}"
        elif len(container.streams.video) > 1:
            why = "it has several video streams"
        elif min(context.height, context.width) < SMALLEST_PLAIN:
            why = f"it is only {context.width} x {context.height} pixels"
        return cls(
            path,
            name,
            stream.index,
            (context.height, context.width),
            unit,
            None if begin is None or name == "avi" else round(Fraction(begin, _MICROSECONDS) / unit),
            promised,
            stream.duration is not None,
            float(stream.average_rate) if stream.average_rate else None,
            name in EXACT_CONTAINERS and context.name in EXACT_DECODERS,
            why,
        )


@dataclass(frozen=True)
class _Listed:
    """The pictures of a stream in the order of its packets or its decoder."""

    stamps: np.ndarray
    """(n,) int64; 0, 1, ... where the time stamps do not identify pictures"""
    shown: Sequence[int | None]
    """Original time stamps, (n,); values may be missing."""
    keys: np.ndarray
    duration: int
    """Duration of the last picture, in units of the stream; 0 where the file does not state it."""
    checksums: np.ndarray | None = None
    why_not_plain: str | None = None


def _list_packets(container: Any, header: _Header) -> _Listed | None:
    """List the pictures from the packets alone; None if these do not determine exactly what a player shows."""
    stream = prepare(container, header.stream)
    found: list[tuple[int, bool, bool, int]] = []
    probed: list[Any] = []
    for packet in container.demux(stream):
        if len(probed) < PROBED:
            probed += packet.decode()
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise unreadable(header.path, "it ends in the middle of a picture")
        if packet.pts is None:
            return None
        found.append((packet.pts, packet.is_keyframe, packet.is_discard, packet.duration or 0))
    shown = sorted((stamp, duration) for stamp, _, is_hidden, duration in found if not is_hidden)
    stamps = np.array([stamp for stamp, _ in shown], np.int64)
    first, starts_with_key = (found[0][0], found[0][1]) if found else (0, False)
    is_exact = starts_with_key and len(stamps) and stamps[0] >= first and (np.diff(stamps) > 0).all()
    if not is_exact or [frame.pts for frame in probed[:PROBED]] != stamps[:PROBED].tolist():
        return None
    why = None
    if len(found) > len(shown):
        why = "an edit list hides some of its pictures"
    elif _has_leading_pictures([entry[:2] for entry in found]):
        why = "its groups of pictures are open"
    elif orientation(probed[0]) != UPRIGHT:
        why = "its pictures are turned or mirrored"
    keys = np.array(sorted(stamp for stamp, is_key, *_ in found if is_key), np.int64)
    return _Listed(stamps, stamps.tolist(), keys, shown[-1][1], why_not_plain=why)


def _has_leading_pictures(packets: list[tuple[int, bool]]) -> bool:
    """Return True if pictures stored after a key frame are shown before it; these need pictures from before it."""
    latest_key = packets[0][0]
    for stamp, is_key in packets:
        latest_key = stamp if is_key else latest_key
        if stamp < latest_key:
            return True
    return False


def _list_pictures(container: Any, header: _Header) -> _Listed:
    """List the pictures by decoding the whole stream."""
    stream = prepare(container, header.stream)
    shown: list[int | None] = []
    checksums: list[int] = []
    keys: list[int] = []
    duration = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except import_backend("av").FFmpegError:
            if shown:
                raise
            continue  # a recording that begins between two key frames; a player waits for the next
        for frame in frames:
            if frame.is_corrupt:
                raise unreadable(header.path, f"picture {len(shown)} is damaged")
            shown.append(frame.pts)
            checksums.append(checksum(frame))
            duration = frame.duration or 0
            if frame.key_frame and frame.pts is not None:
                keys.append(frame.pts)
    if not shown:
        raise VideoError(f"video file {str(header.path)!r} has no frames")
    if None in shown or (np.diff(np.array(shown, np.int64)) <= 0).any():
        stamps, keys = np.arange(len(shown)), []
    else:
        stamps = np.array(shown, np.int64)
    sums = np.array(checksums, np.uint32)
    return _Listed(stamps, shown, np.array(keys, np.int64), duration, sums, "its packets do not tell its pictures")


def _times(header: _Header, shown: Sequence[int | None]) -> np.ndarray:
    """Compute ascending times in seconds since the film's beginning, also where the clock was missing or reset."""
    known = np.array([stamp for stamp in shown if stamp is not None], np.int64)
    if header.start is None and len(known) == len(shown):
        shown = sorted(known.tolist())  # time stamps in AVI are in the order of decoding
    steps = np.diff(known)
    if len(steps) and (steps > 0).any():
        step = int(np.median(steps[steps > 0]))
    else:
        step = max(1, round(1 / (header.unit * Fraction(header.rate or 25))))
    backward, forward = (round(limit / header.unit) for limit in CLOCK_RESET)
    offset = -min(known[0] if header.start is None else header.start, known[0]) if len(known) else 0
    ticks, last, raw = [], -step, None
    for stamp in shown:
        if stamp is not None:
            jump = 0 if raw is None else stamp - raw
            if jump < backward or (jump > forward and header.format in UNPROMISING):
                offset += last + step - (stamp + offset)
            raw = stamp
        last = last + step if stamp is None else max(stamp + offset, last)
        ticks.append(last)
    return np.array(ticks, np.int64) * header.unit.numerator / header.unit.denominator


def _check_length(header: _Header, times: np.ndarray, seconds: float) -> None:
    """Raise if the film ends before its header says so, by more than a last picture of unknown duration explains."""
    if header.format == "gif" and not header.path.read_bytes().rstrip(b"\0\r\n").endswith(b";"):
        raise unreadable(header.path, "it ends in the middle of a picture")
    tolerance = 0.25 + 2 * float(np.diff(times).max(initial=0))
    if header.promised is None or seconds >= header.promised - tolerance:
        return
    if not header.is_stream_promise and _longest_stream(header) >= header.promised - tolerance:
        return
    raise unreadable(
        header.path, f"its header promises {header.promised:.1f} seconds, but its pictures end at {seconds:.1f}"
    )


def _longest_stream(header: _Header) -> float:
    """Return the time in seconds at which the last packet of any stream ends."""
    with open_film(header.path) as container:
        return max(
            (
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in container.demux()
                if packet.pts is not None
            ),
            default=0.0,
        )
