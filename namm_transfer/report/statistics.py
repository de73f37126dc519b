"""Means with intervals, for samples that are paired between policies and may come in clusters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 9999
"""Bootstrap resamples; the seed is fixed, so that the same records give the same interval."""

CONFIDENCE = 0.95


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None


def interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean.

    For a paired comparison give the differences. Samples of one cluster (say, questions on one video) are drawn
    together, since they are no independent draws; the mean stays the mean over samples.

    Args:
        values: one number a sample.
        clusters: one label a sample; every sample on its own if not given.
        seed: of the resampling.

    Returns:
        (low, high), or None for fewer than two independent draws.
    """
    labels = list(range(len(values))) if clusters is None else list(clusters)
    if len(labels) != len(values):
        raise ValueError(f"{len(labels)} cluster labels for {len(values)} values")
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    if len(places) < 2:
        return None
    sums, counts = np.zeros(len(places)), np.zeros(len(places))
    for label, value in zip(labels, values, strict=True):
        sums[places[label]] += value
        counts[places[label]] += 1
    result = stats.bootstrap(
        (sums, counts),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(places)),  # keeps the resampled indices to some tens of megabytes
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over samples from sums and counts a cluster."""
    return sums.sum(axis=axis) / counts.sum(axis=axis)
