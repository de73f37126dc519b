"""What an eviction policy is: the interface between the cache and whatever decides which tokens stay.

A policy holds no per-sequence state; that lives in the cache, one tensor per name with the token axis last, so that the
cache can append, gather and reorder it without knowing what it means.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError


@dataclass
class LayerView:
    """What a policy sees of one layer, or of one of its KV heads, at an update; only the sequences whose clock reached
    an update are in it.

    Evicted and padding tokens do not exist. Where sequences or heads hold different numbers of tokens the older end is
    filled with holes, whose position is -1.
    """

    layer: int
    keys: Tensor
    """(batch, kv_heads, tokens, head_dim), as cached: after rotary embedding."""
    positions: Tensor
    """(batch, kv_heads, tokens) int32, original positions, ascending; -1 marks a hole."""
    state: dict[str, Tensor]
    """Per-token state of the policy, each (batch, kv_heads, ..., tokens)."""
    seen: list[int]
    """Real tokens each sequence has processed."""
    update: int
    """Number of the update, from 0; the same for all sequences in the view."""
    head: int = 0
    """KV head of the layer that the view's first is; above 0 under a policy that judges `by_head`."""

    @property
    def real(self) -> Tensor:
        """(batch, kv_heads, tokens) bool: False at holes."""
        return self.positions >= 0


@dataclass(frozen=True)
class CacheSize:
    """How many tokens a head keeps after an update: ``keep`` x seen, at most ``budget``, or what a schedule says."""

    keep: float | None = None
    budget: int | None = None
    match: str | None = None
    schedule: tuple[tuple[float, ...], ...] | None = None

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
        """Whether any size was asked for."""
        return any(size is not None for size in (self.keep, self.budget, self.match, self.schedule))

    def counts(self, view: LayerView) -> Tensor:
        """Tokens to keep, (batch, kv_heads) int64."""
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
        mean = row[min(view.update, len(row) - 1)]
        # Heads round at different places, so that the layer's mean is met although each head keeps whole tokens.
        return [max(1, floor(mean + (head + 0.5) / heads)) for head in range(heads)]


def top(scores: Tensor, counts: Tensor) -> Tensor:
    """Mask of the ``counts`` best tokens of each head; ties keep the older token.

    Args:
        scores: (batch, kv_heads, tokens), tokens from old to new; -inf marks what must not be kept.
        counts: (batch, kv_heads) int64.

    Returns:
        (batch, kv_heads, tokens) bool.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    chosen = torch.arange(scores.shape[-1], device=scores.device) < counts[..., None]
    return torch.zeros_like(chosen.expand_as(scores)).scatter(-1, order, chosen.expand_as(scores)) & (scores > -inf)


def check_interval(update_interval: int, multiple_of: int) -> None:
    """Refuse an update interval that is no positive multiple of ``multiple_of``."""
    if not isinstance(update_interval, int) or update_interval < 1 or update_interval % multiple_of:
        what = "a positive integer" if multiple_of == 1 else f"a positive multiple of {multiple_of} (the STFT's hop)"
        raise NammTransferError(f"update_interval={update_interval!r}: expected {what}")


class EvictionPolicy(ABC):
    """Decides which tokens of a layer's key/value cache stay.

    The cache calls `observe` with every block of attention rows if `needs_attention` is set, and `select` when a
    sequence's count of real tokens reaches a multiple of `update_interval`.
    """

    update_interval: int = 512
    size: CacheSize = CacheSize()
    match: str | None = None
    """Name of the policy whose cache size this one shall have and has not been told yet; see `with_schedule`."""
    evicts: ClassVar[bool] = True
    """False: the cache is never cut, `select` is never called."""
    needs_attention: ClassVar[bool] = False
    """True: attention is computed in the open and `observe` sees every row of it, averaged over the KV group."""
    attention_dtype: str = "float32"
    """What attention rows are rounded to before `observe` sees them (as float32 again)."""
    hop: ClassVar[int] = 1
    """Rows are handed over in blocks that do not straddle a multiple of this, counted in real tokens."""

    @property
    def by_head(self) -> bool:
        """True: every KV head is shown by itself, and stored by itself, so that one which keeps less takes less. False:
        the heads of a layer are shown together, and a layer takes what its fullest head needs."""
        return False

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """State of new tokens: zeros, each tensor (batch, heads, ..., tokens)."""
        return {}

    def observe(  # noqa: B027  (a policy that needs no attention has nothing to do)
        self, state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]
    ) -> None:
        """Fold attention into ``state``, in place.

        Args:
            rows: (batch, kv_heads, queries, tokens) float32 softmax weights, zero beyond ``sizes[b]`` queries.
            clock: real tokens each sequence had processed before these rows.
            sizes: real queries of each sequence.
        """

    @abstractmethod
    def select(self, view: LayerView) -> Tensor:
        """Which tokens stay: (batch, kv_heads, tokens) bool."""


def with_schedule(policy: EvictionPolicy, schedule: Tensor | Sequence[Sequence[float]]) -> EvictionPolicy:
    """A copy of ``policy`` that keeps ``schedule[layer][update]`` tokens a head, (layers, updates): resolves match=.

    Entries that are not finite (a layer with fewer updates) are dropped; later updates use the last entry.
    """
    matched = copy.copy(policy)
    matched.match = None
    matched.size = CacheSize(schedule=tuple(tuple(float(c) for c in row if isfinite(c)) for row in schedule))
    return matched
