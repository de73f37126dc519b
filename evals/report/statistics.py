"""Means with intervals, for samples that are paired between policies and may come in clusters.

For several tasks at once, the interquartile mean and the probability of improvement of Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (2021, arXiv 2108.13264), as their library rliable
defines them; an episode is what they call a run, a task (environment and data) one of their tasks.
"""

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


def interquartile_mean(scores: Sequence[Sequence[float]]) -> float:
    """Mean of the middle half of all scores of all tasks (a quarter is cut off at each end, rounded down).

    Args:
        scores: [task][episode], in one unit, for example normalised returns.
    """
    return float(stats.trim_mean(np.concatenate([np.asarray(task, dtype=float) for task in scores]), 0.25))


def interquartile_interval(
    scores: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]] | None = None, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the interquartile mean by stratified bootstrap: episodes are drawn anew within each task.

    Args:
        scores: [task][episode].
        baseline: scores of the same episodes to subtract the interquartile mean of; an episode is drawn for both.
        seed: of the resampling.

    Returns:
        (low, high) in the scores' unit; None where no task has two episodes.
    """
    if max(map(len, scores), default=0) < 2:
        return None
    draws, other = _stratified(scores, baseline, np.random.default_rng(seed))
    means = stats.trim_mean(draws, 0.25, axis=1)
    return _percentiles(means if other is None else means - stats.trim_mean(other, 0.25, axis=1))


def _stratified(
    scores: Sequence[Sequence[float]], paired: Sequence[Sequence[float]] | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """(resamples, episodes) drawn task by task, and the same episodes of `paired`."""
    drawn: list[np.ndarray] = []
    other: list[np.ndarray] = []
    for place, task in enumerate(scores):
        chosen = rng.integers(len(task), size=(RESAMPLES, len(task)))
        drawn.append(np.asarray(task, dtype=float)[chosen])
        if paired is not None:
            other.append(np.asarray(paired[place], dtype=float)[chosen])
    return np.concatenate(drawn, axis=1), np.concatenate(other, axis=1) if paired is not None else None


def improvement(
    scores: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Probability that an episode scores more than one of the baseline, ties half, mean over tasks; 95 % interval.

    It is the Mann-Whitney statistic over the number of pairs. As in rliable, both sides are drawn independently.

    Args:
        scores, baseline: [task][episode]; a task's numbers of episodes may differ.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    value, resampled = 0.0, np.zeros(RESAMPLES)
    for mine, theirs in zip(scores, baseline, strict=True):
        sign = np.sign(np.subtract.outer(np.asarray(mine, dtype=float), np.asarray(theirs, dtype=float)))
        wins = (sign + 1) / 2
        value += float(wins.mean()) / len(scores)
        weights = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in wins.shape]
        resampled += ((weights[0] @ wins) * weights[1]).sum(axis=1) / len(scores)
    return value, _percentiles(resampled)


def unpaired_interval(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of mean(b) - mean(a) for samples with no partner; None below two a side."""
    if min(len(a), len(b)) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = [
        np.asarray(side, dtype=float)[rng.integers(len(side), size=(RESAMPLES, len(side)))].mean(1) for side in (a, b)
    ]
    return _percentiles(means[1] - means[0])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
