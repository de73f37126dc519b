"""SnapKV: keeps the tokens that an observation window of recent queries attends to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView


@dataclass
class SnapKV(ScoredPolicy):
    """Observation window (SnapKV, Li et al. 2024, arXiv 2404.14469): what the last queries before an update attend to.

    The paper selects once, at the end of the prompt; here every update selects.
    """

    name = "snapkv"
    needs_attention: ClassVar[bool] = True
    window: int = 32
    """Number of last queries whose attention is summed; their own tokens are kept."""
    kernel: int = 7
    """Number of neighbouring cached tokens over which the sum is max-pooled; odd."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window <= self.update_interval or self.kernel < 1 or self.kernel % 2 == 0:
            raise NammTransferError(
                f"snapkv: window={self.window}, kernel={self.kernel}: expected a window in 1..{self.update_interval} "
                "(the update interval) and an odd kernel"
            )

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Return ``votes``, (batch, heads, tokens) float32: attention from the queries of the current window."""
        return {"votes": torch.zeros(batch, heads, tokens, device=device)}

    def observe(
        self, state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]
    ) -> None:
        """Add the queries that lie in the last ``window`` of their interval; a new interval starts from zero."""
        for b, length in enumerate(query_lengths):
            phase = tokens_seen[b] % self.update_interval
            if phase == 0 and length:
                state["votes"][b] = 0
            first = max(0, self.update_interval - self.window - phase)
            if first < length:
                state["votes"][b] += weights[b, :, first:length].sum(1)

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by its pooled votes, and the window above all others, newest first in case not all fits."""
        votes = view.state["votes"]
        pooled = torch.nn.functional.max_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)
        # No token has more votes than there are queries in the window.
        return torch.where(view.age < self.window, 2.0 * self.window - view.age, pooled)
