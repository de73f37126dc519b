"""What a benchmark about videos is: a folder that becomes multiple-choice questions, and how its authors score it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.frames import VideoError
from namm_transfer.adapters.video.sampling import Rule
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.video.subtitle_files import SubtitleFile
from namm_transfer.files import safe_join


@dataclass(frozen=True)
class VideoQuestion:
    """One multiple-choice question about one video file."""

    id: str
    """Unique in its benchmark"""
    root: Path
    """Folder its video must lie in"""
    name: str
    """The video's path in there, as the annotations have it"""
    prompt: str
    """What the user says, in the benchmark's official form"""
    options: tuple[str, ...]
    answer: int | None
    """Index of the right option; None where the annotations name none of the options, and every answer is wrong"""
    kind: str
    """Question type"""
    duration: float | None
    """Seconds, if the annotations say"""
    lead: str = prompts.LEAD
    """How the answer begins"""
    by_letter: bool = True
    """The answer is an option's letter; else it is the option itself"""
    groups: tuple[str, ...] = ()
    """What else its score is averaged by: a duration group, a topic"""
    frames: int | None = None
    """Frames to sample at most"""
    sampling: Rule = "uniform"
    """The rule that chooses the frames, see `adapters/video/sampling.py`"""
    subtitles: SubtitleFile | None = None
    """What is said in the video"""
    flaw: str | None = None
    """Why the question cannot be scored; it fails alone, and the others are asked"""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the annotations, which go into the record"""

    @property
    def video(self) -> Path:
        """Where the video lies; `VideoError` if the annotations name a place outside `root`."""
        try:
            return safe_join(self.root, self.name)
        except NammTransferError as error:
            raise VideoError(f"video {error}") from None

    @property
    def choices(self) -> tuple[str, ...]:
        """Continuations of `lead`, one an option: its letter, or the option itself."""
        words = prompts.letters(self.options) if self.by_letter else self.options
        return words if self.lead else tuple(f" {word}" for word in words)

    @property
    def cluster(self) -> str:
        """One name for a video, however the annotations write its path: questions on it are no independent draws."""
        try:
            name = self.video.resolve().relative_to(self.root.resolve()).as_posix()
        except (NammTransferError, OSError, ValueError, RuntimeError):
            name = os.path.normpath(self.name)
        return f"{self.root.name}/{name}"


@dataclass(frozen=True)
class VideoBenchmark:
    """A benchmark that lies in a folder which the user has downloaded."""

    name: str
    """On the command line: `--benchmark NAME`"""
    annotations: tuple[str, ...]
    """Files or folders in there with the questions, which a report names and hashes"""
    load: Callable[[Path], list[VideoQuestion]]
    """The questions in the folder; `NammTransferError` if they cannot be read, naming file and entry"""
    headline: Mapping[str, Any]
    """The official score: `name`, `rule` ("mean over categories" or "mean over samples") and `categories`, all of them,
    so that a report can say which are missing"""
    files: Mapping[str, str] = field(default_factory=dict)
    """Category -> the file that it comes from, where each has one"""


def check_options(options: Sequence[Any], where: str) -> None:
    """Raise `NammTransferError` unless these are 2 to 26 texts."""
    if not (2 <= len(options) <= 26 and all(isinstance(option, str) for option in options)):
        raise NammTransferError(f"{where}: 'candidates' is {repr(list(options))[:200]}; expected 2 to 26 texts")


def indistinct(options: Sequence[str]) -> tuple[int, int] | None:
    """Indices of the first two options that are the same but for case, white space and Unicode's forms."""
    plain = [" ".join(unicodedata.normalize("NFKC", option).casefold().split()) for option in options]
    return next(((plain.index(text), at) for at, text in enumerate(plain) if plain.index(text) < at), None)


def flaw_of(options: Sequence[str], answer: int | None, where: str) -> str | None:
    """Why a question of an official file cannot be scored: its right option is there twice; else None.

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
