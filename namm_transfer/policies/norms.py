"""Eviction by the norms of keys and values; neither policy needs attention weights."""

from dataclasses import dataclass

from torch import Tensor

from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView


@dataclass
class L2Norm(ScoredPolicy):
    """Keeps keys of small L2 norm (Devoto et al. 2024, arXiv 2406.11430)."""

    name = "l2"

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by minus the norm of its key, which a rotary embedding does not change."""
        return -view.keys.float().norm(dim=-1)


@dataclass
class ValueNorm(ScoredPolicy):
    """Keeps values of large L2 norm (the VaN score of InfiniPot-V, Kim et al. 2025, arXiv 2506.15745).

    This is the score alone: the paper also pools it over neighbouring tokens and removes redundant video frames.
    """

    name = "value-norm"

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by the norm of its value."""
        return view.values.float().norm(dim=-1)
