"""Intervals against cases worked out by hand."""

import numpy as np
import pytest

from namm_transfer.report import statistics


def test_two_samples_by_hand():
    # Means of two draws from {0, 1}: 0, 1/2, 1/2, 1 with a quarter each; the middle 95 % reach from 0 to 1.
    assert statistics.interval([0.0, 1.0]) == (0.0, 1.0)


def test_three_samples_by_hand():
    # Of the 27 draws from {0, 0, 3} eight have mean 0 and one has mean 3 (3.7 %, more than the upper 2.5 %).
    assert statistics.interval([0.0, 0.0, 3.0]) == (0.0, 3.0)


def test_agrees_with_the_normal_interval_of_many_samples():
    values = np.random.default_rng(0).normal(2.0, 1.0, 2000)
    low, high = statistics.interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_clusters_are_drawn_whole():
    # Two clusters of two: the mean over samples is 0, 1/4, 1/2, ... only as whole clusters allow: 0, 1/2 or 1.
    assert statistics.interval([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]) == (0.0, 1.0)
    # Clusters of unequal size: three zeros against one 1; drawn twice alike they give 0 and 1, mixed 1/4.
    assert statistics.interval([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]) == (0.0, 1.0)
    values, clusters = [0.0, 1.0] * 20, np.repeat(np.arange(10), 4)
    assert statistics.interval(values, list(clusters)) == (0.5, 0.5)
    assert statistics.interval(values) != (0.5, 0.5)


def test_same_numbers_same_interval():
    values = list(np.random.default_rng(1).normal(size=30))
    assert statistics.interval(values) == statistics.interval(values)
    assert statistics.interval(values) != statistics.interval(values, seed=1)


def test_fewer_than_two_independent_draws_have_no_interval():
    assert statistics.interval([]) is None
    assert statistics.interval([1.0]) is None
    assert statistics.interval([1.0, 2.0, 3.0], ["v", "v", "v"]) is None
    assert statistics.mean([]) is None


def test_labels_must_fit():
    with pytest.raises(ValueError, match="2 cluster labels for 3 values"):
        statistics.interval([1.0, 2.0, 3.0], ["a", "b"])
