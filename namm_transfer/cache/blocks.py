"""A call's attention under a `MemoryCache`, block by block: attend, show the policy its weights, evict, go on.

Layers do not depend on each other's eviction, so a whole prompt goes through one layer, evicting on the way, before the
next layer sees it: the same result as feeding chunks to the whole model.
"""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from namm_transfer.cache import device
from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.kernels import explicit, fused, paged
from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.cache.masks import Tokens

_BLOCK_BYTES = {"cpu": 4 << 20}
"""Bytes of softmax weights computed at once, by device type; what fits a CPU's cache is fastest there."""
_DEFAULT_BLOCK_BYTES = 256 << 20


def plan(seen: list[int], remaining: list[int], interval: float, hop: int) -> list[int]:
    """Choose how many tokens of each sequence to process next, none of them past its next update.

    With ``hop`` 1, as many as possible. Otherwise either sequences that stand inside a hop finish it while the others
    wait, or all that have tokens left advance by the same whole number of hops, or by less than one.
    """
    reach = [min(rest, interval - s % interval) if rest else 0 for s, rest in zip(seen, remaining, strict=True)]
    if hop == 1:
        return [int(r) for r in reach]
    inside = [s % hop if rest else 0 for s, rest in zip(seen, remaining, strict=True)]
    if any(inside):
        return [int(min(r, hop - phase)) if phase else 0 for r, phase in zip(reach, inside, strict=True)]
    step = min(r for r in reach if r)
    step = step - step % hop if step >= hop else hop
    return [int(min(r, step)) for r in reach]


def attend_and_evict(
    layer: MemoryLayer,
    tokens: Tokens,
    window: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
) -> Tensor:
    """Attention output of a call, (batch, query_heads, new, value_dim); zero at padding.

    Args:
        tokens: where the call's real tokens are.
        window: sliding window in tokens, or None.
        query: (batch, query_heads, new, head_dim).
        key, value: (batch, kv_heads, new, width), the call's new ones.
    """
    policy = layer.policy
    interval = policy.update_interval if policy.evicts else inf
    recording = layer.record(query, key, value)
    on_gpu = not recording and device.serves(policy, query, key, value)
    if tokens.index is not None:
        query, key, value = (_reorder(t, tokens.index) for t in (query, key, value))
    output = query.new_zeros(*query.shape[:3], value.shape[-1])
    done = [0] * len(tokens.counts)
    while any(rest := [count - d for count, d in zip(tokens.counts, done, strict=True)]):
        lengths = plan(layer.seen, rest, interval, 1 if on_gpu else policy.hop)
        q, k, v = (_take(t, done, lengths) for t in (query, key, value))
        layer.append(k, v, lengths)
        piece = (_attend_on_gpu if on_gpu else _attend)(layer, q, lengths, scaling, window)
        layer.advance(lengths)
        if policy.evicts:
            layer.evict(window)
        if piece.shape == output.shape and min(lengths) == max(lengths):
            return piece  # the whole call in one piece, which is every decoding step
        for b, (start, length) in enumerate(zip(done, lengths, strict=True)):
            output[b, :, start : start + length] = piece[b, :, :length]
        done = [d + length for d, length in zip(done, lengths, strict=True)]
    return output if tokens.index is None else _reorder(output, tokens.index.argsort(dim=-1))


def _reorder(tensor: Tensor, index: Tensor) -> Tensor:
    """Reorder the columns of (batch, heads, columns, width) by an index (batch, columns)."""
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def _take(tensor: Tensor, start: list[int], lengths: list[int]) -> Tensor:
    """The next tokens of each sequence: (batch, heads, max(lengths), width); beyond ``lengths[b]`` anything."""
    most = max(lengths)
    if len(set(start)) == 1:
        return tensor[:, :, start[0] : start[0] + most]
    offsets = torch.arange(most, device=tensor.device)
    index = device.on_device(start, tensor.device)[:, None] + offsets
    return _reorder(tensor, index.clamp_max(tensor.shape[2] - 1))


def _attend(layer: MemoryLayer, query: Tensor, lengths: list[int], scaling: float, window: int | None) -> Tensor:
    """Attention of the newest block over everything stored, shown to the policy if it wants to see it."""
    if layer.paged:
        return _attend_to_pages(layer, query, lengths, scaling, window)
    queries = query.unflatten(1, (layer.kv_heads, -1))
    parts = []
    for group in layer.groups:
        own = group.own(queries).flatten(1, 2)
        if layer.policy.needs_attention:
            parts.append(_watched(layer, group, own, lengths, scaling, window))
        else:
            visible = _visible(layer, group, group.stored, range(query.shape[2]), window)
            parts.append(fused(own, group.keys, group.values, visible, scaling))
    if len(parts) == 1:
        return parts[0]
    place = torch.cat([group.heads for group in layer.groups]).argsort()
    by_head = [part.unflatten(1, (len(group.heads), -1)) for part, group in zip(parts, layer.groups, strict=True)]
    return torch.cat(by_head, 1).index_select(1, place).flatten(1, 2)


