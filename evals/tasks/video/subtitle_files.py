"""Subtitles in LongVideoBench's two forms, each a JSON list of lines with their times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from namm_transfer.adapters.video.subtitles import Subtitle
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.json_files import read_json
from namm_transfer.files import safe_join


@dataclass(frozen=True)
class SubtitleFile:
    """A JSON list of lines, each `{timestamp: [start, end], text}` or `{start: "HH:MM:SS.mmm", end: ..., line}`."""

    root: Path
    """Folder that must contain the file."""
    name: str
    """Path in `root`, as given in the annotations."""
    begins: float
    """The film's first second in the file's time: films may be clips of longer ones with complete subtitles."""
    seconds: float
    """Length of the film; where a line without an end goes to"""

    def read(self) -> tuple[Subtitle, ...]:
        """Read the subtitles, with times relative to the film.

        Raises:
            NammTransferError: the file leaves its folder, cannot be read, or has a line that does not fit; the message
                names file and line.
        """
        path = safe_join(self.root, self.name)
        lines = []
        for number, entry in enumerate(read_json(path, list, "subtitle file")):
            try:
                lines.append(self._line(entry))
            except (TypeError, ValueError, KeyError, OverflowError) as error:
                raise NammTransferError(
                    f"subtitle file {str(path)!r}, entry {number} does not fit ({type(error).__name__}: {error}); "
                    "expected {timestamp: [start, end], text} or {start: 'HH:MM:SS.mmm', end, line}"
                ) from error
        return tuple(lines)

    def _line(self, entry: Any) -> Subtitle:
        if not isinstance(entry, dict):
            raise TypeError(f"it is a {type(entry).__name__}")
        if "timestamp" in entry:
            start, end = entry["timestamp"]
            last = self.begins + self.seconds if end is None else _number(end)
            return Subtitle(_number(start) - self.begins, last - self.begins, _text(entry["text"]))
        start, end = _seconds(entry["start"]), _seconds(entry["end"])
        return Subtitle(start - self.begins, end - self.begins, _text(entry["line"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text {value!r} is a {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not math.isfinite(float(value)):
        raise ValueError(f"time {value!r} is no number of seconds")
    return float(value)


def _seconds(stamp: Any) -> float:
    hours, minutes, seconds = _text(stamp).split(":")
    return _number(3600 * int(hours) + 60 * int(minutes) + _number(seconds))
