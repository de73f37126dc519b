"""SnapKV: keeps the tokens that an observation window of recent queries attends to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView
from namm_transfer.statistics import QuerySum


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

    @property
    def statistic(self) -> QuerySum:
        """The queries that lie in the last ``window`` of their interval; a new interval starts from zero."""
        return QuerySum("votes", self._window)

    def _window(self, seen: int, length: int) -> tuple[int, bool]:
        phase = seen % self.update_interval
        return max(0, self.update_interval - self.window - phase), phase == 0

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by its pooled votes, and the window above all others, newest first in case not all fits."""
        votes = view.state["votes"]
        pooled = torch.nn.functional.max_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)
        # No token has more votes than there are queries in the window.
        return torch.where(view.age < self.window, 2.0 * self.window - view.age, pooled)
