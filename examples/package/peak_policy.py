"""A policy in a package of its own: after `pip install .` it is `--policy peak:keep=0.5` of every evaluation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer import LayerView
from namm_transfer.policies import ScoredPolicy


@dataclass
class PeakAttention(ScoredPolicy):
    """Keeps the tokens with the largest attention weight they ever received."""

    needs_attention: ClassVar[bool] = True

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """``peak`` (batch, heads, tokens) float32: the largest weight each token received."""
        return {"peak": torch.zeros(batch, heads, tokens, device=device)}

    def observe(
        self, state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]
    ) -> None:
        """Compare with this block of queries."""
        state["peak"] = torch.maximum(state["peak"], weights.amax(2))

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by its peak."""
        return view.state["peak"]
