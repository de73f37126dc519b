"""Budget allocation: division of a cache size among layers and heads.

``uniform`` gives every head of every layer the same, ``ada`` divides by score within a layer, ``pyramid`` by a rule
among layers. Where ``match`` names another policy, ``uniform`` takes over the mean of its sizes, ``layer`` the size
of each layer and ``head`` that of each head, so that a comparison can tell where a policy keeps tokens from which.
"""

from math import inf

import torch
from torch import Tensor

from namm_transfer.policy import LayerView
from namm_transfer.selection import top

ALLOCATIONS = ("uniform", "ada", "pyramid", "layer", "head")
LENT = ("layer", "head")
"""Allocations that ``match`` takes over from another policy."""
SAFEGUARD = 0.2
"""Share of its uniform size that ``ada`` leaves to every head (the alpha of Ada-KV)."""
BETA = 20
"""Under ``pyramid`` the last layer keeps one in so many of the mean (the beta of PyramidKV)."""


def adaptive(scores: Tensor, counts: Tensor) -> Tensor:
    """Divide a layer's tokens among its heads by score (Ada-KV, Feng et al. 2024, arXiv 2407.11550).

    Every head keeps its best `SAFEGUARD` x count tokens; the rest of the layer's total goes to the best scores of all
    heads together. This wants scores that can be compared between heads, as attention weights can.

    Args:
        scores: (batch, kv_heads, tokens), -inf at padding slots.
        counts: (batch, kv_heads) int64, the uniform sizes.

    Returns:
        (batch, kv_heads) int64, with the same sum over heads (less only where the heads hold fewer tokens).
    """
    batch, heads, tokens = scores.shape
    guaranteed = top(scores, (counts * SAFEGUARD).long().clamp_min(1))
    # Token by token, so that of equal scores the older token comes first in all heads.
    pooled = scores.masked_fill(guaranteed, inf).transpose(1, 2).reshape(batch, 1, tokens * heads)
    return top(pooled, counts.sum(-1, keepdim=True)).view(batch, tokens, heads).sum(1)


def pyramid(counts: Tensor, view: LayerView) -> Tensor:
    """Give lower layers more and higher layers less, in equal steps (PyramidKV, Cai et al. 2024, arXiv 2406.02069).

    The last layer keeps 1/`BETA` of the mean and the first one as much above the mean as the last is below it; where
    that is more than there are tokens, the first keeps all of them and the last correspondingly more.

    Args:
        counts: (batch, kv_heads) int64, the mean over layers.

    Returns:
        (batch, kv_heads) int64, at least 1.
    """
    seen = torch.tensor(view.seen, device=counts.device)[:, None]
    first = torch.minimum(counts * (2 - 1 / BETA), seen)
    depth = view.layer / (view.layers - 1) if view.layers > 1 else 0.5
    return (first + depth * 2 * (counts - first) + 0.5).floor().long().clamp_min(1)