def _attend_on_gpu(layer: MemoryLayer, query: Tensor, lengths: list[int], scaling: float, window: int | None) -> Tensor:
    """Attention by the kernels of `device`, or by torch's own where it needs no mask and nobody watches."""
    first, new = layer.groups[0], query.shape[2]
    plain = len(layer.groups) == 1 and window is None and not first.padding_slots and new in (1, first.stored)
    if plain and not layer.policy.needs_attention:
        return fused(query, first.keys, first.values, None, scaling)
    block = device.Block(query, layer.seen, lengths, layer.kv_heads, scaling, window)
    parts = [group.part(layer.kv_heads, new if group in layer.growing else 0) for group in layer.groups]
    output, lse = device.attend(block, parts)
    if layer.policy.needs_attention:
        for group, part in zip(layer.groups, parts, strict=True):
            group.fold(layer.policy, block, lse, part)
    return output


def _attend_to_pages(
    layer: MemoryLayer, query: Tensor, lengths: list[int], scaling: float, window: int | None
) -> Tensor:
    """Attend over pages and the newer tokens, for a few queries at a time."""
    widen = _widened(query)
    found = []
    for group in layer.groups:
        visible = _visible(layer, group, group.stored, range(query.shape[2]), window)
        found.append((widen(group.keys), widen(group.values), visible))
    settled, recent = found
    with torch.autocast(query.device.type, enabled=False):
        output, *weights = paged(
            widen(query), settled, layer.groups[0].heads, recent, scaling, layer.policy.attention_dtype
        )
    if layer.policy.needs_attention:
        for group, some in zip(layer.groups, weights, strict=True):
            _show(layer, group, some, layer.seen, lengths)
    return output.to(query.dtype)


def _widened(query: Tensor) -> Callable[[Tensor], Tensor]:
    """Attention in float32 where the model computes in half precision: policies decide by the same weights everywhere,
    and a CPU is 5 times faster so."""
    return Tensor.float if query.dtype.itemsize == 2 else lambda tensor: tensor


def _show(layer: MemoryLayer, group: HeadGroup, weights: Tensor, seen: list[int], lengths: list[int]) -> None:
    """Show the policy attention weights of a block, of which a sequence's queries beyond its length are no queries."""
    with torch.no_grad():
        if min(lengths) < weights.shape[2]:
            ends = torch.tensor(lengths, device=weights.device)[:, None]
            real = torch.arange(weights.shape[2], device=weights.device) < ends
            weights = weights.masked_fill(~real[:, None, :, None], 0)
        group.observe(layer.policy, weights, seen, lengths)


def _watched(
    layer: MemoryLayer, group: HeadGroup, query: Tensor, lengths: list[int], scaling: float, window: int | None
) -> Tensor:
    """Attention output of a group's query heads, (batch, query_heads, new, value_dim), shown to the policy."""
    new = query.shape[2]
    widen = _widened(query)
    query, stored = widen(query), (widen(group.keys), widen(group.values))
    step = _block_length(group, query)
    outputs, base = [], group.stored - new
    for start in range(0, new, step):
        stop = min(start + step, new)
        end = base + stop
        visible = _visible(layer, group, end, range(start, stop), window)
        keys, values = (tensor[:, :, :end] for tensor in stored)
        with torch.autocast(query.device.type, enabled=False):  # which would round the products before the softmax
            output, weights = explicit(
                query[:, :, start:stop], keys, values, visible, scaling, layer.policy.attention_dtype
            )
        outputs.append(output)
        here = [min(max(length - start, 0), stop - start) for length in lengths]
        seen = [s + min(start, length) for s, length in zip(layer.seen, lengths, strict=True)]
        _show(layer, group, weights, seen, here)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output.to(group.values.dtype)


def _block_length(group: HeadGroup, query: Tensor) -> int:
    """Queries whose softmax weights fit the block size; a whole number of hops."""
    budget = _BLOCK_BYTES.get(query.device.type, _DEFAULT_BLOCK_BYTES)
    queries = budget // (4 * query.shape[0] * query.shape[1] * group.stored)
    return max(16, queries - queries % 16)


def _visible(layer: MemoryLayer, group: HeadGroup, tokens: int, queries: range, window: int | None) -> Tensor | None:
    """Return which of a group's first stored tokens, causality aside, these queries of the newest block may see.

    Returns:
        (batch, rows of the group, queries or 1, tokens) bool; None: all of them.
    """
    if not group.padding_slots and window is None:
        return None
    keys = group.positions[:, :, None, :tokens]
    visible = keys >= 0
    if window is not None:
        seen = torch.tensor(layer.seen, dtype=torch.int32, device=keys.device)[:, None]
        position = seen + torch.arange(queries.start, queries.stop, dtype=torch.int32, device=keys.device)
        visible = visible & (position[:, None, :, None] - keys < window)
    return visible
