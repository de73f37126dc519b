"""Recency baselines: a window of the newest tokens, with and without attention sinks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView
from namm_transfer.selection import CacheSize, Protection


@dataclass
class Recent(ScoredPolicy):
    """Keeps the newest tokens alone (window attention): the simplest baseline, without attention sinks."""

    name = "recent"

    def scores(self, view: LayerView) -> Tensor:
        """Score a token by minus its age."""
        return -view.age


@dataclass
class Streaming(ScoredPolicy):
    """Attention sinks and a recent window (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).

    Original positions stay, where the paper renumbers them inside the cache.
    """

    name = "streaming"
    sinks: int = 4
    """Number of first tokens to keep."""
    window: int | None = None
    """Number of newest tokens to keep; with keep, budget or match, the window is what those leave."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0 or (self.window is not None and self.window < 1):
            raise NammTransferError(f"streaming: sinks={self.sinks}, window={self.window}: expected >= 0 and >= 1")
        if self.window is not None:
            if CacheSize(self.keep, self.budget, self.match).asked:
                raise NammTransferError("streaming: give window or one of keep, budget and match, not both")
            self.size = CacheSize(budget=self.sinks + self.window)
            Protection.parse(self.protect, self.size.budget)

    def scores(self, view: LayerView) -> Tensor:
        """Score sinks above all others, and these by minus their age."""
        return torch.where(view.positions < self.sinks, 1, -view.age)
