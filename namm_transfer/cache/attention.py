"""The attention implementation "memory": plain attention for everybody, and, given a MemoryCache, attention that feeds
the cache's policy block by block and lets it evict between blocks.

Layers do not depend on each other's eviction, so a whole prompt goes through one layer, evicting on the way, before the
next layer sees it: the same result as feeding chunks to the whole model.
"""

import weakref
from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from namm_transfer.cache.head_group import HeadGroup
from namm_transfer.cache.layer import MemoryLayer, opened_layer
from namm_transfer.cache.masks import MemoryMask, Tokens, memory_mask
from namm_transfer.errors import NammTransferError

NAME = "memory"
_HARMLESS = {"position_ids", "cache_position", "use_cache", "sliding_window", "num_items_in_batch", "past_key_values"}
"""Attention keywords that say nothing the mask or the cache does not say; any other one that is set is refused."""
_BLOCK_BYTES = {"cpu": 4 << 20}
"""Softmax weights held at once; what fits a CPU's cache is fastest there."""
_DEFAULT_BLOCK_BYTES = 256 << 20


def memory_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MemoryMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered as "memory".

    Args:
        query: (batch, query_heads, new, head_dim).
        key, value: (batch, kv_heads, new or all, head_dim).
        attention_mask: what `memory_mask` returned; without a MemoryCache also whatever SDPA takes.

    Returns:
        (batch, new, query_heads, value_dim) and None, as transformers expects.

    Raises:
        NammTransferError: the model does something with a MemoryCache's keys that cannot be served exactly.
    """
    layer: MemoryLayer | None = getattr(key, "memory_layer", None)
    if layer is None and opened_layer() is None:
        if kwargs.get("s_aux") is not None:  # SDPA would leave the sinks out without a word
            raise NammTransferError(f"{type(module).__name__} has attention sinks (s_aux): not served")
        plain = attention_mask.ordinary if isinstance(attention_mask, MemoryMask) else attention_mask
        return sdpa_attention_forward(module, query, key, value, plain, dropout=dropout, scaling=scaling, **kwargs)
    try:
        layer, mask = _check(layer, module, query, key, value, attention_mask, dropout, kwargs)
        tokens, window = mask.tokens, mask.window
        layer.spoiled = True  # until close(): an error in between leaves the layer half way
        output = _attend_and_evict(layer, tokens, window, query, key, value, scaling or query.shape[-1] ** -0.5)
        layer.close(mask.padding, query.shape[2])
    except BaseException:
        if (waiting := layer or opened_layer()) is not None:
            waiting.release()
        raise
    return output.transpose(1, 2).contiguous(), None


def _check(
    layer: MemoryLayer | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[MemoryLayer, MemoryMask]:
    """Refuse what would be served wrongly."""
    name = type(module).__name__
    if layer is None or layer.pending is None or layer.pending[0] is not key or layer.pending[1] is not value:
        raise NammTransferError(
            f"{name} attends to other keys than it gave the MemoryCache (rebuilt, repeated or shared between layers): "
            "this model cannot be served"
        )
    is_causal = kwargs.pop("is_causal", None)
    unserved = [k for k, v in kwargs.items() if k not in _HARMLESS and v is not None and v is not False]
    if unserved or dropout:
        what = ", ".join(unserved) or f"attention dropout {dropout}; call model.eval()"
        raise NammTransferError(f"{name} asks for {what}: not served with a MemoryCache")
    if not isinstance(mask, MemoryMask):
        kind = f"a mask of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else "no causal mask"
        raise NammTransferError(f"{name} came with {kind}: expected the model's own mask from a 2-D attention_mask")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NammTransferError(f"{name} is not causal: not served with a MemoryCache")
    if query.shape[2] != key.shape[2] or query.shape[1] % key.shape[1]:
        raise NammTransferError(f"{name}: queries {tuple(query.shape)} do not fit keys {tuple(key.shape)}")
    if layer.owner is not None and layer.owner() is not module:
        raise NammTransferError("this MemoryCache has been used with another model: make a new one or reset() it")
    layer.owner = weakref.ref(module)
    if layer.columns and layer.index == 0:
        _check_history(layer, mask)
    return layer, mask


def _check_history(layer: MemoryLayer, mask: MemoryMask) -> None:
    """The mask over past columns must be what it was: what was padding is not stored, what was not is."""
    before, now = layer.padding, mask.padding
    if before is None and (now is None or bool(now[:, : layer.columns].all())):
        return
    if before is None or now is None or not torch.equal(before, now[:, : layer.columns]):
        raise NammTransferError(
            f"attention_mask differs from what it was for the {layer.columns} columns already seen: "
            "pass it in full, padding included, with every call"
        )


def plan(clock: list[int], remaining: list[int], interval: float, hop: int) -> list[int]:
    """How many tokens of each sequence to process next, none of them past its next update.

    With ``hop`` 1, as many as possible. Otherwise either sequences that stand inside a hop finish it while the others
    wait, or all that have tokens left advance by the same whole number of hops, or by less than one.
    """
    reach = [min(rest, interval - c % interval) if rest else 0 for c, rest in zip(clock, remaining, strict=True)]
    if hop == 1:
        return [int(r) for r in reach]
    inside = [c % hop if rest else 0 for c, rest in zip(clock, remaining, strict=True)]
    if any(inside):
        return [int(min(r, hop - phase)) if phase else 0 for r, phase in zip(reach, inside, strict=True)]
    step = min(r for r in reach if r)
    step = step - step % hop if step >= hop else hop
    return [int(min(r, step)) for r in reach]


def _attend_and_evict(
    layer: MemoryLayer,
    tokens: Tokens,
    window: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
) -> Tensor:
    """Attention output of a call, (batch, query_heads, new, value_dim); zero at padding."""
    policy = layer.policy
    interval = policy.update_interval if policy.evicts else inf
    if tokens.index is not None:
        query, key, value = (_rows(t, tokens.index) for t in (query, key, value))
    output = query.new_zeros(*query.shape[:3], value.shape[-1])
    done = [0] * len(tokens.counts)
    while any(rest := [count - d for count, d in zip(tokens.counts, done, strict=True)]):
        sizes = plan(layer.clock, rest, interval, policy.hop)
        q, k, v = (_take(t, done, sizes) for t in (query, key, value))
        layer.append(k, v, sizes)
        piece = _attend(layer, q, sizes, scaling, window)
        layer.advance(sizes)
        if policy.evicts:
            with torch.no_grad():
                layer.evict()
        if piece.shape == output.shape and min(sizes) == max(sizes):
            return piece  # the whole call in one piece, which is every decoding step
        for b, (start, size) in enumerate(zip(done, sizes, strict=True)):
            output[b, :, start : start + size] = piece[b, :, :size]
        done = [d + size for d, size in zip(done, sizes, strict=True)]
    return output if tokens.index is None else _rows(output, tokens.index.argsort(dim=-1))


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Reorder the columns of (batch, heads, columns, width) by an index (batch, columns)."""
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def _take(tensor: Tensor, start: list[int], sizes: list[int]) -> Tensor:
    """The next tokens of each sequence: (batch, heads, max(sizes), width); beyond ``sizes[b]`` anything."""
    most = max(sizes)
    if len(set(start)) == 1:
        return tensor[:, :, start[0] : start[0] + most]
    offsets = torch.arange(most, device=tensor.device)
    index = torch.tensor(start, device=tensor.device)[:, None] + offsets
    return _rows(tensor, index.clamp_max(tensor.shape[2] - 1))


