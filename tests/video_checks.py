"""Checks of one class of video-language models in its adapter; the columns are those of `model_checks`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_checks import EXACT, Evicted
from tiny_llava import save_tiny_llava
from tiny_video_models import save_tiny
from torch import Tensor
from transformers import DynamicCache

from namm_transfer import LayerView, MemoryCache, policies
from namm_transfer.adapters.context import ContextCaches
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter
from namm_transfer.adapters.video.sample import VideoSample
from namm_transfer.adapters.video_language import VideoLanguageAdapter
from namm_transfer.cache.keyword import CACHE
from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.policies import RandomEviction

FRAMES = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
SAMPLE = VideoSample(FRAMES, "What color was the star?\n(A) red\n(B) blue", frames=9)
OTHER = VideoSample(FRAMES, "Where did the moon go? (A) up (B) down (C) away", frames=9)
FULL = policies.make("full", update_interval=16)


def more(adapter: VideoLanguageAdapter) -> Tensor:
    """Tokens of a further turn, (1, 40)."""
    return torch.arange(20, 60)[None] % len(adapter.words)


@dataclass
class Noted(RandomEviction):
    """A random choice that notes what each layer holds after each update."""

    name = "noted"
    keep: float | None = 0.4
    update_interval: int = 16
    updates: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """Layer, tokens seen, and positions held, (batch, kv_heads, held)."""

    def decide(self, view: LayerView) -> Tensor:
        """Choose, and note what is chosen."""
        chosen = super().decide(view)
        self.updates.append((view.layer, view.seen[0], view.positions.long().masked_fill(~chosen, -1)))
        return chosen


def load(kind: str, folder: Path) -> VideoLanguageAdapter:
    """A random model of a type in its adapter."""
    if kind == "llava_next_video":
        return LlavaNextVideoAdapter.load(save_tiny_llava(folder, "shipped"), device="cpu")
    return VideoLanguageAdapter.load(save_tiny(folder, kind), device="cpu")


@contextmanager
def dense(adapter: VideoLanguageAdapter, policy: Noted, cache: MemoryCache, length: int) -> Iterator[None]:
    """Make the text model's attention dense, masking what the policy has evicted."""
    places = [place for place, layer in enumerate(cache.layers) if isinstance(layer, MemoryLayer)]
    Evicted.forget(1, length)
    for layer, done, positions in policy.updates:
        held = torch.zeros(*positions.shape[:2], length + 1, dtype=torch.bool)
        held.scatter_(-1, positions.masked_fill(positions < 0, length), True)
        causal = torch.ones(length, length, dtype=torch.bool).tril().expand(*positions.shape[:2], -1, -1)
        allowed = Evicted.allowed.setdefault(places[layer], causal.clone())
        allowed[:, :, done:, :done] &= held[:, :, None, :done]
    adapter.model.set_attn_implementation({"text_config": "dense, evicted"})
    try:
        yield
    finally:
        adapter.model.set_attn_implementation({"text_config": "memory"})
        Evicted.forget(1, length)


def plain(adapter: VideoLanguageAdapter) -> DynamicCache:
    """Transformers' own cache."""
    return DynamicCache(config=adapter.model.config.get_text_config())


def turns(adapter: VideoLanguageAdapter, cache: Any, sample: VideoSample, several: bool) -> Tensor:
    """Logits of a prompt's last token and, with `several`, of decoded tokens and a further turn."""
    encoded, Evicted.start = adapter.encode(sample), 0
    found = [adapter.prefill(encoded, cache)[None]]
    for ids in more(adapter).split([1, 1, 38], dim=1) if several else ():
        Evicted.start = cache.get_seq_length()
        found.append(adapter.logits(cache, shift=encoded.shift, input_ids=ids))
    return torch.cat(found)


def close(found: Tensor, expected: Tensor) -> None:
    """Assert that logits are equal but for rounding."""
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=1e-4)


def full(adapter: VideoLanguageAdapter) -> None:
    """Logits and words are plain transformers'."""
    close(turns(adapter, adapter.memory(FULL), SAMPLE, True), turns(adapter, plain(adapter), SAMPLE, True))
    encoded, texts = adapter.encode(SAMPLE), []
    for cache in (adapter.memory(FULL), plain(adapter)):
        texts.append(adapter.generate(encoded, cache, adapter.prefill(encoded, cache), max_new_tokens=8).text)
    assert texts[0] == texts[1]


def _under_evictions(adapter: VideoLanguageAdapter, several: bool) -> None:
    policy = Noted()
    cache = adapter.memory(policy)
    found = turns(adapter, cache, SAMPLE, several)
    unmasked = turns(adapter, plain(adapter), SAMPLE, several)
    assert (found - unmasked).abs().max() > 20 * EXACT, "evicting must change something"
    with dense(adapter, policy, cache, cache.get_seq_length()):
        close(found, turns(adapter, plain(adapter), SAMPLE, several))


def evicting(adapter: VideoLanguageAdapter) -> None:
    """The prompt's logits under evictions are those of the dense attention."""
    _under_evictions(adapter, several=False)


def streaming(adapter: VideoLanguageAdapter) -> None:
    """So are those of decoding and of a further turn, during which more is evicted."""
    _under_evictions(adapter, several=True)


def questions(adapter: VideoLanguageAdapter) -> None:
    """Copies of one compressed video answer in any order, as the dense attention would."""
    policy, prefix = Noted(), ContextCaches(adapter)
    encoded, other = adapter.encode(SAMPLE), adapter.encode(OTHER)

    def ask(question: Any) -> Tensor:
        return adapter.prefill(question, prefix.read(question, policy))

    first, between, again = ask(encoded), ask(other), ask(encoded)
    assert torch.equal(first, again)
    assert not torch.equal(first, between)
    with dense(adapter, policy, prefix.read(encoded, policy), encoded.length):
        cache, Evicted.start = plain(adapter), 0
        adapter.prefill(encoded, cache, encoded.prefix)
        Evicted.start = encoded.prefix
        close(first, adapter.prefill(encoded, cache))


def batch(adapter: VideoLanguageAdapter) -> None:
    """Rows of a batch of one cache, which read different further turns, go on as each alone."""
    encoded = adapter.encode(SAMPLE)
    cache = adapter.memory(policies.make("random:keep=0.4", update_interval=16))
    adapter.prefill(encoded, cache)
    alone = [copy.deepcopy(cache) for _ in range(2)]
    cache.batch_repeat_interleave(2)
    both = torch.cat([more(adapter), more(adapter).flip(1)])
    given: dict[str, Any] = {"input_ids": both}
    if encoded.shift is not None:
        positions = torch.arange(both.shape[1]) + encoded.length + encoded.shift
        given["position_ids"] = positions.expand(3, 2, -1)
    logits = adapter.model(**given, **{CACHE: cache}).logits
    for row, single in enumerate(alone):
        close(logits[row], adapter.logits(single, shift=encoded.shift, input_ids=both[row : row + 1]))
        for layer in range(len(cache.attention_layers)):
            assert torch.equal(cache.positions(layer)[row], single.positions(layer)[0])


CHECKS: dict[str, Callable[[VideoLanguageAdapter], None]] = {
    "full cache": full, "evicting": evicting, "streaming": streaming, "several questions": questions, "batch": batch,
}  # fmt: skip
