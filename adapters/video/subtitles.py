"""Subtitles in LongVideoBench's form, and where they go between the frames of a prompt."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namm_transfer.errors import NammTransferError
from namm_transfer.files import safe_join

LEAST_SECONDS = 1.0
"""A line counts as on screen for at least this long around its middle."""


@dataclass(frozen=True)
class Subtitle:
    """A line of speech, in seconds of the film."""

    start: float
    end: float
    text: str

    @property
    def middle(self) -> float:
        """Its time among the frames."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class SubtitleFile:
    """A JSON list of lines, each `{timestamp: [start, end], text}` or `{start: "HH:MM:SS.mmm", end: ..., line}`."""

    root: Path
    """Folder it must lie in"""
    name: str
    """Its path in there, as the annotations have it"""
    begins: float
    """The film's first second in the file's time: films are cut from longer ones whose subtitles are whole"""
    seconds: float
    """Length of the film; where a line without an end goes to"""

    def read(self) -> tuple[Subtitle, ...]:
        """Its lines in the film's time.

        Raises:
            NammTransferError: the file leaves its folder, cannot be read, or has a line that does not fit.
        """
        path = safe_join(self.root, self.name)
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NammTransferError(f"subtitle file {str(path)!r} cannot be read: {error}") from error
        try:
            return tuple(self._line(entry) for entry in entries)
        except (TypeError, ValueError, KeyError) as error:
            raise NammTransferError(
                f"subtitle file {str(path)!r} has a line that does not fit ({type(error).__name__}: {error}); "
                "expected {timestamp: [start, end], text} or {start: 'HH:MM:SS.mmm', end, line}"
            ) from error

    def _line(self, entry: Any) -> Subtitle:
        if "timestamp" in entry:
            start, end = entry["timestamp"]
            last = self.begins + self.seconds if end is None else float(end)
            return Subtitle(float(start) - self.begins, last - self.begins, str(entry["text"]))
        return Subtitle(
            _seconds(entry["start"]) - self.begins, _seconds(entry["end"]) - self.begins, str(entry["line"])
        )


def _seconds(stamp: str) -> float:
    hours, minutes, seconds = stamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def interleave(pictures: Sequence[str], times: Sequence[float], subtitles: Sequence[Subtitle]) -> str:
    """The frames' tokens with the lines that were on screen in one of them, each behind the frames up to its middle.

    Args:
        pictures: what stands for each frame in the prompt.
        times: when each frame is, in seconds, ascending.
        subtitles: lines in any order; one that no frame falls into is left out, as LongVideoBench's loader does it.
    """
    behind: list[list[str]] = [[] for _ in range(len(pictures) + 1)]
    for line in sorted(subtitles, key=lambda line: line.middle):
        reach = max(line.end - line.start, LEAST_SECONDS) / 2
        after_start = bisect_right(times, line.middle - reach)
        if after_start < len(times) and times[after_start] < line.middle + reach:
            behind[bisect_right(times, line.middle)].append(f"\n{line.text}\n")
    return "".join(part for lines, picture in zip(behind, (*pictures, ""), strict=True) for part in (*lines, picture))
