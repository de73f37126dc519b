"""Intervals against cases worked out by hand."""

import numpy as np
import pytest

from namm_transfer.evals.report import statistics


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


def test_fewer_than_two_independent_draws_have_no_interval():
    assert statistics.interval([]) is None
    assert statistics.interval([1.0]) is None
    assert statistics.interval([1.0, 2.0, 3.0], ["v", "v", "v"]) is None
    assert statistics.mean([]) is None


def test_labels_must_fit():
    with pytest.raises(ValueError, match="2 cluster labels for 3 values"):
        statistics.interval([1.0, 2.0, 3.0], ["a", "b"])


# --- several tasks: the numbers below were printed by rliable 1.2.0 for the same scores

TASKS = np.random.default_rng(3)
MINE, THEIRS = TASKS.normal(60, 20, (20, 6)).T, TASKS.normal(55, 20, (20, 6)).T


def test_interquartile_mean_by_hand():
    assert statistics.interquartile_mean([[0.0, 1.0], [2.0, 99.0]]) == 1.5
    assert statistics.interquartile_mean([[0.0, 2.0, 4.0], [-50.0, 9.0]]) == 2.0, "of 5, one is cut off at each end"


def test_interquartile_mean_and_its_interval_are_those_of_rliable():
    assert statistics.interquartile_mean(MINE) == pytest.approx(60.15459311)
    assert statistics.interquartile_interval(MINE) == pytest.approx((56.160, 63.949), abs=0.15)


def test_probability_of_improvement_is_that_of_rliable():
    value, bounds = statistics.improvement(MINE, THEIRS)
    assert value == pytest.approx(0.56583333)
    assert bounds == pytest.approx((0.494, 0.638), abs=0.01)


def test_ties_are_half_an_improvement_and_numbers_of_episodes_may_differ():
    assert statistics.improvement([[1.0]], [[1.0]])[0] == 0.5
    assert statistics.improvement([[2.0, 3.0], [0.0]], [[1.0], [1.0, 2.0]]) == (0.5, (0.5, 0.5))


def test_strata_are_not_mixed():
    """Tasks far apart, each without spread: drawing within a task always gives the same episodes."""
    assert statistics.interquartile_interval([[10.0] * 5, [90.0] * 5]) == (50.0, 50.0)


def test_a_paired_difference_is_narrower_than_its_parts():
    shifted = MINE + 1.0
    low, high = statistics.interquartile_interval(shifted, MINE)
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(1.0)


def test_one_episode_a_task_has_no_interval():
    assert statistics.interquartile_interval([[1.0], [2.0]]) is None


def test_unpaired_interval_agrees_with_the_normal_one():
    a, b = np.random.default_rng(0).normal(0, 1, 400), np.random.default_rng(1).normal(2, 1, 300)
    half = 1.96 * np.sqrt(a.var() / 400 + b.var() / 300)
    middle = b.mean() - a.mean()
    assert statistics.unpaired_interval(a, b) == pytest.approx((middle - half, middle + half), abs=0.15 * half)
    assert statistics.unpaired_interval([1.0], [1.0, 2.0]) is None
