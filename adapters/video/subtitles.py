"""Subtitles, and their placement between the frames of a prompt."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SECONDS = 1.0
"""A line counts as on screen for at least this long around its middle."""


@dataclass(frozen=True)
class Subtitle:
    """A subtitle with its start and end in seconds of the film."""

    start: float
    end: float
    text: str

    @property
    def middle(self) -> float:
        """Time in seconds by which the subtitle is ordered among the frames."""
        return (self.start + self.end) / 2


def interleave(pictures: Sequence[str], times: Sequence[float], subtitles: Sequence[Subtitle]) -> str:
    """Interleave frames with the subtitles on screen in any of them, each after the frames up to its middle.

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
