"""A part of a film, between two times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from namm_transfer.adapters.video.container import VideoError
from namm_transfer.adapters.video.frames import FrameReader
from namm_transfer.errors import NammTransferError

Span: TypeAlias = tuple[float, float | None]
"""Start and end in seconds; None is the end of the film."""


def check_span(start: float | None, end: float | None) -> Span | None:
    """Return the span from `start` to `end`, or None for the whole film.

    Raises:
        NammTransferError: it does not begin at 0 or later, or does not end after its beginning.
    """
    if start is None and end is None:
        return None
    begin = start or 0.0
    if not 0 <= begin < (float("inf") if end is None else end):
        raise NammTransferError(
            f"a clip from {begin:g} to {end} seconds; expected it to begin at 0 or later and to end after that"
        )
    return begin, end


class ClipReader:
    """A reader of the frames that are on screen from the start of a span to its end; their times stay the film's."""

    def __init__(self, film: FrameReader, span: Span) -> None:
        """Find the frames.

        Raises:
            VideoError: the film ends before the span begins.
        """
        start, end = span
        if start >= film.seconds:
            raise VideoError(f"a clip from {start:g} seconds on; the film lasts {film.seconds:.1f}")
        self.film, self.rate, self.pixels, self.backend = film, film.rate, film.pixels, film.backend
        self._first = max(0, int(np.searchsorted(film.times, start, side="right")) - 1)
        last = film.count if end is None else int(np.searchsorted(film.times, end, side="left"))
        last = max(last, self._first + 1)
        self.times, self.count = film.times[self._first : last], last - self._first
        self.seconds = min(film.seconds, film.seconds if end is None else end) - start

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames at ascending `indices` of the clip, as `FrameReader.frames` describes."""
        return self.film.frames(np.asarray(indices, dtype=np.int64) + self._first)
