"""Hand-written eviction rules, each after the paper it comes from."""

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.policy import CacheSize, EvictionPolicy, LayerView, check_interval, top


@dataclass
class FullCache(EvictionPolicy):
    """Keep everything: the ordinary key/value cache."""

    update_interval: int = 512
    evicts: ClassVar[bool] = False

    def select(self, view: LayerView) -> Tensor:
        """All of them."""
        return view.real


@dataclass
class ScoredPolicy(EvictionPolicy):
    """Keeps the best tokens by `scores`, as many as ``keep``, ``budget`` or ``match`` says; half by default."""

    keep: float | None = None
    budget: int | None = None
    match: str | None = None
    update_interval: int = 512

    def __post_init__(self) -> None:
        check_interval(self.update_interval, self.hop)
        size = CacheSize(self.keep, self.budget, self.match)
        self.size = size if size.asked else CacheSize(keep=0.5)

    @abstractmethod
    def scores(self, view: LayerView) -> Tensor:
        """(batch, kv_heads, tokens) float: higher stays. Holes may hold anything."""

    def select(self, view: LayerView) -> Tensor:
        """The best of each head."""
        return top(self.scores(view).masked_fill(~view.real, -inf), self.size.counts(view))


def _age(view: LayerView) -> Tensor:
    """Tokens between each cached token and the newest one, (batch, kv_heads, tokens) int64."""
    return view.positions[..., -1:].long() - view.positions.long()


@dataclass
class Streaming(EvictionPolicy):
    """Attention sinks and a recent window (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).

    Keeps the first ``sinks`` tokens and the newest ``window``; with keep, budget or match, the window is what that
    leaves. Original positions stay, where the paper renumbers them inside the cache.
    """

    sinks: int = 4
    window: int | None = None
    keep: float | None = None
    budget: int | None = None
    match: str | None = None
    update_interval: int = 512

    def __post_init__(self) -> None:
        check_interval(self.update_interval, self.hop)
        if self.sinks < 0 or (self.window is not None and self.window < 1):
            raise NammTransferError(f"streaming: sinks={self.sinks}, window={self.window}: expected >= 0 and >= 1")
        size = CacheSize(self.keep, self.budget, self.match)
        if self.window is not None and size.asked:
            raise NammTransferError("streaming: give window or one of keep, budget and match, not both")
        if self.window is not None:
            size = CacheSize(budget=self.sinks + self.window)
        self.size = size if size.asked else CacheSize(keep=0.5)

    def select(self, view: LayerView) -> Tensor:
        """Sinks first, then the newest, up to the size."""
        sink = (view.positions >= 0) & (view.positions < self.sinks)
        scores = torch.where(sink, inf, -_age(view).float())
        return top(scores.masked_fill(~view.real, -inf), self.size.counts(view))


@dataclass
class H2O(ScoredPolicy):
    """Heavy-hitter oracle (Zhang et al. 2023, arXiv 2306.14048): attention mass received so far, and a recent window.

    A share ``recent`` of the kept tokens are the newest ones, the rest those with the largest sum of attention over all
    queries since they entered the cache, averaged over the query heads of the KV head.
    """

    recent: float = 0.5
    needs_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise NammTransferError(f"h2o: recent={self.recent!r}: expected a share in [0, 1]")

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """``mass``: attention received."""
        return {"mass": torch.zeros(batch, heads, tokens, device=device)}

    def observe(self, state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
        """Add up what each token received."""
        state["mass"] += rows.sum(2)

    def scores(self, view: LayerView) -> Tensor:
        """Mass, with the recent window in front of everything."""
        window = (self.size.counts(view).float() * self.recent).floor()
        return view.state["mass"].masked_fill(_age(view) < window[..., None], inf)


@dataclass
class L2Norm(ScoredPolicy):
    """Keeps keys of small L2 norm (Devoto et al. 2024, arXiv 2406.11430); needs no attention."""

    def scores(self, view: LayerView) -> Tensor:
        """Minus the norm of the cached key; a rotary embedding does not change it."""
        return -view.keys.float().norm(dim=-1)


@dataclass
class TOVA(ScoredPolicy):
    """Token omission via attention (Oren et al. 2024, arXiv 2401.06104).

    Keeps what the newest query attends to, averaged over all heads of the layer, as in the paper. Acts at updates where
    the paper acts at every token.
    """

    needs_attention: ClassVar[bool] = True

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """``last``: the newest query's attention."""
        return {"last": torch.zeros(batch, heads, tokens, device=device)}

    def observe(self, state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
        """Remember the last real row of each sequence."""
        for b, size in enumerate(sizes):
            if size:
                state["last"][b] = rows[b, :, size - 1]

    def scores(self, view: LayerView) -> Tensor:
        """The same for all heads; one that no longer holds a token gives it nothing."""
        last, positions = view.state["last"], view.positions.long()
        newest = int(positions.max())
        place = positions.masked_fill(~view.real, newest + 1)  # heads of unequal length store a token in unequal places
        by_position = last.new_zeros(*last.shape[:2], newest + 2).scatter(-1, place, last)
        return by_position.mean(1, keepdim=True).expand_as(by_position).gather(-1, place)


@dataclass
class SnapKV(ScoredPolicy):
    """Observation window (SnapKV, Li et al. 2024, arXiv 2404.14469): attention of the last ``window`` queries, pooled.

    The sum over the window is max-pooled over ``kernel`` neighbouring cached tokens; the window itself is kept. The
    paper selects once, at the end of the prompt; here every update does.
    """

    window: int = 32
    kernel: int = 7
    needs_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window <= self.update_interval or self.kernel < 1 or self.kernel % 2 == 0:
            raise NammTransferError(
                f"snapkv: window={self.window}, kernel={self.kernel}: expected a window in 1..{self.update_interval} "
                "(the update interval) and an odd kernel"
            )

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """``votes``: attention received from the queries of the current window."""
        return {"votes": torch.zeros(batch, heads, tokens, device=device)}

    def observe(self, state: dict[str, Tensor], rows: Tensor, clock: list[int], sizes: list[int]) -> None:
        """Add the rows that lie in the last ``window`` of their interval; a new interval starts from zero."""
        for b, size in enumerate(sizes):
            phase = clock[b] % self.update_interval
            if phase == 0 and size:
                state["votes"][b] = 0
            first = max(0, self.update_interval - self.window - phase)
            if first < size:
                state["votes"][b] += rows[b, :, first:size].sum(1)

    def scores(self, view: LayerView) -> Tensor:
        """Pooled votes, the window in front: the newest first, in case there is no place for all of it."""
        votes, age = view.state["votes"], _age(view)
        pooled = torch.nn.functional.max_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)
        return torch.where(age < self.window, 2.0 * self.window - age, pooled)  # no token has more votes than queries


@dataclass
class RandomEviction(ScoredPolicy):
    """A random choice that is no draw: the score is a hash of (seed, layer, head, original position)."""

    seed: int = 0

    def scores(self, view: LayerView) -> Tensor:
        """Uniform in [0, 2^24), the same wherever and whenever it is computed."""
        head = torch.arange(view.positions.shape[1], device=view.positions.device)[None, :, None]
        x = view.positions.long() + 1
        for part in (head, view.layer, self.seed):
            x = _mix(x + (part + 1) * 0x9E3779B1)
        return (x >> 16 & 0xFFFFFF).float()


def _mix(x: Tensor) -> Tensor:
    """A 62-bit integer hash (multiply, xor-shift); int64 products wrap around alike on every device."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * 0x14D049BB133111EB
    return x ^ (x >> 31 & 0x1FFFFFFFF)
