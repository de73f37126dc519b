"""Data types of video-language adapters: samples, encoded samples and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import Tensor

from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.clip import Span
from namm_transfer.adapters.video.sampling import Rule
from namm_transfer.adapters.video.subtitles import Subtitle

Video: TypeAlias = str | Path | np.ndarray
"""A file, a folder of frames, or frames that are decoded already, one a second: (count, height, width, 3) uint8 RGB."""


@dataclass(frozen=True)
class VideoSample:
    """A question about a video, with the continuations that are its possible answers."""

    video: Video | tuple[Video, ...]
    """One video, several that the model reads in order, or () for none."""
    prompt: str
    """The user's message after the video."""
    lead: str = prompts.LEAD
    """Given beginning of the answer, which the choices continue."""
    choices: tuple[str, ...] = ("A", "B", "C", "D")
    """Continuations of `lead`; the most probable one is the answer."""
    options: tuple[str, ...] = ()
    """The options behind `choices`, where these are letters; a generated answer may name them instead"""
    frames: int = 64
    """Number of frames sampled from each video; with `fps`, the largest number."""
    sampling: Rule = "uniform"
    """Name of the sampling rule, see `video.sampling`."""
    subtitles: tuple[Subtitle, ...] = ()
    """Subtitles, which the model reads between the frames."""
    duration: float | None = None
    """Seconds that the annotations give the video; LongVideoBench's rule samples within them"""
    fps: float | None = None
    """Frames a second; the rule of the model's own processor then chooses them, in the place of `sampling`"""
    pixels: int | None = None
    """Largest number of pixels in a frame; by default the model's processor decides."""
    span: Span | None = None
    """Start and end in seconds of the part of the video that is shown; by default all of it."""
    frame_times: float | tuple[float, ...] = 1.0
    """Frames a second, or the time of each frame in seconds, where the video is a folder of frames."""
    shown: str | None = None
    """Some of the sampled frames alone: ``last:N`` or ``even:N``, see `video.sampling.some_of`."""


@dataclass(frozen=True)
class EncodedVideo:
    """A sample as the model reads it."""

    inputs: dict[str, Tensor]
    """Arguments of the model's forward pass: `input_ids` (1, length) int64 and pixels, or `inputs_embeds`
    (1, length, width)"""
    frame_of: np.ndarray
    """(length,) int64: the frame a token belongs to, the first of those that share it; -1 for text"""
    shares: np.ndarray
    """(frames,) int64: the first of the frames with which each frame shares its tokens"""
    prefix: int
    """Number of tokens up to the end of the last video, which do not depend on the question."""
    choices: tuple[tuple[str, tuple[int, ...]], ...]
    """The tokens of each choice."""
    options: tuple[str, ...]
    """The options behind the choices, where these are letters"""
    positions: Tensor | None = None
    """(3, 1, length) int64: time, row and column of each token for a rotary embedding that has all three (M-RoPE);
    None where the model counts tokens"""
    shift: int | None = None
    """Offset under M-RoPE: position of a token after the prompt minus the number of tokens before it."""
    facts: dict[str, str] = field(default_factory=dict)
    """Facts about the reading of the video's files, see `video.frames.facts_of`"""

    @property
    def length(self) -> int:
        """Number of tokens in the prompt."""
        return len(self.frame_of)

    @property
    def frames(self) -> int:
        """Number of frames sampled from all videos."""
        return len(self.shares)

    @property
    def positions_needed(self) -> int:
        """Number of the text model's positions that the prompt occupies."""
        return self.length + (self.shift or 0)

    @property
    def context(self) -> dict[str, Tensor]:
        """The tokens that the model reads up to the end of the videos."""
        parts = {name: v[:, : self.prefix] if self.runs_along(name) else v for name, v in self.inputs.items()}
        positions = {} if self.positions is None else {"positions": self.positions[..., : self.prefix]}
        return parts | positions

    def runs_along(self, name: str) -> bool:
        """Return True if an input has a value for every token of the prompt."""
        value = self.inputs[name]
        return value.shape[:2] == (1, self.length) and (value.ndim == 2 or name == "inputs_embeds")


@dataclass(frozen=True)
class VideoAnswer:
    """The model's answer to a video sample."""

    choice: int | None
    """Index of the choice; None if a generated answer names no single choice."""
    logprobs: tuple[float, ...] = ()
    """Natural log-probability of each choice, if choices were compared."""
    text: str | None = None
    """The generated answer after `lead`, if one was generated."""
