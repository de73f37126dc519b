"""The report of a `MemoryCache`: tokens kept and seen, how often the policy acted, bytes held."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Sequence:
    """Counts of one sequence in one layer, kept on the host."""

    seen: int = 0
    """Real tokens processed."""
    held: float = 0
    """Tokens held now, mean over KV heads."""
    peak: float = 0
    """The most it ever held."""
    history: list[float] = field(default_factory=list)
    """Tokens held after each update, mean over KV heads."""
    sizes: list[int] = field(default_factory=list)
    """Tokens that each KV head held after each update, updates x heads numbers."""

    def note(self, sizes: list[int], held: float) -> None:
        """Count an update after which the heads hold so many tokens, and so many on average."""
        self.held = held
        self.history.append(held)
        self.sizes.extend(sizes)


@dataclass(frozen=True)
class RowReport:
    """One sequence's part of a `MemoryReport`."""

    seen: int
    """Real tokens processed."""
    updates: int
    """Times the policy acted on it."""
    kept: Tensor
    """(layers, kv_heads) int64: tokens held now."""
    kept_share: float
    """Tokens held over tokens seen, mean over layers and heads."""
    peak_share: float
    """The most ever held, just before an update, over tokens seen; mean over layers and heads."""
    history: Tensor
    """(layers, updates) float32: tokens a head held after each update, mean over heads."""
    sizes: Tensor
    """(layers, updates, kv_heads) int64: tokens that each head held after each update."""


@dataclass(frozen=True)
class MemoryReport:
    """A summary of a `MemoryCache`: tokens and bytes held, and the history of each sequence."""

    kept: Tensor
    """(layers, batch, kv_heads) int64: tokens held now."""
    seen: list[int]
    """Real tokens each sequence has processed."""
    peak: list[list[float]]
    """``peak[layer][sequence]``: the most tokens a head ever held, mean over heads."""
    history: list[list[list[float]]]
    """``history[layer][sequence][update]``: tokens a head held after it, mean over heads."""
    sizes: list[list[list[int]]]
    """``sizes[layer][sequence]``: tokens that each head held after each update, updates x heads numbers."""
    bytes: int
    """Bytes of keys, values, positions and policy state, padding slots and room to grow included."""

    @property
    def kept_share(self) -> float:
        """Mean of the sequences' kept shares."""
        rows = [self.row(b).kept_share for b in range(len(self.seen))]
        return sum(rows) / len(rows)

    def row(self, b: int) -> RowReport:
        """The report of sequence ``b`` of the batch."""
        kept, seen = self.kept[:, b], max(self.seen[b], 1)
        sizes = torch.tensor([layer[b] for layer in self.sizes], dtype=torch.int64)
        return RowReport(
            seen=self.seen[b],
            updates=len(self.history[0][b]),
            kept=kept,
            kept_share=float(kept.float().mean()) / seen,
            peak_share=sum(layer[b] for layer in self.peak) / len(self.peak) / seen,
            history=torch.tensor([layer[b] for layer in self.history]),
            sizes=sizes.view(*sizes.shape[:1], -1 if sizes.numel() else 0, kept.shape[1]),
        )
