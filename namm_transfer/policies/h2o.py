"""H2O: keeps the tokens with the most accumulated attention."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView
from namm_transfer.statistics import QuerySum


@dataclass
class H2O(ScoredPolicy):
    """Heavy-hitter oracle (Zhang et al. 2023, arXiv 2306.14048): the tokens that received most attention so far.

    Attention is summed over all queries since a token entered the cache and averaged over the query heads of its KV
    head.
    """

    name = "h2o"
    needs_attention: ClassVar[bool] = True
    recent: float = 0.5
    """Share of the kept tokens that are simply the newest ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise NammTransferError(f"h2o: recent={self.recent!r}: expected a share in [0, 1]")

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Return ``mass``, (batch, heads, tokens) float32: the attention that each token has received."""
        return {"mass": torch.zeros(batch, heads, tokens, device=device)}

    @property
    def statistic(self) -> QuerySum:
        """The attention that a token receives from all queries."""
        return QuerySum("mass", lambda seen, length: (0, False))

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by its attention mass, and the recent window above all others."""
        window = (self.counts(view).float() * self.recent).floor()
        return view.state["mass"].masked_fill(view.age < window[..., None], inf)
