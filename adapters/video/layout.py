"""The mapping from tokens of a prompt to frames: metadata for a model's processor, and what is kept of each frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from transformers.video_utils import VideoMetadata

from namm_transfer import MemoryCache
from namm_transfer.adapters.video.frames import FrameReader
from namm_transfer.adapters.video.sample import EncodedVideo
from namm_transfer.errors import NammTransferError

TICKS = 1_000_000
"""Time stamps are given to processors as frame numbers of a film with so many frames a second, so that they are right
for films whose frames do not come at a constant rate."""
ENDS_WITH_NEWLINE = ("llava_onevision",)
"""Model types that put one token which belongs to no frame behind each video's."""


def timed(reader: FrameReader, indices: np.ndarray) -> VideoMetadata:
    """Make the processor's metadata with the times at which the frames at `indices` are shown."""
    return VideoMetadata(
        total_num_frames=round(reader.seconds * TICKS),
        fps=float(TICKS),
        duration=reader.seconds,
        frames_indices=np.rint(reader.times[indices] * TICKS).astype(np.int64).tolist(),
    )


def fill_up(films: list[np.ndarray], metadata: list[VideoMetadata], processor: Any) -> None:
    """Repeat the last frame of films that have fewer frames than share their tokens; Qwen3-VL's processor would not.

    Args:
        films: (frames, height, width, 3) uint8 each.
        metadata: that of `timed`, one for each film.
        processor: the model's.
    """
    for number, (film, told) in enumerate(zip(films, metadata, strict=True)):
        if (missing := frames_together(processor) - len(film)) > 0:
            films[number] = np.concatenate([film, *[film[-1:]] * missing])
            indices = told.frames_indices or []
            told.frames_indices = indices + indices[-1:] * missing


def frames_together(processor: Any) -> int:
    """Return the number of frames that share their tokens."""
    return getattr(processor.video_processor, "temporal_patch_size", 1)


def lay_out(
    processor: Any, model_type: str, inputs: dict[str, Tensor], counts: list[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute `frame_of`, `shares` and `prefix` of an `EncodedVideo`.

    Args:
        processor: the model's.
        model_type: as the model's configuration names it.
        inputs: the processor's output for the prompt: `input_ids` (1, length) int64, `video_grid_thw` if it makes one.
        counts: frames of each video.

    Raises:
        NammTransferError: the tokens of the videos are no equal numbers for equal numbers of frames.
    """
    ids = inputs["input_ids"][0].cpu().numpy()
    names = [token for name in ("video", "image") if (token := getattr(processor, f"{name}_token", None))]
    places = np.flatnonzero(np.isin(ids, processor.tokenizer.convert_tokens_to_ids(names)))
    together = frames_together(processor)
    newline = int(model_type in ENDS_WITH_NEWLINE)
    units = [-(-count // together) for count in counts]
    if (grids := inputs.get("video_grid_thw")) is not None:
        sizes = (grids.prod(-1) // processor.video_processor.merge_size**2).tolist()
    else:
        each = (len(places) - newline * len(counts)) // max(sum(units), 1)
        sizes = [each * unit + newline for unit in units]
    evenly = [size > newline and not (size - newline) % unit for size, unit in zip(sizes, units, strict=True)]
    if sum(sizes) != len(places) or not all(evenly):
        raise NammTransferError(
            f"{len(places)} tokens for videos of {counts} frames: a {model_type!r} lays out frames in a way that is "
            "not served"
        )
    prefix = int(places[-1]) + 1 if counts else 0
    frame_of, shares, first = np.full(len(ids), -1, dtype=np.int64), [np.empty(0, np.int64)], 0
    for count, unit, size in zip(counts, units, sizes, strict=True):
        mine, places = places[: size - newline], places[size:]
        frame_of[mine] = first + together * (np.arange(len(mine)) * unit // len(mine))
        shares.append(first + np.arange(count) // together * together)
        first += count
    return frame_of, np.concatenate(shares), prefix


def kept_shares(cache: MemoryCache, encoded: EncodedVideo) -> np.ndarray:
    """Compute the share of each frame's tokens that is still held: (layers, kv_heads, frames) float32."""
    total = np.bincount(encoded.frame_of[encoded.frame_of >= 0], minlength=encoded.frames)
    layers = []
    for layer in range(len(cache.attention_layers)):
        heads = []
        for positions in cache.positions(layer)[0].cpu().numpy():
            inside = positions[(positions >= 0) & (positions < len(encoded.frame_of))]
            frames = encoded.frame_of[inside]
            held = np.bincount(frames[frames >= 0], minlength=encoded.frames)
            heads.append((held / np.maximum(total, 1))[encoded.shares])
        layers.append(heads)
    return np.array(layers, dtype=np.float32)
