"""Scores a token by how far its key points away from the mean key of its head (KeyDiff, Park et al. 2025, arXiv
2504.15364)."""

from torch import Tensor
from torch.nn.functional import normalize

from namm_transfer.policy import LayerView


def key_difference(view: LayerView) -> Tensor:
    """Compute 1 - cos(a token's key, the mean of all cached keys scaled to length 1): (batch, kv_heads, tokens)
    float32, meaningless at padding slots."""
    keys = normalize(view.keys.float(), dim=-1).masked_fill(~view.real[..., None], 0)
    anchor = normalize(keys.sum(-2, keepdim=True), dim=-1)
    return 1 - (keys * anchor).sum(-1)
