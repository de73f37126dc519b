"""Means with bootstrap intervals, for samples that are paired between policies and may be clustered.

Scores over several tasks are summarised by the interquartile mean and the probability of improvement of Agarwal et al.,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021, arXiv 2108.13264), as defined by their
library rliable, with episodes as its runs, and pairs of an environment and a data set as its tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

RESAMPLES, SEED = 9999, 0
"""Number of bootstrap resamples, and their seed, which is fixed so that the same records give the same interval."""

CONFIDENCE = 0.95


def mean(values: Sequence[float]) -> float | None:
    """Compute the arithmetic mean; None for an empty sequence."""
    return float(np.mean(values)) if len(values) else None


def interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, float] | None:
    """Compute the 95 % percentile bootstrap interval of the mean.

    For a paired comparison pass the differences. Samples of one cluster (such as questions on one video) are drawn
    together, since they are not independent; the mean remains the mean over samples.

    Args:
        values: one number per sample.
        clusters: one label per sample; without it every sample is a cluster of its own.

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
        rng=np.random.default_rng(SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """Compute the mean over samples, from the sum and count of each cluster."""
    return sums.sum(axis=axis) / counts.sum(axis=axis)


def interquartile_mean(scores: Sequence[Sequence[float]]) -> float:
    """Compute the mean of the middle half of all scores of all tasks (a quarter is cut off at each end, rounded down).

    Args:
        scores: [task][episode], in one unit, for example normalised returns.
    """
    return float(stats.trim_mean(np.concatenate([np.asarray(task, dtype=float) for task in scores]), 0.25))


def interquartile_interval(
    scores: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]] | None = None
) -> tuple[float, float] | None:
    """Compute the 95 % interval of the interquartile mean by stratified bootstrap: episodes are drawn within each task.

    Args:
        scores: [task][episode].
        baseline: scores of the same episodes under the baseline; if given, the interval is that of the difference of
            the two interquartile means, and each episode is drawn for both.

    Returns:
        (low, high) in the scores' unit; None if no task has two episodes.
    """
    if max(map(len, scores), default=0) < 2:
        return None
    draws, other = _stratified(scores, baseline, np.random.default_rng(SEED))
    means = stats.trim_mean(draws, 0.25, axis=1)
    return _percentiles(means if other is None else means - stats.trim_mean(other, 0.25, axis=1))


def _stratified(
    scores: Sequence[Sequence[float]], paired: Sequence[Sequence[float]] | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Make bootstrap draws (resamples, episodes), stratified by task, and the same episodes of `paired`."""
    drawn: list[np.ndarray] = []
    other: list[np.ndarray] = []
    for place, task in enumerate(scores):
        chosen = rng.integers(len(task), size=(RESAMPLES, len(task)))
        drawn.append(np.asarray(task, dtype=float)[chosen])
        if paired is not None:
            other.append(np.asarray(paired[place], dtype=float)[chosen])
    return np.concatenate(drawn, axis=1), np.concatenate(other, axis=1) if paired is not None else None


def improvement(
    scores: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]
) -> tuple[float, tuple[float, float]]:
    """Compute the probability that an episode beats one of the baseline, mean over tasks, and its 95 % interval.

    It is the Mann-Whitney statistic divided by the number of pairs: a tie counts half. As in rliable, both sides are
    resampled independently.

    Args:
        scores, baseline: [task][episode]; a task's numbers of episodes may differ.
    """
    rng = np.random.default_rng(SEED)
    value, resampled = 0.0, np.zeros(RESAMPLES)
    for mine, theirs in zip(scores, baseline, strict=True):
        sign = np.sign(np.subtract.outer(np.asarray(mine, dtype=float), np.asarray(theirs, dtype=float)))
        wins = (sign + 1) / 2
        value += float(wins.mean()) / len(scores)
        weights = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in wins.shape]
        resampled += ((weights[0] @ wins) * weights[1]).sum(axis=1) / len(scores)
    return value, _percentiles(resampled)


def unpaired_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % percentile bootstrap interval of mean(b) - mean(a), unpaired; None if one has fewer than two."""
    if min(len(a), len(b)) < 2:
        return None
    rng = np.random.default_rng(SEED)
    means = [
        np.asarray(side, dtype=float)[rng.integers(len(side), size=(RESAMPLES, len(side)))].mean(1) for side in (a, b)
    ]
    return _percentiles(means[1] - means[0])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
