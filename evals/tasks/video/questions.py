"""Video benchmarks: the multiple-choice questions in a downloaded folder, and the official score."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.clip import Span
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.adapters.video.sampling import Rule
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.video.subtitle_files import SubtitleFile
from namm_transfer.files import safe_join


@dataclass(frozen=True)
class VideoQuestion:
    """One multiple-choice question about one video: a file, or a folder of frames."""

    id: str
    """Identifier, unique in its benchmark."""
    root: Path
    """Folder that must contain the video."""
    name: str
    """The video's path in `root`, as given in the annotations."""
    prompt: str
    """The user's message, in the benchmark's official form."""
    options: tuple[str, ...]
    answer: int | None
    """Index of the right option; None where the annotations name none of the options, and every answer is wrong"""
    kind: str
    """Question type"""
    duration: float | None
    """Length in seconds, if annotated."""
    lead: str = prompts.LEAD
    """Given beginning of the answer."""
    by_letter: bool = True
    """True if the answer is an option's letter; else it is the option's text."""
    groups: tuple[str, ...] = ()
    """Further groups over which scores are averaged, such as a duration group or a topic."""
    frames: int | None = None
    """Largest number of frames to sample."""
    sampling: Rule = "uniform"
    """Name of the sampling rule, see `adapters/video/sampling.py`."""
    subtitles: SubtitleFile | None = None
    """Subtitles of the video."""
    asked_at: float | None = None
    """Seconds of the video at which the question is asked; only frames shown before may be seen. None: at its end."""
    flaw: str | None = None
    """Reason why the question cannot be scored; only this question then fails."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the annotations, stored in the record."""
    span: Span | None = None
    """Start and end in seconds of the part that is shown; by default all of it."""
    frame_times: float | tuple[float, ...] = 1.0
    """Frames a second, or the time of each frame in seconds, where the video is a folder of frames."""

    @property
    def video(self) -> Path:
        """Path of the video; `VideoError` if the annotations name a place outside `root`."""
        try:
            return safe_join(self.root, self.name)
        except NammTransferError as error:
            raise VideoError(f"video {error}") from None

    @property
    def choices(self) -> tuple[str, ...]:
        """Continuations of `lead`, one for each option: its letter or its text."""
        words = prompts.letters(self.options) if self.by_letter else self.options
        return words if self.lead else tuple(f" {word}" for word in words)

    @property
    def cluster(self) -> str:
        """Normalised path of the video, which groups its questions into one cluster: they are not independent draws."""
        try:
            name = self.video.resolve().relative_to(self.root.resolve()).as_posix()
        except (NammTransferError, OSError, ValueError, RuntimeError):
            name = os.path.normpath(self.name)
        return f"{self.root.name}/{name}"


@dataclass(frozen=True)
class VideoBenchmark:
    """A video benchmark in a folder that the user has downloaded."""

    name: str
    """Name on the command line: `--benchmark NAME`."""
    annotations: tuple[str, ...]
    """Files or folders with the questions, which a report names and hashes."""
    load: Callable[[Path], list[VideoQuestion]]
    """Function that loads the folder's questions; its `NammTransferError` names file and entry."""
    headline: Mapping[str, Any]
    """The official score: `name`, `rule` ("mean over categories" or "mean over samples") and `categories`, all of them,
    so that a report can say which are missing"""
    files: Mapping[str, str] = field(default_factory=dict)
    """Category -> the file that it comes from, where each has one"""


def check_options(options: Sequence[Any], where: str) -> None:
    """Raise `NammTransferError` unless the options are 2 to 26 texts."""
    if not (2 <= len(options) <= 26 and all(isinstance(option, str) for option in options)):
        raise NammTransferError(f"{where}: 'candidates' is {repr(list(options))[:200]}; expected 2 to 26 texts")


def indistinct(options: Sequence[str]) -> tuple[int, int] | None:
    """Find the first two options that are equal up to case, white space and Unicode normalisation; their indices."""
    plain = [" ".join(unicodedata.normalize("NFKC", option).casefold().split()) for option in options]
    return next(((plain.index(text), at) for at, text in enumerate(plain) if plain.index(text) < at), None)


def flaw_of(options: Sequence[str], answer: int | None, where: str) -> str | None:
    """Return the reason why a question cannot be scored if its right option occurs twice, else None.

    Two equal wrong options do no harm to an answer by letter, and official files have some.
    """
    same = [
        at
        for at in range(len(options))
        if answer is not None and at != answer and indistinct((options[at], options[answer]))
    ]
    if not same:
        return None
    return f"{where}: option {options[same[0]]!r} is there twice and is the right one; expected options that differ"
