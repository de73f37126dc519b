"""Checks of one model class against plain transformers; the table in docs/models.md says which of them each one passes.

The reference of a cache that evicts is the same model under a dense attention in which every layer and head masks what
the cache had evicted by then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import eager_mask

from namm_transfer import NAMM, MemoryCache, policies
from namm_transfer.cache.keyword import CACHE
from namm_transfer.cache.layer import MemoryLayer

INTERVAL, LENGTH = 16, 90
ALIGNED = [INTERVAL] * (LENGTH // INTERVAL) + [LENGTH % INTERVAL]
RANDOM, H2O = "random:keep=0.4", "h2o:keep=0.4"
EXACT = 2e-4
"""Largest difference of logits, whose own size is about 1."""


class Evicted:
    """What each layer of a dense model may see: `allowed[layer]` (batch, kv_heads, length, length) bool."""

    allowed: ClassVar[dict[int, Tensor]] = {}
    start = 0
    """Number of tokens before the present call."""

    @classmethod
    def forget(cls, batch: int, length: int) -> None:
        """Begin with layers that see everything before a token."""
        cls.allowed, cls.start, cls.shape = {}, 0, (batch, length)

    @classmethod
    def note(cls, cache: MemoryCache, done: int) -> None:
        """After `done` tokens, later ones see of these what the cache holds."""
        length = cls.shape[1]
        for place, layer in enumerate(cache.layers):
            if not isinstance(layer, MemoryLayer):
                continue
            positions = layer.positions.long()
            held = torch.zeros(*positions.shape[:2], length + 1, dtype=torch.bool)
            held.scatter_(-1, positions.masked_fill(positions < 0, length), True)
            causal = torch.ones(length, length, dtype=torch.bool).tril().expand(*positions.shape[:2], -1, -1)
            allowed = cls.allowed.setdefault(place, causal.clone())
            allowed[:, :, done:, :done] &= held[:, :, None, :done]


def dense_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Eager attention in which each head masks what `Evicted` says."""
    groups, new, seen = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    scores = query @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores + mask[..., :seen]
    if module.layer_idx in Evicted.allowed:
        end = Evicted.start + new
        allowed = Evicted.allowed[module.layer_idx][:, :, Evicted.start : end, end - seen : end]
        scores = scores.masked_fill(~allowed.repeat_interleave(groups, 1), -torch.inf)
    return (scores.softmax(-1) @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register("dense, evicted", dense_attention)
AttentionMaskInterface.register("dense, evicted", eager_mask)


def build(config: Any, attention: str = "memory") -> Any:
    """The random model of a configuration, always the same."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention).eval()


def tokens(batch: int = 1, length: int = LENGTH) -> Tensor:
    """Random tokens, (batch, length), always the same."""
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def read(
    model: Any, cache: Any, ids: Tensor, sizes: list[int], after: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Logits of all tokens, read in calls of these sizes."""
    pieces, done = [], 0
    for size in sizes:
        Evicted.start = start = cache.get_seq_length()
        part = ids[:, done : done + size]
        positions = torch.arange(start, start + size)[None].expand(len(ids), -1)
        pieces.append(model(part, position_ids=positions, **{CACHE: cache}).logits)
        done += size
        after(done)
    return torch.cat(pieces, 1)


def memory(model: Any, spec: str) -> MemoryCache:
    """An empty cache under a policy."""
    return MemoryCache(model.config, policy=policies.make(spec, update_interval=INTERVAL))


def close(found: Tensor, expected: Tensor) -> None:
    """Assert that logits are equal but for rounding."""
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=1e-4)


def kept(cache: MemoryCache, row: int = 0) -> list[list[list[int]]]:
    """Positions that each layer and head of a row holds."""
    layers = range(len(cache.attention_layers))
    return [[[p for p in head.tolist() if p >= 0] for head in cache.positions(layer)[row]] for layer in layers]


def full(config: Any) -> None:
    """A cache that keeps everything gives plain transformers' logits and text, whatever calls a prompt is read in."""
    plain, model, ids = build(config, "eager"), build(config), tokens(2)
    zero = NAMM.from_vector(torch.zeros(4172), mean=torch.zeros(17), var=torch.ones(17), update_interval=INTERVAL)
    for sizes in ([LENGTH], [50, 1, 39]):
        expected = read(plain, DynamicCache(config=plain.config), ids, sizes)
        for policy in (policies.make("full"), zero):
            close(read(model, MemoryCache(model.config, policy=policy), ids, sizes), expected)
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=96)
    options["attention_mask"] = torch.ones_like(ids)
    expected = plain.generate(ids, **options)
    assert torch.equal(model.generate(ids, **{CACHE: MemoryCache(model.config, policy=zero)}, **options), expected)


