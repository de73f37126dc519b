"""A resumable CMA-ES (pycma): given the seed, the fitness values told so far determine every sample it draws.

The state on disk is therefore the table of these values (a few kB, no pickle). Resuming tells them again, which takes
milliseconds a generation and gives the same search bit for bit.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma warns about plotting packages that are not installed
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA


class Search:
    """One CMA-ES run that maximises; `mean` is the solution.

    Args:
        start: (n,) initial mean.
        members: population size.
        sigma: initial step size.
        seed: seed of the samples.
    """

    def __init__(self, start: np.ndarray, *, members: int, sigma: float, seed: int) -> None:
        generator = np.random.Generator(np.random.PCG64(seed))
        settings: dict[str, Any] = {
            "popsize": members,
            "CMA_diagonal": False,
            "AdaptSigma": CMAAdaptSigmaCSA,
            "randn": lambda *shape: generator.standard_normal(shape),
            "verbose": -9,
            "verb_log": 0,
            "seed": float("nan"),  # leaves numpy's global generator alone
        }
        self._cma = cma.CMAEvolutionStrategy(np.asarray(start, dtype=np.float64), sigma, settings)
        self._asked: list[np.ndarray] | None = None
        self.history = np.zeros((0, members))

    @property
    def generation(self) -> int:
        """Number of generations told so far."""
        return len(self.history)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the search distribution, (n,) float64, which is the solution."""
        return np.array(self._cma.mean)

    @property
    def sigma(self) -> float:
        """Current step size."""
        return float(self._cma.sigma)

    def ask(self) -> np.ndarray:
        """Sample the members of the next generation, (members, n) float64; the same until `tell`."""
        if self._asked is None:
            self._asked = self._cma.ask()
        return np.stack(self._asked)

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search with the fitness of the sampled members, (members,); higher is better.

        Raises:
            NammTransferError: another shape, or a value that is not finite.
        """
        fitness, members = np.asarray(fitness, dtype=np.float64), self.history.shape[1]
        if fitness.shape != (members,) or not np.isfinite(fitness).all():
            raise NammTransferError(f"fitness {fitness}: expected {members} finite numbers, one for each member")
        self.ask()
        self._cma.tell(self._asked, list(-fitness))
        self._asked = None
        self.history = np.concatenate([self.history, fitness[None]])

    def replay(self, history: np.ndarray) -> None:
        """Tell recorded generations again, (generations, members)."""
        for fitness in history:
            self.tell(fitness)
