"""`ScoredPolicy`: the base class of all policies that keep the tokens with the best scores."""

from abc import abstractmethod
from dataclasses import dataclass
from math import inf

from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.policies.allocation import ALLOCATIONS, LENT, adaptive, pyramid
from namm_transfer.policy import EvictionPolicy, LayerView, check_interval
from namm_transfer.selection import CacheSize, Protection, merge_ties, top


@dataclass(kw_only=True)
class ScoredPolicy(EvictionPolicy):
    """Keeps the tokens with the best `scores`, as many as the size says. Scores that differ by rounding only count as
    equal, and of equal scores the older token stays."""

    keep: float | None = None
    """Share of the tokens seen that a head keeps; 0.5 if no size is given."""
    budget: int | None = None
    """Number of tokens that a head keeps."""
    match: str | None = None
    """Name of the policy whose cache size this one is to match."""
    allocation: str | None = None
    """Division of the size: ``uniform`` (every head the same; the default), ``ada`` across the heads of a layer or
    ``pyramid`` across layers, or with ``match`` as that policy divides it, by ``layer`` (then the default) or by
    ``head``; see `namm_transfer.policies.allocation`. The mean over heads and layers stays the same."""
    protect: str | None = None
    """``A:B``: the first A and the last B tokens are never evicted and count into the size."""
    update_interval: int = 512
    """Number of real tokens between two updates."""

    def __post_init__(self) -> None:
        check_interval(self.update_interval, self.hop)
        size = CacheSize(self.keep, self.budget, self.match)
        self.size = size if size.asked else CacheSize(keep=0.5)
        Protection.parse(self.protect, self.budget)
        if self.allocation is not None and self.allocation not in ALLOCATIONS:
            raise NammTransferError(f"allocation={self.allocation!r}: expected one of {', '.join(ALLOCATIONS)}")
        if self.allocation == "pyramid" and self.match is not None:
            raise NammTransferError(f"allocation=pyramid: match={self.match} already says what each layer keeps")
        if self.allocation in LENT and self.match is None:
            raise NammTransferError(f"allocation={self.allocation}: expected match=POLICY, whose sizes it takes over")

    @abstractmethod
    def scores(self, view: LayerView) -> Tensor:
        """Score every cached token: (batch, kv_heads, tokens), higher stays.

        Padding slots may hold anything. Integer scores (below 2^24) are exact: only equal ones are ties.
        """

    def counts(self, view: LayerView) -> Tensor:
        """Compute the number of tokens to keep before heads exchange any, (batch, kv_heads) int64."""
        counts = self.size.counts(view)
        return pyramid(counts, view) if self.allocation == "pyramid" else counts

    def select(self, view: LayerView) -> Tensor:
        """Mark the best tokens of each head, the protected ones first."""
        scores, protected = self.scores(view), self.protected(view)
        exact = not scores.is_floating_point()
        scores = scores.float().masked_fill(~view.real, -inf).masked_fill(protected, inf)
        counts = self.counts(view)
        if self.allocation == "ada":
            scores = scores if exact else merge_ties(scores.flatten(1)).view_as(scores)
            counts = adaptive(scores, counts)
        elif not exact:
            scores = merge_ties(scores)
        return top(scores, counts.clamp_min(protected.sum(-1)))