def evicting(config: Any) -> None:
    """Logits under evictions are those of the dense attention, whether a prompt is read at once or in pieces."""
    model, dense, ids = build(config), build(config, "dense, evicted"), tokens(2)
    for spec in (RANDOM, H2O):
        Evicted.forget(2, LENGTH)
        cache = memory(model, spec)
        found = read(model, cache, ids, ALIGNED, lambda done, cache=cache: Evicted.note(cache, done))
        expected = read(dense, DynamicCache(config=dense.config), ids, ALIGNED)
        close(found, expected)
        Evicted.forget(2, LENGTH)
        everything = read(dense, DynamicCache(config=dense.config), ids, ALIGNED)
        assert (everything - expected).abs().max() > 20 * EXACT, "evicting must change something"
    whole, cache = memory(model, RANDOM), memory(model, RANDOM)
    at_once, pieces = read(model, whole, ids, [LENGTH]), read(model, cache, ids, ALIGNED)
    assert kept(whole) == kept(cache)
    plain = read(dense, DynamicCache(config=dense.config), ids, [LENGTH])
    rounding = 4 * float((plain - everything).abs().max())  # what plain transformers differs by, 1e-2 for Jamba
    torch.testing.assert_close(at_once, pieces, atol=EXACT + rounding, rtol=1e-3)


def streaming(config: Any) -> None:
    """Turns of text and decoding after evictions: the same tokens are held, and the logits are as under the mask."""
    model, dense, ids, turns = build(config), build(config, "dense, evicted"), tokens(), [37, 1, 1, 1, 20, 1, 1, 28]
    Evicted.forget(1, LENGTH)
    aligned, cache = memory(model, RANDOM), memory(model, RANDOM)
    read(model, aligned, ids, ALIGNED, lambda done: Evicted.note(aligned, done))
    found = read(model, cache, ids, turns)
    assert kept(cache) == kept(aligned)
    assert len(kept(cache)[0][0]) < LENGTH / 2
    close(found, read(dense, DynamicCache(config=dense.config), ids, turns))


def questions(config: Any) -> None:
    """Copies of one compressed cache answer questions in any order, as the dense attention would."""
    model, dense, ids = build(config), build(config, "dense, evicted"), tokens(length=64 + 20)
    context = memory(model, RANDOM)
    Evicted.forget(1, 64 + 20)
    read(model, context, ids[:, :64], [INTERVAL] * 4, lambda done: Evicted.note(context, done))

    def ask(question: Tensor) -> Tensor:
        cache = copy.deepcopy(context)
        cache.freeze()
        return read(model, cache, question, [20])

    other = tokens(length=20) + 1
    first, between, again = (ask(question) for question in (ids[:, 64:], other, ids[:, 64:]))
    assert torch.equal(first, again)
    assert not torch.equal(first, between)
    expected = read(dense, DynamicCache(config=dense.config), ids, [INTERVAL] * 4 + [20])
    close(first, expected[:, 64:])


def batch(config: Any) -> None:
    """Rows of a padded batch hold the same tokens and give the same logits as alone, also after they changed places."""
    model, paddings, ids = build(config), (0, 5, 23), tokens(3)
    mask = (torch.arange(LENGTH) >= torch.tensor(paddings)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, order = memory(model, RANDOM), torch.tensor([2, 0, 1])
    half = LENGTH // 2
    model(ids[:, :half], attention_mask=mask[:, :half], position_ids=positions[:, :half], **{CACHE: cache})
    cache.reorder_cache(order)
    logits = model(ids[order, half:], attention_mask=mask[order], position_ids=positions[order, half:],
                   **{CACHE: cache}).logits  # fmt: skip
    for place, row in enumerate(order.tolist()):
        alone = memory(model, RANDOM)
        single = read(model, alone, ids[row : row + 1, paddings[row] :], [half - paddings[row], LENGTH - half])
        assert kept(cache, place) == kept(alone)
        close(logits[place], single[0, half - paddings[row] :])


CHECKS: dict[str, Callable[[Any], None]] = {
    "full cache": full, "evicting": evicting, "streaming": streaming, "several questions": questions, "batch": batch,
}  # fmt: skip
"""Column of the table -> check of a configuration."""
