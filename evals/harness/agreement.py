"""Measurements beside the score: what the model expects next compared with the full cache, and what two policies keep.

They cost no forward pass: of every sample the run stores the full cache's distribution of the first answer token and,
of a policy that evicts, a sketch of what each head keeps, and compares with these what later policies give.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from namm_transfer import MemoryCache
from namm_transfer.evals.harness.sample import Outcome
from namm_transfer.evals.report.records import ArrayStore
from namm_transfer.evals.report.schema import Record

MOST_TOKENS = 1024
"""The full cache's most probable tokens that are told apart; all others count as one. This can only make a divergence
smaller."""
MOST_POSITIONS = 512
"""Positions of a prompt at which kept tokens are compared, evenly spaced; all of a shorter prompt."""
NEXT, HELD = "next_token", "held"
"""Names of the stored arrays: (2, tokens) float64 numbers and probabilities; (layers, KV heads, bytes) uint8 bits."""


def distribution(logits: Tensor) -> np.ndarray:
    """Compute the probabilities of the next token, (vocabulary,) float64, from its logits."""
    return np.asarray(logits.double().softmax(-1).cpu())


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """Select the most probable tokens: (2, tokens) float64, their numbers and probabilities."""
    chosen = np.sort(np.argsort(-probabilities, kind="stable")[:MOST_TOKENS])
    return np.stack([chosen.astype(np.float64), probabilities[chosen]])


def divergence(full: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the Jensen-Shannon divergence, in bits, of a distribution from what `most_probable` gave of another.

    0 for equal distributions, 1 for distributions without a common token.
    """
    pair = []
    for known in (full[1], probabilities[full[0].astype(np.int64)]):
        pair.append(np.append(known, max(0.0, 1.0 - known.sum())))
    mean = (pair[0] + pair[1]) / 2
    bits = [np.where(p > 0, p * np.log2(np.where(p > 0, p / np.maximum(mean, 1e-300), 1.0)), 0.0).sum() for p in pair]
    return float(min(1.0, max(0.0, sum(bits) / 2)))


def sketch(cache: MemoryCache) -> np.ndarray:
    """Mark which of up to `MOST_POSITIONS` tokens each head holds: (layers, KV heads, bytes) uint8, packed bits."""
    seen = cache.report().seen[0]
    chosen = np.unique(np.linspace(0, seen - 1, min(seen, MOST_POSITIONS)).round().astype(np.int64))
    layers = []
    for layer in range(len(cache.attention_layers)):
        heads = cache.positions(layer)[0].cpu().numpy()
        layers.append([np.packbits(np.isin(chosen, head)) for head in heads])
    return np.array(layers)


def overlap(first: np.ndarray, second: np.ndarray) -> list[list[float]]:
    """Compute the Jaccard index of two sketches by layer and KV head; 1 where both are empty."""
    both, either = (np.unpackbits(bits, axis=-1).sum(-1) for bits in (first & second, first | second))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0).round(4).tolist()


class Agreement:
    """Compares outcomes with those of other policies on the same sample, which may lie on disk since an earlier start.

    Args:
        store: arrays of the evaluation.
        baseline: spec of the full cache; None if the evaluation has none.
        records: what is recorded already.
    """

    def __init__(self, store: ArrayStore, baseline: str | None, records: list[Record]) -> None:
        self._store, self._baseline = store, baseline
        self._known: dict[int, dict[str, dict[str, str]]] = {}
        for record in records:
            self._note(record.index, record.policy, record.compared)

    def _note(self, index: int, policy: str, arrays: dict[str, str]) -> None:
        self._known.setdefault(index, {})[policy] = arrays

    def compare(
        self, policy: str, index: int, outcome: Outcome
    ) -> tuple[float | None, dict[str, list[list[float]]], dict[str, str]]:
        """Compare an outcome with those of the policies before, and store what later ones are compared with.

        Returns:
            The divergence from the full cache, if both are known; the overlap with each policy that was evaluated
            before, by layer and KV head; names of the stored arrays.
        """
        others, found, arrays = self._known.get(index, {}), None, {}
        if outcome.next_token is not None:
            probabilities = distribution(outcome.next_token)
            if policy == self._baseline:
                arrays[NEXT] = self._store.put(most_probable(probabilities))
            elif name := others.get(self._baseline or "", {}).get(NEXT):
                found = divergence(self._store.get(name), probabilities)
        overlaps = {}
        if outcome.held is not None and policy != self._baseline:
            arrays[HELD] = self._store.put(outcome.held)
            for other, names in others.items():
                if HELD in names and other != policy:
                    overlaps[other] = overlap(self._store.get(names[HELD]), outcome.held)
        self._note(index, policy, arrays)
        return found, overlaps, arrays
