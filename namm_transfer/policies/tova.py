"""TOVA: keeps the tokens that the newest query attends to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView
from namm_transfer.statistics import QuerySum


@dataclass
class TOVA(ScoredPolicy):
    """Token omission via attention (Oren et al. 2024, arXiv 2401.06104): what the newest query attends to.

    Attention is averaged over all heads of the layer, as in the paper. The paper evicts at every token, this at
    updates.
    """

    name = "tova"
    needs_attention: ClassVar[bool] = True

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Return ``last``, (batch, heads, tokens) float32: the newest query's attention weights."""
        return {"last": torch.zeros(batch, heads, tokens, device=device)}

    @property
    def statistic(self) -> QuerySum:
        """The weights of each sequence's last query alone."""
        return QuerySum("last", lambda seen, length: (max(0, length - 1), True))

    def scores(self, view: LayerView) -> Tensor:
        """Score a token alike in all heads; a head that no longer holds it contributes zero."""
        last, positions = view.state["last"], view.positions.long()
        newest = int(positions.max())
        place = positions.masked_fill(~view.real, newest + 1)  # heads of unequal length store a token in unequal slots
        by_position = last.new_zeros(*last.shape[:2], newest + 2).scatter(-1, place, last)
        return by_position.mean(1, keepdim=True).expand_as(by_position).gather(-1, place)
