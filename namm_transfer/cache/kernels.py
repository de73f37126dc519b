"""Attention over stored keys and values: by torch's fused kernel, and written out, with the attention weights."""

from math import inf

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def fused(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, scaling: float) -> Tensor:
    """Attention output by torch's fused kernel, for policies that need not see the attention weights.

    Args:
        query: (batch, query_heads, new, head_dim).
        keys, values: (batch, kv_heads, tokens, width); the last ``new`` tokens are the queries' own.
        visible: (batch, kv_heads, new or 1, tokens) bool, which tokens may be seen, causality aside; None: all.

    Returns:
        (batch, query_heads, new, value_dim).
    """
    batch, heads, new, width = query.shape
    kv_heads, stored = keys.shape[1:3]
    groups = heads // kv_heads
    if new == 1:  # the group's queries as rows of their KV head: no repeated keys
        packed = query.reshape(batch, kv_heads, groups, width)
        out = scaled_dot_product_attention(packed, keys, values, attn_mask=visible, scale=scaling)
        return out.reshape(batch, heads, 1, -1)
    causal = visible is None and stored == new
    allowed = None
    if not causal:
        allowed = torch.ones(new, stored, dtype=torch.bool, device=query.device).tril(stored - new)
        allowed = allowed if visible is None else (visible & allowed).repeat_interleave(groups, dim=1)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=allowed, is_causal=causal, scale=scaling, enable_gqa=groups > 1
    )


def explicit(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, scaling: float, rounding: str
) -> tuple[Tensor, Tensor]:
    """Attention written out, for policies that see the attention weights. Arguments as for `fused`.

    Args:
        rounding: the dtype the policy's weights are rounded to and averaged in; the output is not touched by it.

    Returns:
        The output, (batch, query_heads, queries, value_dim), and the softmax weights averaged over the query heads of
        each KV head, (batch, kv_heads, queries, tokens) float32.
    """
    batch, heads, new, _ = query.shape
    kv_heads = keys.shape[1]
    scores = _scores(query.reshape(batch, kv_heads, -1, query.shape[-1]), keys, new, visible, scaling)
    _hide_future(scores)
    weights = scores.softmax(-1)
    mixed = weights.to(values.dtype).flatten(2, 3) @ values
    return mixed.view(batch, heads, new, -1), _averaged(weights, rounding)


def _scores(query: Tensor, keys: Tensor, new: int, visible: Tensor | None, scaling: float) -> Tensor:
    """Scaled products in float32, -inf where not visible: (batch, rows, queries of a group, new, tokens).

    Args:
        query: (batch, rows, queries of a group x new, head_dim).
    """
    if query.dtype.itemsize == 2:  # unscaled, a product may be more than half precision can hold
        scores = ((query * scaling) @ keys.transpose(-1, -2)).float()
    else:
        scores = (query @ keys.transpose(-1, -2)).mul_(scaling)
    scores = scores.unflatten(2, (-1, new))
    return scores if visible is None else scores.masked_fill_(~visible[:, :, None], -inf)


def _hide_future(scores: Tensor) -> None:
    """Set to -inf what lies behind each query; the last tokens are the queries' own."""
    new = scores.shape[-2]
    if new > 1:
        future = torch.ones(new, new, dtype=torch.bool, device=scores.device).triu(1)
        scores[..., scores.shape[-1] - new :].masked_fill_(future, -inf)


def _averaged(weights: Tensor, rounding: str) -> Tensor:
    """Attention weights as a policy sees them, (batch, rows, new, tokens) float32."""
    rounded = weights.to(getattr(torch, rounding))
    return (rounded[:, :, 0] if weights.shape[2] == 1 else rounded.mean(2)).float()


Part = tuple[Tensor, Tensor, Tensor | None]
"""Keys, values and which tokens are visible, as in `fused`."""


def paged(
    query: Tensor, pages: Part, owners: Tensor, recent: Part, scaling: float, rounding: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention written out over pages, each of one KV head, and over newer tokens, in one softmax.

    Args:
        query: (batch, query_heads, new, head_dim).
        pages: (batch, pages, page tokens, width); all older than the queries.
        owners: (pages,) int64, the KV head of each page.
        recent: (batch, kv_heads, tokens, width); the last ``new`` tokens are the queries' own.
        rounding: as for `explicit`.

    Returns:
        The output, (batch, query_heads, new, value_dim), and the averaged weights over pages and over newer tokens.
    """
    batch, heads, new, width = query.shape
    kv_heads = recent[0].shape[1]
    packed = query.reshape(batch, kv_heads, -1, width)
    old = _scores(packed.index_select(1, owners), pages[0], new, pages[2], scaling).flatten(2, 3)
    now = _scores(packed, recent[0], new, recent[2], scaling)
    _hide_future(now)
    now = now.flatten(2, 3)
    scattered = owners[None, :, None].expand(batch, -1, now.shape[2])
    high = now.amax(-1).scatter_reduce_(1, scattered, old.amax(-1), "amax")
    old.sub_(high.index_select(1, owners)[..., None]).exp_()
    now.sub_(high[..., None]).exp_()
    total = now.sum(-1).scatter_add_(1, scattered, old.sum(-1)).reciprocal_()
    old.mul_(total.index_select(1, owners)[..., None])
    now.mul_(total[..., None])
    mixed = (now.to(recent[1].dtype) @ recent[1]).to(now.dtype)
    partial = (old.to(pages[1].dtype) @ pages[1]).to(now.dtype)
    if batch > 1:  # one axis of rows and heads: adding along the first axis is several times faster
        owners = (torch.arange(batch, device=owners.device)[:, None] * kv_heads + owners).flatten()
    mixed.flatten(0, 1).index_add_(0, owners, partial.flatten(0, 1))
    old, now = (_averaged(weights.unflatten(2, (-1, new)), rounding) for weights in (old, now))
    return mixed.to(query.dtype).view(batch, heads, new, -1), old, now
