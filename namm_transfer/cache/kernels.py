"""Attention over stored keys and values: by torch's fused kernel, and written out, with the attention weights."""

from math import inf

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def fused(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scaling: float) -> Tensor:
    """Attention output by torch's fused kernel, for policies that need not see the attention weights.

    Args:
        query: (batch, query_heads, new, head_dim).
        keys, values: (batch, kv_heads, tokens, width); the last ``new`` tokens are the queries' own.
        allowed: (batch, kv_heads, new, tokens) bool, broadcastable; None: plain causal attention.

    Returns:
        (batch, query_heads, new, value_dim).
    """
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


def explicit(
    query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, scaling: float, rounding: str
) -> tuple[Tensor, Tensor]:
    """Attention written out, for policies that see the attention weights. Arguments as for `fused`.

    Args:
        rounding: the dtype the policy's weights are rounded to and averaged in; the output is not touched by it.

    Returns:
        The output, (batch, query_heads, queries, value_dim), and the softmax weights averaged over the query heads of
        each KV head, (batch, kv_heads, queries, tokens) float32.
    """
    batch, heads, new, width = query.shape
    kv_heads, tokens = keys.shape[1:3]
    groups = heads // kv_heads
    packed = query.reshape(batch, kv_heads, groups * new, width)
    if packed.dtype.itemsize == 2:  # unscaled, a product may be more than half precision can hold
        scores = ((packed * scaling) @ keys.transpose(-1, -2)).float()
    else:
        scores = (packed @ keys.transpose(-1, -2)).mul_(scaling)
    scores = scores.view(batch, kv_heads, groups, new, tokens)
    if allowed is None:
        future = torch.ones(new, new, dtype=torch.bool, device=query.device).triu(1)
        scores[..., tokens - new :].masked_fill_(future, -inf)
    else:
        scores.masked_fill_(~allowed[:, :, None], -inf)
    weights = scores.softmax(-1)
    mixed = weights.to(values.dtype).view(batch, kv_heads, groups * new, tokens) @ values
    rounded = weights.to(getattr(torch, rounding))
    averaged = (rounded[:, :, 0] if groups == 1 else rounded.mean(2)).float()
    return mixed.view(batch, heads, new, -1), averaged
