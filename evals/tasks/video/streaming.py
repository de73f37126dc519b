"""The streaming protocol: a film is watched once, and each question is answered at the time at which it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from namm_transfer import EvictionPolicy, MemoryCache, NammTransferError
from namm_transfer.adapters.video.frames import FrameReader, facts_of
from namm_transfer.adapters.video.sample import EncodedVideo, VideoSample
from namm_transfer.adapters.video.stream import VideoStream
from namm_transfer.adapters.video_language import VideoLanguageAdapter
from namm_transfer.evals.tasks.video.questions import VideoQuestion

CLIP = 16
"""Frames that the model reads at once, but for the last ones before a question."""
LEAST_ROOM, ROOM = 128, 512
"""Positions behind a video that is read before its questions are known: if so few are left of those that the model was
trained for, positions are extended to so many behind the video."""


def positions_for(film: int, trained: int) -> int:
    """Compute how many positions the model needs for a film that takes `film` of them and for the words behind it."""
    return trained if film + LEAST_ROOM <= trained else film + ROOM


def age_group(seconds: float) -> str:
    """Name the group of questions that are asked so many seconds after their answer was last shown."""
    low = 4 ** max(0, math.floor(math.log(max(seconds, 1), 4)))
    return f"answer shown {low if low > 1 else 0} to {4 * low} s before"


def by_film(asked: Sequence[VideoQuestion], *, streaming: bool, query_agnostic: bool) -> list[VideoQuestion]:
    """Bring questions that share a reading of their film together, those of a stream in the order of their times.

    Raises:
        NammTransferError: a question has a time, and the films are not watched as streams.
    """
    timed = [question for question in asked if question.asked_at is not None]
    if timed and not streaming:
        raise NammTransferError(
            f"question {timed[0].id!r} is asked {timed[0].asked_at} s into its video: expected --streaming"
        )
    if not streaming and not query_agnostic:
        return list(asked)
    films = list(dict.fromkeys((question.cluster, question.frames) for question in asked))
    return sorted(
        asked,
        key=lambda q: (films.index((q.cluster, q.frames)), math.inf if q.asked_at is None else q.asked_at),
    )


class Watched(NamedTuple):
    """A film that is being watched under a policy."""

    policy: EvictionPolicy
    video: object
    reader: FrameReader
    indices: np.ndarray
    """Numbers of the frames of the whole film that are watched."""
    stream: VideoStream


class Watcher:
    """Watches films as streams; questions about one film in the order of their times share one watching of it.

    A film is read in the same clips whatever was asked before, so what was asked before changes no answer.

    Args:
        adapter: the model.
        fps: frames that are watched for each second of a film.
        pixels: largest number of pixels in a frame; see `VideoStream`.
    """

    def __init__(self, adapter: VideoLanguageAdapter, fps: float, pixels: int | None = None) -> None:
        self._adapter, self._fps, self._pixels = adapter, fps, pixels
        self._held: Watched | None = None

    def read(
        self, sample: VideoSample, asked_at: float | None, policy: EvictionPolicy, room: int
    ) -> tuple[EncodedVideo, MemoryCache, Tensor]:
        """Watch the frames shown before a time in seconds (None: all), then read the question; see `VideoStream.read`.

        Raises:
            VideoError: the film cannot be read.
            NammTransferError: no frame was shown yet, or the positions of the model are used up.
        """
        film = self._film(sample, policy)
        shown = film.reader.times[film.indices]
        count = len(shown) if asked_at is None else int(np.searchsorted(shown, asked_at))
        if not count:
            raise NammTransferError(f"asked at {asked_at} s; the first frame is shown at {shown[0]:.3f} s")
        whole = count // CLIP * CLIP
        if film.stream.frames > whole:
            self._held = None
            film = self._film(sample, policy)
        for start in range(film.stream.frames, whole, CLIP):
            watch(film, film.stream, start, start + CLIP)
        stream = film.stream
        if count > whole:
            stream = stream.fork()
            watch(film, stream, whole, count)
        encoded, cache, logits = stream.read(sample, room)
        return replace(encoded, facts=facts_of([film.reader], sample.duration)), cache, logits

    def _film(self, sample: VideoSample, policy: EvictionPolicy) -> Watched:
        """Return the film that is being watched, or the beginning of another one."""
        identity = (sample.video, sample.span, sample.frame_times)
        if self._held is None or self._held.policy is not policy or self._held.video != identity:
            self._held = None  # before the next one takes up memory
            (reader,) = self._adapter.readers(sample)
            times = np.arange(math.ceil(reader.seconds * self._fps)) / self._fps + float(reader.times[0])
            indices = np.unique(np.searchsorted(reader.times, times + 1e-6, side="right") - 1)
            each, trained = self._adapter.tokens_per_frame, self._adapter.trained_positions
            positions = positions_for(each * len(indices), trained) if each else trained
            stream = self._adapter.stream(policy, positions=positions, pixels=self._pixels)
            self._held = Watched(policy, identity, reader, indices, stream)
        return self._held


def watch(film: Watched, stream: VideoStream, start: int, end: int) -> None:
    """Let a stream watch some of the film's chosen frames."""
    indices = film.indices[start:end]
    stream.watch(film.reader.frames(indices), film.reader.times[indices])
