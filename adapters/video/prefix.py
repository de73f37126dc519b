"""One cache of a video for all questions about it, read and compressed before any of them is known."""

from __future__ import annotations

import copy

import torch

from namm_transfer import EvictionPolicy, MemoryCache
from namm_transfer.adapters.video.sample import EncodedVideo
from namm_transfer.adapters.video_language import VideoLanguageAdapter


class VideoPrefix:
    """The cache of the previous sample's video; samples with the same video part get copies of it.

    A copy equals the cache that reading the video again would give, so the order of questions changes no answer.
    """

    def __init__(self, adapter: VideoLanguageAdapter) -> None:
        self._adapter = adapter
        self._held: tuple[EvictionPolicy, EncodedVideo, MemoryCache] | None = None

    def read(self, encoded: EncodedVideo, policy: EvictionPolicy) -> MemoryCache:
        """Read a sample's video, but not its question, into a cache under `policy`, and freeze that cache.

        The question is later kept in full, and does not influence which tokens of the video are kept.
        """
        if not encoded.prefix:
            return self._adapter.memory(policy)
        if self._held is None or self._held[0] is not policy or not begin_alike(self._held[1], encoded):
            self._held = None  # before the next one takes up memory
            cache = self._adapter.memory(policy)
            self._adapter.prefill(encoded, cache, encoded.prefix)
            self._held = (policy, encoded, cache)
        cache = copy.deepcopy(self._held[2])
        cache.freeze()
        return cache


def begin_alike(first: EncodedVideo, second: EncodedVideo) -> bool:
    """Return True if the model reads the same tokens up to the end of the videos."""
    if first.prefix != second.prefix or first.inputs.keys() != second.inputs.keys():
        return False
    pairs = [(name, value, second.inputs[name]) for name, value in first.inputs.items()]
    for name, one, other in pairs:
        if first.runs_along(name) and second.runs_along(name):
            one, other = one[:, : first.prefix], other[:, : first.prefix]
        if not torch.equal(one, other):
            return False
    if first.positions is None or second.positions is None:
        return first.positions is second.positions
    return torch.equal(first.positions[..., : first.prefix], second.positions[..., : first.prefix])
