"""Calls of one layer of a memory without a model around it."""

import torch

from namm_transfer.cache.blocks import attend_and_evict
from namm_transfer.cache.masks import Tokens


def call(layer, q, k, v, counts, window):
    """Attention output of a call in which sequence b has ``counts[b]`` tokens, padded on the left."""
    if not layer.is_initialized:
        layer.lazy_initialization(k, v)
    new = q.shape[2]
    index = None
    if min(counts) < new:  # padding on the left: its columns go behind the real ones
        index = torch.tensor([[*range(new - count, new), *range(new - count)] for count in counts])
    out = attend_and_evict(layer, Tokens(counts, index), window, q, k, v, 0.7)
    layer.close(None, new)
    return out
