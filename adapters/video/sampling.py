"""Frame sampling: one function for each rule, named after its source, that chooses a film's frames for a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from transformers.video_utils import VideoMetadata

from namm_transfer.adapters.loading import in_short
from namm_transfer.adapters.video.container import VideoError
from namm_transfer.errors import NammTransferError

Rule = Literal["uniform", "mlvu", "longvideobench"]


class Film(Protocol):
    """The properties of a film that sampling rules use; a `FrameReader` has them."""

    count: int
    times: np.ndarray
    seconds: float
    rate: float


def uniform_indices(count: int, frames: int) -> np.ndarray:
    """Choose the middles of `frames` equal parts of a film of `count` frames: (frames,) int64, ascending.

    This package's own rule. Short films repeat frames.
    """
    if frames < 1:
        raise NammTransferError(f"cannot sample {frames} frames; at least 1 is needed")
    return np.floor((np.arange(frames) + 0.5) * count / frames).astype(np.int64)


def mlvu_indices(count: int, frames: int) -> np.ndarray:
    """Choose frames as MLVU's official evaluation (`choice_bench.py`) does: (frames,) int64, ascending.

    Part i of equal parts of the `count` - 1 steps between frames is shown by the frame half a part, rounded down,
    behind its beginning, rounded to the nearest even number where it lies between two.
    """
    if frames < 1:
        raise NammTransferError(f"cannot sample {frames} frames; at least 1 is needed")
    part = (count - 1) / frames
    return int(part / 2) + np.rint(part * np.arange(frames)).astype(np.int64)


def longvideobench_indices(count: int, rate: float, duration: float, frames: int) -> np.ndarray:
    """Choose frames as LongVideoBench's loader (`longvideobench_dataset.py`) does: (n,) int64, ascending.

    They are the beginnings of equal parts of the first `duration` seconds (the annotated length) at the file's average
    frame rate, truncated to whole frames; at most one frame a second.

    Raises:
        VideoError: less than a second, or a file with fewer frames than the annotated duration needs.
    """
    sampled = min(frames, int(duration))
    if sampled < 1:
        raise VideoError(f"cannot sample {frames} frames of {duration} seconds; expected at least 1 of 1 second")
    found = np.arange(sampled, dtype=np.int64) * int(int(duration * rate) / sampled)
    if found[-1] >= count:
        raise VideoError(
            f"LongVideoBench's rule needs frame {found[-1]} for the annotated {duration:.1f} seconds; "
            f"the film has {count} frames"
        )
    return found


def model_indices(processor: Any, film: Film, fps: float, frames: int) -> np.ndarray:
    """Choose frames as a model's own video processor does at `fps` frames a second: (n,) int64, ascending.

    A film shows one frame at least, and each at most once; the processor's limits on their number apply. More than
    `frames` are thinned to middles of equal parts.

    Raises:
        NammTransferError: it cannot sample the film so.
    """
    if film.count == 1:
        return np.zeros(1, dtype=np.int64)
    rate = film.count / film.seconds
    told = VideoMetadata(total_num_frames=film.count, fps=rate, duration=film.seconds)
    possible = min(max(fps, (1 + 1e-9) / film.seconds), rate)
    try:
        found = np.asarray(processor.sample_frames(told, fps=possible), dtype=np.int64)
    except Exception as error:  # every model has a rule of its own
        raise NammTransferError(f"cannot sample {fps} frames a second: {in_short(error)}") from error
    return found if len(found) <= frames else found[uniform_indices(len(found), frames)]


def some_of(indices: np.ndarray, shown: str | None) -> np.ndarray:
    """Choose some of the sampled frames: ``last:N``, or ``even:N``, the middles of N equal parts; None takes all.

    Raises:
        NammTransferError: ``shown`` is written in another way.
    """
    if shown is None:
        return indices
    found = re.fullmatch(r"(last|even):([1-9]\d{0,5})", shown, re.ASCII)
    if found is None:
        raise NammTransferError(f"shown frames {shown!r}: expected last:N or even:N with a positive number N")
    count = min(int(found[2]), len(indices))
    return indices[-count:] if found[1] == "last" else indices[uniform_indices(len(indices), count)]


def _uniform(film: Film, frames: int, duration: float | None = None) -> np.ndarray:
    return uniform_indices(film.count, frames)


def _mlvu(film: Film, frames: int, duration: float | None = None) -> np.ndarray:
    return mlvu_indices(film.count, frames)


def _longvideobench(film: Film, frames: int, duration: float | None = None) -> np.ndarray:
    if duration is None:
        raise NammTransferError("LongVideoBench's rule needs the annotated duration; expected seconds, not None")
    return longvideobench_indices(film.count, film.rate, duration, frames)


SAMPLING: dict[Rule, Callable[[Film, int, float | None], np.ndarray]] = {
    "uniform": _uniform,
    "mlvu": _mlvu,
    "longvideobench": _longvideobench,
}
"""Sampling rules by name: functions of a film, the largest number of frames, and the annotated duration in seconds or
None, which return the ascending indices of the frames."""


def length_warning(film: Film, duration: float | None) -> str | None:
    """Return a warning if a film's annotated duration, in seconds, differs from that of its file, else None.

    Durations are often annotated in whole seconds, so that a difference of up to a second plus 2 % is ignored.
    """
    if duration is None or abs(film.seconds - duration) <= 1 + 0.02 * duration:
        return None
    return f"the film lasts {film.seconds:.1f} seconds, the annotations say {duration:.1f}"
