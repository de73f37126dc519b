"""The history of one sequence in a `MemoryCache`: which tokens each head still held after each update."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.cache.memory_cache import MemoryCache
from namm_transfer.errors import NammTransferError


@dataclass(frozen=True)
class KeptHistory:
    """Tokens that each head held at each step: after every update, and when `History.read` was called."""

    last: np.ndarray
    """(layers, kv_heads, tokens) int32: number of the last step, from 1, at which a head held a token; 0 for none."""
    seen: np.ndarray
    """(steps,) int64 ascending: number of tokens that the model had read at each step."""
    updates: np.ndarray
    """(steps,) int64: number of updates that the policy had made."""

    def held(self, step: int) -> np.ndarray:
        """Mark the tokens that each head held at a step, counted from 0: (layers, kv_heads, tokens) bool."""
        return (self.last > step) & (np.arange(self.last.shape[-1]) < self.seen[step])

    def counts(self) -> np.ndarray:
        """Count the tokens that each head held at each step: (steps, layers, kv_heads) int64."""
        return np.stack([self.held(step).sum(-1) for step in range(len(self.seen))])

    def shares(self, unit_of: np.ndarray, units: int) -> np.ndarray:
        """Compute which share of the tokens of each unit, such as a frame, each head held at each step.

        Args:
            unit_of: (tokens,) int64, the unit that a token belongs to; -1 for none.
            units: number of units.

        Returns:
            (steps, layers, kv_heads, units) float32, relative to the unit's tokens that were read by then; 0 for none.
        """
        layers, heads, tokens = self.last.shape
        found = np.zeros((len(self.seen), layers * heads, units), dtype=np.float32)
        for step, seen in enumerate(self.seen.tolist()):
            read = (unit_of >= 0) & (np.arange(tokens) < seen)
            total = np.maximum(np.bincount(unit_of[read], minlength=units), 1)
            for head, held in enumerate(self.held(step).reshape(-1, tokens)):
                found[step, head] = np.bincount(unit_of[read & held], minlength=units) / total
        return found.reshape(-1, layers, heads, units)

    def thinned(self, most: int) -> "KeptHistory":
        """Return the same history at no more than `most` evenly spaced steps, the last of them included."""
        count = len(self.seen)
        if count <= most:
            return self
        steps = np.unique(np.linspace(count, 1, max(most, 1)).round().astype(np.int64))  # numbers, from 1
        last = np.searchsorted(steps, self.last, side="right").astype(np.int32)
        return KeptHistory(last, self.seen[steps - 1], self.updates[steps - 1])


class History:
    """Records what an empty cache holds after each update, until it is read; for one sequence."""

    def __init__(self, cache: MemoryCache, on_update: Callable[[], object] = lambda: None) -> None:
        """Begin to record.

        Args:
            cache: an empty cache.
            on_update: called after every update of every layer, to show progress.

        Raises:
            NammTransferError: something has gone through the cache already.
        """
        self._layers = cache.attention_layers
        self._last = [np.zeros((0, 0), dtype=np.int32) for _ in self._layers]
        if any(layer.is_initialized for layer in self._layers):
            raise NammTransferError("the cache is not empty: its history must be recorded from the beginning")

        def note(layer: MemoryLayer) -> None:
            self._note(layer, len(layer.sequences[0].history))
            on_update()

        for layer in self._layers:
            layer.on_update = note

    def _note(self, layer: MemoryLayer, step: int) -> None:
        """Note that a layer still holds at `step` what it holds now."""
        last = np.zeros((layer.kv_heads, layer.sequences[0].seen), dtype=np.int32)
        before = self._last[layer.index]
        last[: len(before), : before.shape[1]] = before
        for head, positions in enumerate(layer.positions[0].cpu().numpy()):
            last[head, positions[positions >= 0]] = step
        self._last[layer.index] = last

    def read(self) -> KeptHistory:
        """End the recording and return the history.

        Raises:
            NammTransferError: nothing, or more than one sequence, has gone through the cache.
        """
        first = self._layers[0]
        if len(first.sequences) != 1:
            raise NammTransferError(f"a history of {len(first.sequences)} sequences: expected 1")
        (sequence,) = first.sequences
        updates = len(sequence.history)
        for layer in self._layers:
            layer.on_update = None
            self._note(layer, updates + 1)
        last, made = np.stack(self._last), np.arange(1, updates + 1)
        seen = first.policy.update_interval * made
        if updates and seen[-1] == sequence.seen:  # nothing was read after the last update
            return KeptHistory(np.minimum(last, updates), seen, made)
        return KeptHistory(last, np.append(seen, sequence.seen), np.append(made, updates))
