"""Eviction by the statistical leverage scores of keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView

RIDGE = 1e-6
"""Ridge added to the diagonal of the keys' second-moment matrix, as a share of its mean, to make it invertible."""


@dataclass
class Leverage(ScoredPolicy):
    """Keeps keys that no linear combination of the others gives (Compactor, Chari et al. 2025, arXiv 2507.08143).

    The statistical leverage of a head's cached keys K, (tokens, head_dim): the diagonal of K (K'K + r I)^-1 K', with a
    small ridge r, computed exactly in float64. Compactor approximates it from a random sketch, takes keys before the
    rotary embedding and blends in attention; here are the cached keys alone.
    """

    name = "leverage"

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by its leverage, a number from 0 to 1."""
        keys = view.keys.double().masked_fill(~view.real[..., None], 0)
        moments = keys.transpose(-1, -2) @ keys
        ridge = moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30) * RIDGE
        moments = moments + ridge[..., None, None] * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
        lower = torch.linalg.cholesky(moments)
        return torch.linalg.solve_triangular(lower, keys.transpose(-1, -2), upper=False).square().sum(-2)
