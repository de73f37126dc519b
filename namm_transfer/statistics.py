"""Statistics of attention weights that policies keep of each token, named so that a GPU kernel can compute them without
writing the weights (`namm_transfer.cache.device`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from namm_transfer import spectrogram


@dataclass(frozen=True)
class Spectrum:
    """The moving average of a token's spectra: see `namm_transfer.spectrogram.observe`."""

    def observe(
        self, state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]
    ) -> None:
        """Fold a block of attention weights into ``state``, in place; arguments as for `EvictionPolicy.observe`."""
        spectrogram.observe(state, weights, tokens_seen, query_lengths)


@dataclass(frozen=True)
class QuerySum:
    """The attention that a token received from some of the queries of each block."""

    name: str
    """Name of the state that holds the sum, (batch, heads, tokens) float32."""
    part: Callable[[int, int], tuple[int, bool]]
    """Tokens seen before a block and queries in it -> the first query to add, and whether to begin again from zero."""

    def observe(
        self, state: dict[str, Tensor], weights: Tensor, tokens_seen: list[int], query_lengths: list[int]
    ) -> None:
        """Fold a block of attention weights into ``state``, in place; arguments as for `EvictionPolicy.observe`."""
        total = state[self.name]
        parts = [self.part(seen, length) for seen, length in zip(tokens_seen, query_lengths, strict=True)]
        if all(part == (0, False) for part in parts):
            total += weights.sum(2)
            return
        for b, (length, (first, anew)) in enumerate(zip(query_lengths, parts, strict=True)):
            if length and anew:
                total[b] = 0
            if first < length:
                total[b] += weights[b, :, first:length].sum(1)


Statistic = Spectrum | QuerySum
