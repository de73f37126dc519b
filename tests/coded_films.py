"""Films whose every picture carries its number, and the ways in which real files come to differ from plain ones.

The upper half of picture n shows the bits of n as white and black blocks, and below them their complement, so that any
picture says whether it can be read at all. The lower half has a red left and a blue right corner: which way is up.
"""

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

BITS = 10
SIZE = (96, 160)
"""Height and width, unless another size is asked for."""
RATE = 10
DEFAULT, COVER = 1, 1 << 10
"""FFmpeg's AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC"""


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(height, width, 3) uint8 that shows `number`."""
    height, width = size
    shown = np.full((height, width, 3), 100, np.uint8)
    for bit in range(BITS):
        is_set = bool(number >> bit & 1)
        columns = slice(bit * width // BITS, (bit + 1) * width // BITS)
        shown[: height // 4, columns] = 255 * is_set
        shown[height // 4 : height // 2, columns] = 255 * (not is_set)
    left = number * 5 % (width - width // 8)
    shown[height // 2 : 3 * height // 4, left : left + width // 8] = (60, 200, 60)
    shown[3 * height // 4 :, : width // 4] = (230, 0, 0)
    shown[3 * height // 4 :, -(width // 4) :] = (0, 0, 230)
    return shown


def number(shown: np.ndarray) -> int:
    """The number that a picture shows, or -1 if it cannot be read."""
    height, width = shown.shape[:2]
    grey = shown.mean(2)
    found = 0
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        middle = slice(left + (right - left) // 4, right - (right - left) // 4)
        upper = grey[height // 16 : 3 * height // 16, middle].mean()
        lower = grey[5 * height // 16 : 7 * height // 16, middle].mean()
        if abs(upper - lower) < 100:
            return -1
        found |= int(upper > lower) << bit
    return found


def numbers(pictures: Iterable[np.ndarray]) -> list[int]:
    """`number` of each."""
    return [number(shown) for shown in pictures]


def write(
    path: Path,
    count: int = 60,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    rate: int | Fraction = RATE,
    stamps: Callable[[int], int] | None = None,
    first: int = 0,
    format: str | None = None,
    muxer: dict[str, str] | None = None,
    title: str = "",
    **options: str,
) -> Path:
    """A film of the pictures `first`, `first` + 1, ... in the container of the file's suffix.

    Args:
        stamps: milliseconds at which picture n is shown; by default pictures are 1 / `rate` seconds apart.
        options: of the encoder; libx264 makes a key frame every 8 pictures, and B-frames, unless they say otherwise.
    """
    defaults = {"libx264": {"preset": "veryfast", "g": "8", "sc_threshold": "0"}}
    with av.open(str(path), "w", format=format, options=muxer or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=defaults.get(codec, {}) | options)
        (stream.height, stream.width), stream.pix_fmt = size, pix_fmt
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for place in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + place, size), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps(place), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(
    source: Path,
    target: Path,
    *,
    shift: float = 0,
    begin: float | None = None,
    end: float | None = None,
    filter: str | None = None,
    **options: str,
) -> Path:
    """The same coded pictures in another container, without decoding them.

    Args:
        shift: seconds added to every time stamp.
        begin: start at the key frame before this second and call it 0, as `ffmpeg -ss BEGIN -c copy` does.
        end: leave out packets from this second on.
        filter: a bitstream filter, which some containers need.
        options: of the muxer.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        copy.time_base = 1 / stream.average_rate if target.suffix == ".avi" else stream.time_base
        if begin is not None:
            old.seek(round(begin / stream.time_base), stream=stream)
        ticks = round((shift - (begin or 0)) / stream.time_base)
        filtered = BitStreamFilterContext(filter, stream, copy).filter if filter else lambda packet: [packet]
        for packet in old.demux(stream):
            if packet.dts is None or (end is not None and packet.dts * stream.time_base >= end):
                continue
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            for ready in filtered(packet):
                ready.stream = copy
                new.mux(ready)
    return target


def joined(target: Path, *sources: Path) -> Path:
    """Several films one after the other in one file, byte by byte, as transport streams may be."""
    target.write_bytes(b"".join(source.read_bytes() for source in sources))
    return target


def several(target: Path, films: list[tuple[int, int, int]], size: tuple[int, int] = SIZE) -> Path:
    """One file with a video stream for each (first number, count, disposition); the latter are FFmpeg's constants."""
    with av.open(str(target), "w") as container:
        streams = []
        for _, _, disposition in films:
            is_cover = disposition == COVER
            stream = container.add_stream("mjpeg" if is_cover else "mpeg4", rate=RATE)
            (stream.height, stream.width), stream.pix_fmt = size, "yuvj420p" if is_cover else "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream, (first, count, _) in zip(streams, films, strict=True):
            for place in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(first + place, size), format="rgb24")))
            container.mux(stream.encode())
    return target


def set_matrix(film: Path, a: int, b: int, c: int, d: int) -> Path:
    """Give an MP4's only track a display matrix, in place; version 0 of `tkhd` has it 40 bytes after its name."""
    data = bytearray(film.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, place, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    film.write_bytes(data)
    return film


def truncate(source: Path, target: Path, share: float = 0.6) -> Path:
    """The first bytes of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target
