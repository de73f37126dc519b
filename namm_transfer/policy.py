"""The interface of eviction policies, through which the cache asks which tokens stay.

A policy object holds no state of a sequence. That lives in the cache, in named tensors whose last axis is the token, so
that the cache can append, gather and reorder it without knowing what it means.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from namm_transfer.errors import NammTransferError
from namm_transfer.selection import CacheSize, Protection
from namm_transfer.statistics import Statistic


@dataclass(kw_only=True)
class LayerView:
    """The view of one layer's cache that a policy gets at an update; if it judges `by_head`, each head is a sequence.

    Only sequences that reached an update are in it, and only tokens that are still cached: evicted tokens and the
    padding of the batch do not exist. Where sequences or heads hold different numbers of tokens, the older end of the
    shorter ones is filled with padding slots, whose position is -1 and whose other contents mean nothing.
    """

    layer: int
    """Number of the layer, from 0."""
    layers: int = 1
    """Number of layers in the cache."""
    heads: Tensor
    """Indices of the KV heads in the layer, (batch, kv_heads) int64."""
    keys: Tensor
    """Cached keys after rotary embedding, (batch, kv_heads, tokens, head_dim), in the model's dtype."""
    values: Tensor
    """Cached values, (batch, kv_heads, tokens, value_dim), in the model's dtype."""
    positions: Tensor
    """Original positions, ascending, (batch, kv_heads, tokens) int32; -1 marks a padding slot."""
    state: dict[str, Tensor]
    """The policy's state of each token; every tensor is (batch, kv_heads, ..., tokens)."""
    seen: list[int]
    """Number of real tokens that each sequence has processed."""
    update: int
    """Number of this update, from 0; the same for all sequences in the view."""

    @property
    def real(self) -> Tensor:
        """Mark the real tokens, (batch, kv_heads, tokens) bool: False at padding slots."""
        return self.positions >= 0

    @property
    def age(self) -> Tensor:
        """Number of tokens after each one, evicted ones included: (batch, kv_heads, tokens) int64."""
        return self.positions[..., -1:].long() - self.positions.long()


def check_interval(update_interval: int, multiple_of: int) -> None:
    """Refuse an update interval that is not a positive multiple of ``multiple_of``."""
    if not isinstance(update_interval, int) or update_interval < 1 or update_interval % multiple_of:
        what = "a positive integer" if multiple_of == 1 else f"a positive multiple of {multiple_of} (the STFT's hop)"
        raise NammTransferError(f"update_interval={update_interval!r}: expected {what}")


class EvictionPolicy(ABC):
    """Decides which tokens of a layer's key/value cache stay.

    The cache calls `observe` with every block of attention weights if `needs_attention` is set, and `decide` when the
    number of real tokens of a sequence reaches a multiple of `update_interval`.
    """

    name: str = ""
    """The policy's name in the registry and on the command line, for example ``h2o``."""
    update_interval: int = 512
    """Number of real tokens between two updates."""
    size: CacheSize = CacheSize()
    """Number of tokens that a head keeps; by default no size is requested."""
    match: str | None = None
    """Name of the policy whose cache size is to be matched, until `with_schedule` supplies that size; else None."""
    allocation: str | None = None
    """Division of the size among layers and heads, see `namm_transfer.policies.allocation`; by default all heads get
    the same, or with ``match`` as many as that policy kept in the layer."""
    protect: str | None = None
    """``"A:B"``: the first A and the last B tokens are never evicted; see `Protection`."""
    evicts: ClassVar[bool] = True
    """False: the cache is never cut, and `decide` is never called."""
    needs_attention: ClassVar[bool] = False
    """True: attention weights are computed explicitly, and `observe` sees all of them, averaged over each KV group."""
    attention_dtype: str = "float32"
    """The dtype that attention weights are rounded to before `observe` sees them (as float32 again)."""
    hop: ClassVar[int] = 1
    """Attention weights come in blocks of queries that do not straddle a multiple of this many real tokens."""

    @property
    def statistic(self) -> Statistic | None:
        """The statistic of attention weights that `observe` computes, if it is one that a GPU computes without writing
        the weights. None: `observe` needs the weights, as where a class overrides it and not this."""
        return None

    @property
    def computed_statistic(self) -> Statistic | None:
        """`statistic`, or None if a subclass or the object itself has an `observe` that knows nothing of it."""
        override = next(some for some in type(self).__mro__ if {"observe", "statistic"} & vars(some).keys())
        return None if "observe" in vars(self) or "statistic" not in vars(override) else self.statistic

    @property
    def by_head(self) -> bool:
        """True: every KV head is judged by itself and takes the memory of the tokens that it keeps. `select` is then
        shown (batch, 1, tokens), where each head of each sequence is a sequence; `observe` may be shown a head's tokens
        in several parts, as if they were several heads, and must treat each token by itself.
        False: the heads of a layer are shown together, and the layer takes what its fullest head needs."""
        return False

    def state(self, batch: int, heads: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Return the state of new tokens: tensors of zeros, each (batch, heads, ..., tokens)."""
        return {}

    def observe(
        self, state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]
    ) -> None:
        """Fold a block of attention weights into ``state``, in place.

        Args:
            state: the policy's state of the first ``weights.shape[-1]`` cached tokens.
            weights: (batch, kv_heads, queries, tokens) float32, after the softmax, averaged over each KV group; the
                rows of sequence b beyond its ``query_lengths[b]`` queries are zero.
            tokens_seen: number of real tokens that each sequence had processed before this block.
            query_lengths: number of real queries of each sequence in this block.
        """
        if self.statistic is not None:
            self.statistic.observe(state, weights, tokens_seen, query_lengths)

    @abstractmethod
    def select(self, view: LayerView) -> Tensor:
        """Choose the tokens that stay: (batch, kv_heads, tokens) bool."""

    def decide(self, view: LayerView) -> Tensor:
        """Return the tokens of `select` and the protected tokens; this is the method that the cache calls.

        Raises:
            NammTransferError: `select` did not return a bool mask of the view's shape.
        """
        chosen, shape = self.select(view), tuple(view.positions.shape)
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or tuple(chosen.shape) != shape:
            raise NammTransferError(f"{type(self).__name__}.select returned {chosen!r}: expected bool of shape {shape}")
        return chosen | self.protected(view)

    def protected(self, view: LayerView) -> Tensor:
        """Mark the tokens that ``protect`` exempts from eviction: (batch, kv_heads, tokens) bool."""
        return Protection.parse(self.protect).mask(view)
