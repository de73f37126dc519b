"""What every adapter of a video-language model takes, passes on and returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import Tensor

from namm_transfer.adapters.video import prompts
from namm_transfer.adapters.video.sampling import Rule
from namm_transfer.adapters.video.subtitles import Subtitle

Video: TypeAlias = str | Path | np.ndarray
"""A file, or frames that are decoded already, one a second: (count, height, width, 3) uint8 RGB."""


@dataclass(frozen=True)
class VideoSample:
    """A question about a video, with the continuations among which the answer is looked for."""

    video: Video | tuple[Video, ...]
    """One video, or several that the model reads one after the other, or none of them: ()"""
    prompt: str
    """What the user says after the video"""
    lead: str = prompts.LEAD
    """How the answer begins; the choices continue it"""
    choices: tuple[str, ...] = ("A", "B", "C", "D")
    """Continuations of `lead`; the most probable one is the answer"""
    options: tuple[str, ...] = ()
    """The options behind `choices`, where these are letters; a generated answer may name them instead"""
    frames: int = 64
    """Frames sampled from each video; with `fps` at most so many"""
    sampling: Rule = "uniform"
    """The rule that chooses them, see `video.sampling`"""
    subtitles: tuple[Subtitle, ...] = ()
    """What is said; the model reads it between the frames"""
    duration: float | None = None
    """Seconds that the annotations give the video; LongVideoBench's rule samples within them"""
    fps: float | None = None
    """Frames a second; the rule of the model's own processor then chooses them, in the place of `sampling`"""
    pixels: int | None = None
    """Pixels of a frame at most; by default as many as the model's processor takes"""


@dataclass(frozen=True)
class EncodedVideo:
    """A sample as the model reads it."""

    inputs: dict[str, Tensor]
    """What the model's forward takes: `input_ids` (1, length) int64 and pixels, or `inputs_embeds`
    (1, length, width)"""
    frame_of: np.ndarray
    """(length,) int64: the frame a token belongs to, the first of those that share it; -1 for text"""
    shares: np.ndarray
    """(frames,) int64: the first of the frames with which each frame shares its tokens"""
    prefix: int
    """Tokens up to the end of the last video: those that do not depend on the question"""
    choices: tuple[tuple[str, tuple[int, ...]], ...]
    """Each choice and its tokens"""
    options: tuple[str, ...]
    """The options behind the choices, where these are letters"""
    positions: Tensor | None = None
    """(3, 1, length) int64: time, row and column of each token for a rotary embedding that has all three (M-RoPE);
    None where the model counts tokens"""
    shift: int | None = None
    """What the position of a token after the prompt exceeds the number of tokens before it by, under M-RoPE"""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.frame_of)

    @property
    def frames(self) -> int:
        """Frames sampled, of all videos."""
        return len(self.shares)

    @property
    def positions_needed(self) -> int:
        """Positions of the text model that the prompt takes up."""
        return self.length + (self.shift or 0)

    def runs_along(self, name: str) -> bool:
        """Whether an input has a value for every token of the prompt."""
        value = self.inputs[name]
        return value.shape[:2] == (1, self.length) and (value.ndim == 2 or name == "inputs_embeds")


@dataclass(frozen=True)
class VideoAnswer:
    """What the model answered."""

    choice: int | None
    """Index of the choice; None if a generated answer could not be understood"""
    logprobs: tuple[float, ...] = ()
    """Log-probability (natural) of each choice, if that decided"""
    text: str | None = None
    """The generated answer behind `lead`, if that decided"""
