"""InfiniPot-V: keeps video tokens that differ from the newest frames, and tokens with large values."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import normalize

from namm_transfer.errors import NammTransferError
from namm_transfer.policies.scored import ScoredPolicy
from namm_transfer.policy import LayerView
from namm_transfer.selection import merge_ties, top


@dataclass
class InfiniPotV(ScoredPolicy):
    """Keeps what differs from the newest frames, and large values (InfiniPot-V, Kim et al. 2025, arXiv 2506.15745).

    A part of the size goes to the tokens whose keys have the smallest mean cosine similarity with the keys at the same
    place in the newest frames (temporal-axis redundancy), these frames included; the rest goes to the largest norms of
    values. Places are told by positions: those that differ by a multiple of ``frame`` show the same part of a picture,
    which wants a model that reads all frames as equally many tokens. Text takes part as if it were frames. The paper
    also pools the norms over neighbours.
    """

    name = "infinipot-v"
    frame: int = 144
    """Number of tokens from one frame to the next; 144 is LLaVA-NeXT-Video's."""
    recent: int = 1
    """Number of newest frames that others are compared with."""
    temporal: float = 0.5
    """Share of the kept tokens that goes to temporal redundancy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame < 1 or self.recent < 1 or not 0 <= self.temporal <= 1:
            raise NammTransferError(
                f"infinipot-v: frame={self.frame}, recent={self.recent}, temporal={self.temporal}: expected 1 or more, "
                "1 or more, and a share in [0, 1]"
            )

    def scores(self, view: LayerView) -> Tensor:
        """Score the tokens that temporal redundancy chooses above all others, and these by the norm of their value."""
        novelty = self.novelty(view).masked_fill(~view.real, -inf)
        counts = (self.counts(view).float() * self.temporal).long()
        chosen = top(merge_ties(novelty), counts)
        return view.values.float().norm(dim=-1).masked_fill(chosen, inf)

    def novelty(self, view: LayerView) -> Tensor:
        """Compute 2 - the mean cosine similarity of each key with the newest frames' keys at its place.

        Returns:
            (batch, kv_heads, tokens) float32, 4 for tokens of the newest frames themselves.
        """
        keys = normalize(view.keys.float(), dim=-1)
        newest = view.real & (view.age < self.recent * self.frame)
        place = view.positions.long().clamp_min(0) % self.frame
        index = place[..., None].expand_as(keys)
        sums = keys.new_zeros(*keys.shape[:2], self.frame, keys.shape[-1])
        sums = sums.scatter_add(2, index, keys.masked_fill(~newest[..., None], 0))
        found = torch.zeros_like(sums[..., 0]).scatter_add(2, place, newest.float())
        mean = sums / found.clamp_min(1)[..., None]
        return (2 - (keys * mean.gather(2, index)).sum(-1)).masked_fill(newest, 4.0)
