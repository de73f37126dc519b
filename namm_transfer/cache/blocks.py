"""A call's attention under a `MemoryCache`, block by block: attend, show the policy its weights, evict, go on.

Layers do not depend on each other's eviction, so a whole prompt goes through one layer, evicting on the way, before the
next layer sees it: the same result as feeding chunks to the whole model.
"""

from math import inf

import torch
from torch import Tensor

from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.kernels import explicit, fused
from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.cache.masks import Tokens

_BLOCK_BYTES = {"cpu": 4 << 20}
"""Bytes of softmax weights computed at once, by device type; what fits a CPU's cache is fastest there."""
_DEFAULT_BLOCK_BYTES = 256 << 20


def plan(seen: list[int], remaining: list[int], interval: float, hop: int) -> list[int]:
    """How many tokens of each sequence to process next, none of them past its next update.

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
    layer.record(query, key, value)
    if tokens.index is not None:
        query, key, value = (_reorder(t, tokens.index) for t in (query, key, value))
    output = query.new_zeros(*query.shape[:3], value.shape[-1])
    done = [0] * len(tokens.counts)
    while any(rest := [count - d for count, d in zip(tokens.counts, done, strict=True)]):
        lengths = plan(layer.seen, rest, interval, policy.hop)
        q, k, v = (_take(t, done, lengths) for t in (query, key, value))
        layer.append(k, v, lengths)
        piece = _attend(layer, q, lengths, scaling, window)
        layer.advance(lengths)
        if policy.evicts:
            layer.evict()
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
    index = torch.tensor(start, device=tensor.device)[:, None] + offsets
    return _reorder(tensor, index.clamp_max(tensor.shape[2] - 1))


def _attend(layer: MemoryLayer, query: Tensor, lengths: list[int], scaling: float, window: int | None) -> Tensor:
    """Attention of the newest block over everything stored, shown to the policy if it wants to see it."""
    queries = query.unflatten(1, (layer.kv_heads, -1))
    parts = []
    for group in layer.groups:
        own = queries[:, group.heads].flatten(1, 2)
        if layer.policy.needs_attention:
            parts.append(_watched(layer, group, own, lengths, scaling, window))
        else:
            allowed = _allowed(layer, group, own.shape[2], 0, own.shape[2], window)
            parts.append(fused(own, group.keys, group.values, allowed, scaling))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _watched(
    layer: MemoryLayer, group: HeadGroup, query: Tensor, lengths: list[int], scaling: float, window: int | None
) -> Tensor:
    """Attention output of a group's query heads, (batch, query_heads, new, value_dim), shown to the policy."""
    new = query.shape[2]
    stored = group.keys, group.values
    if query.device.type == "cpu" and query.dtype.itemsize == 2:  # CPUs without half precision: widening is 5 x faster
        query, stored = query.float(), (group.keys.float(), group.values.float())
    step = _block_length(group, query)
    outputs, base = [], group.stored - new
    for start in range(0, new, step):
        stop = min(start + step, new)
        allowed = _allowed(layer, group, new, start, stop, window)
        end = base + stop
        keys, values = (tensor[:, :, :end] for tensor in stored)
        with torch.autocast(query.device.type, enabled=False):  # which would round the products before the softmax
            output, weights = explicit(
                query[:, :, start:stop], keys, values, allowed, scaling, layer.policy.attention_dtype
            )
        outputs.append(output)
        here = [min(max(length - start, 0), stop - start) for length in lengths]
        with torch.no_grad():
            if min(lengths) < new:
                ends = torch.tensor(here, device=weights.device)[:, None]
                real = torch.arange(stop - start, device=weights.device) < ends
                weights = weights.masked_fill(~real[:, None, :, None], 0)
            seen = [s + min(start, length) for s, length in zip(layer.seen, lengths, strict=True)]
            group.observe(layer.policy, weights, seen, here)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output.to(group.values.dtype)


def _block_length(group: HeadGroup, query: Tensor) -> int:
    """Queries whose softmax weights fit the block size; a whole number of hops."""
    budget = _BLOCK_BYTES.get(query.device.type, _DEFAULT_BLOCK_BYTES)
    queries = budget // (4 * query.shape[0] * query.shape[1] * group.stored)
    return max(16, queries - queries % 16)


def _allowed(
    layer: MemoryLayer, group: HeadGroup, new: int, start: int, stop: int, window: int | None
) -> Tensor | None:
    """Which stored tokens the queries ``start`` to ``stop`` of the newest ``new`` may see.

    Returns:
        (batch, heads of the group, queries, tokens) bool, broadcastable; None where causality is all there is to it,
        which `fused` and `explicit` see to.
    """
    if not group.padding_slots and window is None:
        return None
    end = group.stored - new + stop
    keys = group.positions[:, :, None, :end]
    columns = torch.arange(end, device=keys.device)
    queries = group.stored - new + torch.arange(start, stop, device=keys.device)
    allowed = (keys >= 0) & (columns <= queries[:, None])
    if window is not None:
        seen = torch.tensor(layer.seen, dtype=torch.int32, device=keys.device)[:, None]
        position = seen + torch.arange(start, stop, dtype=torch.int32, device=keys.device)
        allowed &= position[:, None, :, None] - keys < window
    return allowed
