"""The search: maximises, and is the same after it was told its history again."""

import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.training.namm.cmaes import Search


def bowl(x: np.ndarray) -> np.ndarray:
    return -((x - 1) ** 2).sum(-1)


def test_it_maximises():
    search = Search(np.zeros(12), members=8, sigma=0.3, seed=1)
    for _ in range(60):
        search.tell(bowl(search.ask()))
    assert bowl(search.mean) > -0.5


def test_replayed_search_is_the_same_bit_for_bit():
    options = dict(members=6, sigma=0.3, seed=1)
    whole = Search(np.zeros(40), **options)
    for _ in range(9):
        whole.tell(bowl(whole.ask()))
    again = Search(np.zeros(40), **options)
    np.random.seed(99)  # somebody else's random numbers change nothing
    again.replay(whole.history)
    assert np.array_equal(again.mean, whole.mean)
    assert again.sigma == whole.sigma
    assert np.array_equal(again.ask(), whole.ask())
    assert again.generation == 9


def test_another_seed_is_another_search():
    a, b = (Search(np.zeros(10), members=4, sigma=0.1, seed=seed).ask() for seed in (0, 1))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("fitness", [np.zeros(3), np.array([0.0, np.nan, 1, 2])])
def test_fitness_that_does_not_fit_is_refused(fitness):
    with pytest.raises(NammTransferError, match="4 finite numbers"):
        Search(np.zeros(10), members=4, sigma=0.1, seed=0).tell(fitness)
