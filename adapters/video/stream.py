"""Streams: a video is watched a few frames at a time, questions come at any moment, and the cache stays one.

What a model reads of a stream is the prompt with one video for each call of `watch`, as its processor writes several
videos in one message (LLaVA-NeXT-Video: one video of all frames). So a stream that evicts nothing answers as the model
does when it is given all at once. Positions are never renumbered: each token keeps the one that it was read at.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from namm_transfer import EvictionPolicy, MemoryCache, NammTransferError
from namm_transfer.adapters.video.frames import ArrayReader
from namm_transfer.adapters.video.sample import EncodedVideo, VideoAnswer, VideoSample

if TYPE_CHECKING:
    from namm_transfer.adapters.video_language import VideoLanguageAdapter


class VideoStream:
    """A video of any length that is being watched, from a cache under a policy.

    The cache is as large as the policy lets it grow: a policy with `budget=N` bounds it, one with `keep=R` does not.

    Args:
        adapter: the model.
        policy: the policy of the cache.
        positions: positions that frames and questions may take in all; by default as many as the text model was trained
            for. More are had only where the adapter can extend them (`VideoLanguageAdapter.extend_positions`), and then
            from the first frame on, since keys are stored with their positions.
        pixels: largest number of pixels in a frame, where the model takes frames of different sizes.

    Raises:
        NammTransferError: more positions than the model can have.
    """

    cache: MemoryCache
    """The cache, which holds what is remembered of the frames and no question."""

    def __init__(
        self,
        adapter: VideoLanguageAdapter,
        policy: EvictionPolicy,
        *,
        positions: int | None = None,
        pixels: int | None = None,
    ) -> None:
        self._adapter, self._pixels = adapter, pixels
        self._positions = positions or adapter.trained_positions
        adapter.extend_positions(self._positions)
        adapter.resolution(pixels, 1)  # refuses pixels where frames have a fixed size
        self.cache = adapter.memory(policy)
        self.frames, self.seconds = 0, 0.0
        """Frames watched, and the time at which the next one is expected."""
        # Under M-RoPE: the next position less the tokens before it, and one more than the highest position. Words go on
        # behind the rows and columns of a clip, answers behind its time as well (Qwen2.5-VL's own rule).
        self._shift = 0 if adapter.has_three_positions else None
        self._highest = 0
        self._frame_of: list[np.ndarray] = []  # of each part that was read, (tokens,) int32
        self._shares: list[np.ndarray] = []

    def fork(self) -> Self:
        """Return a copy that goes on alone: what it watches, this stream does not."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        other._frame_of, other._shares = self._frame_of[:], self._shares[:]
        return other

    def watch(self, frames: np.ndarray, times: Sequence[float] | np.ndarray | None = None) -> None:
        """Read the next frames, which the model takes for one clip.

        Args:
            frames: (n, height, width, 3) uint8 RGB. Qwen's models merge frames by twos: give them even numbers.
            times: (n,) seconds at which they are shown, ascending; by default they go on at one a second.

        Raises:
            NammTransferError: other frames or times, or positions that are used up; nothing of the clip is then read.
        """
        reader = self._reader(frames, times)
        start, piece, _ = self._adapter.around_video(VideoSample((), ""))
        head = [] if self._read_any else start
        part = self._adapter.encode_clip(piece, reader, self._pixels)
        self._check_room(len(head) + part.positions_needed, f"{len(frames)} more frames")
        if head:
            self._read_tokens(self.cache, head)
            self._frame_of.append(np.full(len(head), -1, dtype=np.int32))
        inputs: dict[str, Any] = dict(part.inputs)
        if part.positions is not None:
            positions = part.positions + self._next
            inputs["position_ids"] = positions
            self._highest = max(self._highest, int(positions.max()) + 1)
            self._shift = int(positions[..., -1].max()) + 1 - self.cache.get_seq_length() - part.length
        inputs.pop("attention_mask", None)  # one sequence, without padding
        self._adapter.logits(self.cache, last=True, **inputs)
        self._frame_of.append(np.where(part.frame_of < 0, -1, part.frame_of + self.frames).astype(np.int32))
        self._shares.append((part.shares + self.frames).astype(np.int32))
        self.frames += len(frames)
        self.seconds = reader.seconds + float(reader.times[0])

    def ask(self, question: VideoSample | str, max_new_tokens: int = 32) -> VideoAnswer:
        """Answer a question about what was watched so far. The cache is not changed: the stream can go on.

        Args:
            question: words, which are answered in words; or a sample with choices, whose `video` is not looked at.
            max_new_tokens: largest number of tokens of an answer in words.
        """
        words = isinstance(question, str)
        sample = VideoSample((), question, lead="", choices=()) if isinstance(question, str) else question
        encoded, cache, logits = self.read(sample, max_new_tokens if words else 0)
        if words or not encoded.choices:
            text = self._adapter.decode_greedily(cache, logits, max_new_tokens, encoded.shift)
            return VideoAnswer(None, text=text)
        return self._adapter.choose(encoded, cache, logits)

    def read(self, sample: VideoSample, room: int = 0) -> tuple[EncodedVideo, MemoryCache, Tensor]:
        """Read a question with a copy of the cache, in which nothing is evicted any more.

        Args:
            sample: the question; its `video` is not looked at.
            room: positions that the answer may take beside those of the choices.

        Returns:
            The stream and the question as one prompt (without inputs), the copy, (vocabulary,) float32 logits.
        """
        start, _, tail = self._adapter.around_video(sample)
        choices = self._adapter.choices_of(sample)
        tokens = tail if self._read_any else [*start, *tail]
        behind = max(self._next + len(tokens), self._highest)
        self._check_room(behind - self._next + max([room, *(len(ids) for _, ids in choices)]), "question and answer")
        cache = copy.deepcopy(self.cache)
        cache.freeze()
        prefix = cache.get_seq_length()
        logits = self._read_tokens(cache, tokens)
        frame_of = np.concatenate([*self._frame_of, np.full(len(tokens), -1, dtype=np.int32)])
        shares = np.concatenate([np.empty(0, np.int32), *self._shares])
        shift = None if self._shift is None else behind - len(frame_of)
        encoded = EncodedVideo({}, frame_of, shares, prefix, choices, sample.options, shift=shift)
        return encoded, cache, logits

    @property
    def _read_any(self) -> bool:
        return self.cache.get_seq_length() > 0

    @property
    def _next(self) -> int:
        """Position of the next token."""
        return self.cache.get_seq_length() + (self._shift or 0)

    def _read_tokens(self, cache: MemoryCache, tokens: list[int]) -> Tensor:
        """Read words: (vocabulary,) float32 logits of the token that follows."""
        ids = torch.tensor([tokens], device=self._adapter.device)
        return self._adapter.logits(cache, last=True, shift=self._shift, input_ids=ids)[-1]

    def _check_room(self, needed: int, what: str) -> None:
        """Raise an error if so many more positions are not left; else let the model have the stream's positions."""
        if self._next + needed > self._positions:
            raise NammTransferError(
                f"{what} after {self.frames} frames need {needed} positions, but {self._next} of the stream's "
                f"{self._positions} are used (positions of evicted tokens are not used again): watch fewer frames, or "
                "open the stream with more positions if the model has them"
            )
        self._adapter.extend_positions(self._positions)  # another sample may have been read with others

    def _reader(self, frames: np.ndarray, times: Sequence[float] | np.ndarray | None) -> ArrayReader:
        """Check the next frames and their times."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise NammTransferError(
                f"frames are {frames.dtype} {frames.shape}: expected uint8 (n, height, width, 3), at least one"
            )
        numbers = self.seconds + np.arange(len(frames)) if times is None else times
        shown = np.asarray(numbers, dtype=np.float64)
        if shown.shape != (len(frames),) or not np.isfinite(shown).all() or (np.diff(shown) < 0).any() or shown[0] < 0:
            raise NammTransferError(
                f"times of {len(frames)} frames are {shown.tolist()[:8]}: expected as many ascending numbers of seconds"
            )
        gap = float(shown[-1] - shown[-2]) if len(shown) > 1 else 1.0
        reader = ArrayReader(frames)
        reader.times = shown.reshape(-1)
        reader.seconds = float(shown[-1] - shown[0]) + gap  # of this clip
        return reader