def _attend(layer: MemoryLayer, query: Tensor, sizes: list[int], scaling: float, window: int | None) -> Tensor:
    """Attention of the newest block over everything stored, shown to the policy if it wants to see it."""
    queries = query.unflatten(1, (layer.groups[-1].heads.stop, -1))
    attend = _watched if layer.policy.needs_attention else _unwatched
    parts = [attend(layer, g, queries[:, g.heads].flatten(1, 2), sizes, scaling, window) for g in layer.groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _unwatched(
    layer: MemoryLayer, group: HeadGroup, query: Tensor, sizes: list[int], scaling: float, window: int | None
) -> Tensor:
    """Attention output of a group's query heads, (batch, query_heads, new, value_dim)."""
    allowed = _allowed(layer, group, query.shape[2], 0, query.shape[2], window)
    return _fused(query, group.keys, group.values, allowed, scaling)


def _watched(
    layer: MemoryLayer, group: HeadGroup, query: Tensor, sizes: list[int], scaling: float, window: int | None
) -> Tensor:
    """The same, with every row of it shown to the policy."""
    new = query.shape[2]
    stored = group.keys, group.values
    if query.device.type == "cpu" and query.dtype.itemsize == 2:  # without such arithmetic, widening is 5 x faster
        query, stored = query.float(), (group.keys.float(), group.values.float())
    step = _block_rows(group, query)
    blocks, base = [], group.stored - new
    ragged = min(sizes) < new
    for start in range(0, new, step):
        stop = min(start + step, new)
        allowed = _allowed(layer, group, new, start, stop, window)
        end = base + stop
        keys, values = (tensor[:, :, :end] for tensor in stored)
        with torch.autocast(query.device.type, enabled=False):  # which would round the products before the softmax
            out, rows = _explicit(query[:, :, start:stop], keys, values, allowed, scaling, layer.policy.attention_dtype)
        blocks.append(out)
        here = [min(max(size - start, 0), stop - start) for size in sizes]
        if ragged:
            real = torch.arange(stop - start, device=rows.device) < torch.tensor(here, device=rows.device)[:, None]
            rows = rows.masked_fill(~real[:, None, :, None], 0)
        with torch.no_grad():
            group.observe(rows, [c + min(start, size) for c, size in zip(layer.clock, sizes, strict=True)], here)
    output = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    return output.to(group.values.dtype)


def _block_rows(group: HeadGroup, query: Tensor) -> int:
    """Query rows whose softmax weights fit the block size; a whole number of hops."""
    budget = _BLOCK_BYTES.get(query.device.type, _DEFAULT_BLOCK_BYTES)
    rows = budget // (4 * query.shape[0] * query.shape[1] * group.stored)
    return max(16, rows - rows % 16)


def _allowed(
    layer: MemoryLayer, group: HeadGroup, new: int, start: int, stop: int, window: int | None
) -> Tensor | None:
    """Which stored tokens queries ``start`` to ``stop`` of the newest ``new`` may see.

    Returns:
        (batch, heads of the group, queries, tokens) bool, broadcastable; None where causality is all there is to it and
        `_fused` or `_explicit` see it for themselves.
    """
    if not group.holes and window is None:
        return None
    end = group.stored - new + stop
    keys = group.positions[:, :, None, :end]
    columns = torch.arange(end, device=keys.device)
    queries = group.stored - new + torch.arange(start, stop, device=keys.device)
    allowed = (keys >= 0) & (columns <= queries[:, None])
    if window is not None:
        clock = torch.tensor(layer.clock, dtype=torch.int32, device=keys.device)[:, None]
        position = clock + torch.arange(start, stop, dtype=torch.int32, device=keys.device)
        allowed &= position[:, None, :, None] - keys < window
    return allowed


def _fused(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
    """Attention output by torch's fused kernel, (batch, query_heads, new, value_dim)."""
    batch, heads, new, width = query.shape
    kv_heads, stored = keys.shape[1:3]
    groups = heads // kv_heads
    if new == 1:  # the group's queries as rows of their KV head: no repeated keys
        packed = query.reshape(batch, kv_heads, groups, width)
        out = scaled_dot_product_attention(packed, keys, values, attn_mask=allowed, scale=scaling)
        return out.reshape(batch, heads, 1, -1)
    causal = allowed is None and stored == new
    if allowed is None and not causal:
        allowed = torch.ones(new, stored, dtype=torch.bool, device=query.device).tril(stored - new)
    elif allowed is not None and groups > 1:
        allowed = allowed.repeat_interleave(groups, dim=1)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=allowed, is_causal=causal, scale=scaling, enable_gqa=groups > 1
    )


def _explicit(
    query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scaling: float, rounding: str
) -> tuple[Tensor, Tensor]:
    """Attention in the open: the last ``query.shape[2]`` of ``keys`` are the queries' own.

    ``rounding`` names the dtype the policy's rows are rounded to and averaged in; the output is not touched by it.

    Returns:
        Output (batch, query_heads, queries, value_dim), and the softmax weights averaged over each KV group,
        (batch, kv_heads, queries, tokens) float32.
    """
    batch, heads, new, width = query.shape
    kv_heads, tokens = keys.shape[1:3]
    groups = heads // kv_heads
    packed = query.reshape(batch, kv_heads, groups * new, width)
    if packed.dtype.itemsize == 2:  # unscaled, a product may be more than half precision can hold
        scores = ((packed * scaling) @ keys.transpose(-1, -2)).float()
    else:
        scores = (packed @ keys.transpose(-1, -2)).float().mul_(scaling)
    scores = scores.view(batch, kv_heads, groups, new, tokens)
    if allowed is None:
        future = torch.ones(new, new, dtype=torch.bool, device=query.device).triu(1)
        scores[..., tokens - new :].masked_fill_(future, -inf)
    else:
        scores.masked_fill_(~allowed[:, :, None], -inf)
    weights = scores.softmax(-1)
    mixed = weights.to(values.dtype).view(batch, kv_heads, groups * new, tokens) @ values
    rounded = weights.to(getattr(torch, rounding))
    rows = (rounded[:, :, 0] if groups == 1 else rounded.mean(2)).float()
    return mixed.view(batch, heads, new, -1), rows


def register(attention: Callable[..., Any] = memory_attention, mask: Callable[..., Any] = memory_mask) -> None:
    """Make "memory" known to transformers; nothing else changes."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
