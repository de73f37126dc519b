"""Thumbnails of the frames whose tokens the cache kept most and least, for reports."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from namm_transfer.files import write_atomic

SIDE = 64
"""Longest side in pixels."""
LIMIT = 3000
"""Largest size of a thumbnail in bytes."""
EVERY = 16
"""Number of frames up to which all frames of a film are shown."""
ENDS = 4
"""Number of most kept and of least kept frames shown of a longer film."""


def most_and_least(kept: np.ndarray) -> list[int]:
    """Choose the frames to show, ascending: all if they are few, else the four most and the four least kept.

    Args:
        kept: (layers, heads, frames) shares of the frames' tokens that are held.
    """
    shares = kept.mean((0, 1), dtype=np.float64)
    if len(shares) <= EVERY:
        return list(range(len(shares)))
    order = np.argsort(-shares, kind="stable")
    least = np.argsort(shares, kind="stable")[:ENDS]
    return sorted({*order[:ENDS].tolist(), *least.tolist()})


def write_thumbnails(folder: Path, numbers: Sequence[int], pictures: Iterable[np.ndarray]) -> None:
    """Write pictures, (height, width, 3) uint8 each, as `folder/NUMBER.jpg` of at most 3 kB."""
    for number, picture in zip(numbers, pictures, strict=True):
        write_atomic(folder / f"{number:04d}.jpg", jpeg(picture))


def jpeg(picture: np.ndarray, side: int = SIDE, limit: int = LIMIT) -> bytes:
    """Encode a picture, (height, width, 3) uint8, of at most `side` pixels, in about `limit` bytes at most."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((side, side))
    data = b""
    for quality in range(80, 0, -10):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) <= limit:
            break
    return data
