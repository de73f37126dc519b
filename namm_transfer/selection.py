"""Selection of the tokens that stay: cache sizes, protected tokens, and the tokens with the highest scores."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, floor, inf, isfinite
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError

if TYPE_CHECKING:
    from namm_transfer.policy import EvictionPolicy, LayerView

ROUNDING = 2.0**-20
"""Relative difference up to which float32 scores are taken to differ by rounding only: 8 units in the last place."""


@dataclass(frozen=True)
class CacheSize:
    """Number of tokens that a head keeps after an update; at most one of the four fields may be given."""

    keep: float | None = None
    """Share of the tokens seen, in (0, 1]; a head keeps ceil(keep x seen)."""
    budget: int | None = None
    """Number of tokens, 1 or more."""
    match: str | None = None
    """Name of the policy whose cache size is to be matched; an evaluator replaces it by a schedule."""
    schedule: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """Number of tokens that each head keeps, ``schedule[layer][update][head]``, or a single number a layer, the mean of
    its heads; the last update's numbers hold for later ones."""

    def __post_init__(self) -> None:
        asked = [name for name in ("keep", "budget", "match") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise NammTransferError(f"give one of keep, budget and match, not {' and '.join(asked)}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise NammTransferError(f"keep={self.keep!r}: expected a share in (0, 1]")
        if self.budget is not None and self.budget < 1:
            raise NammTransferError(f"budget={self.budget!r}: expected a number of tokens, 1 or more")

    @property
    def asked(self) -> bool:
        """True if a size was requested."""
        return any(size is not None for size in (self.keep, self.budget, self.match, self.schedule))

    def counts(self, view: LayerView) -> Tensor:
        """Compute the number of tokens to keep, (batch, kv_heads) int64."""
        batch, heads, _ = view.positions.shape
        if self.keep is not None:
            per_row = [[ceil(round(self.keep * seen, 6))] * heads for seen in view.seen]
        elif self.budget is not None:
            per_row = [[self.budget] * heads] * batch
        else:
            per_row = [self._scheduled(view, heads)] * batch
        return torch.tensor(per_row, device=view.positions.device)

    def _scheduled(self, view: LayerView, heads: int) -> list[int]:
        if self.schedule is None:
            raise NammTransferError(
                f"match={self.match!r}: no schedule; an evaluator runs that policy first, or see policies.with_schedule"
            )
        row = self.schedule[view.layer] if view.layer < len(self.schedule) else ()
        if not row:
            raise NammTransferError(f"the schedule to match has no update of layer {view.layer}")
        sizes = row[min(view.update, len(row) - 1)]
        if len(sizes) not in (1, heads):
            raise NammTransferError(f"the schedule has sizes for {len(sizes)} heads; layer {view.layer} has {heads}")
        if len(sizes) == 1:
            # Heads round at different places, so that the layer's mean is met although each head keeps whole tokens.
            return [max(1, floor(sizes[0] + (head + 0.5) / heads)) for head in range(heads)]
        sums = [round(total) for total in accumulate(sizes, initial=0.0)]  # rounded so, the layer's sum is met
        return [max(1, after - before) for before, after in pairwise(sums)]


@dataclass(frozen=True)
class Protection:
    """Ends of a sequence that are never evicted, written ``A:B``: its first A tokens and its newest B.

    Protected tokens count into ``keep``, ``budget`` and ``match``: they take their places first, and the score decides
    about the rest. A head whose size is smaller than its protected tokens keeps exactly those.
    """

    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str | None, budget: int | None = None) -> Protection:
        """Read ``A:B``; None protects nothing.

        Raises:
            NammTransferError: ``text`` is not two numbers, or a ``budget`` has no room for them.
        """
        if text is None:
            return cls()
        numbers = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII) if isinstance(text, str) else None
        if numbers is None:
            raise NammTransferError(f"protect={text!r}: expected A:B, the numbers of first and last tokens to protect")
        found = cls(int(numbers[1]), int(numbers[2]))
        if budget is not None and found.first + found.last > budget:
            raise NammTransferError(f"protect={text} needs {found.first + found.last} tokens: budget={budget} is less")
        return found

    def mask(self, view: LayerView) -> Tensor:
        """Mark the protected tokens of a view, (batch, kv_heads, tokens) bool."""
        if not self.first and not self.last:
            return torch.zeros_like(view.positions, dtype=torch.bool)
        return view.real & ((view.positions < self.first) | (view.age < self.last))


def top(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts`` best tokens of each head; of equal scores the older token comes first.

    Args:
        scores: (batch, kv_heads, tokens), tokens from old to new; -inf marks what must not be kept.
        counts: (batch, kv_heads) int64.

    Returns:
        (batch, kv_heads, tokens) bool.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    chosen = torch.arange(scores.shape[-1], device=scores.device) < counts[..., None]
    return torch.zeros_like(chosen.expand_as(scores)).scatter(-1, order, chosen.expand_as(scores)) & (scores > -inf)


def merge_ties(scores: Tensor) -> Tensor:
    """Make scores equal that differ by rounding only, so that the last bit decides nothing.

    Along the last axis, sorted scores that follow each other within a relative `ROUNDING` all become the largest of
    them. Rounding to a grid would not do: two nearly equal scores may lie on both sides of a grid's edge.

    Args:
        scores: (..., tokens) floating point; infinities stay what they are.

    Returns:
        (..., tokens), of the same dtype.
    """
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    apart = ~torch.isclose(ordered[..., 1:], ordered[..., :-1], rtol=ROUNDING, atol=0.0)
    place = torch.arange(1, scores.shape[-1], device=scores.device)
    first = torch.nn.functional.pad((place * apart).cummax(-1).values, (1, 0))
    return torch.zeros_like(scores).scatter(-1, order, ordered.gather(-1, first))


Policy = TypeVar("Policy", bound="EvictionPolicy")


def with_schedule(
    policy: Policy, schedule: Tensor | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
) -> Policy:
    """Return a copy of ``policy`` that keeps as many tokens as a schedule says, which resolves ``match``.

    Args:
        policy: the policy to copy.
        schedule: (layers, updates), the mean number of tokens a head keeps after each update, or (layers, updates,
            heads), the number that each head keeps. Entries that are not finite (a layer with fewer updates) are
            dropped; later updates use the last entry.
    """
    rows = schedule.tolist() if isinstance(schedule, Tensor) else schedule
    sizes = [[tuple(map(float, c)) if isinstance(c, Sequence) else (float(c),) for c in row] for row in rows]
    matched = copy.copy(policy)
    matched.match = None
    matched.size = CacheSize(schedule=tuple(tuple(c for c in row if all(map(isfinite, c))) for row in sizes))
    return matched
