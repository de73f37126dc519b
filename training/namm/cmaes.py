"""CMA-ES (pycma) that can be killed: given the seed, the fitness values it was told determine every sample it draws.

So the state on disk is the table of these values (a few kB, no pickle), and resuming tells them again: milliseconds a
generation, and the same search bit for bit.
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
        """Generations told so far."""
        return len(self.history)

    @property
    def mean(self) -> np.ndarray:
        """The solution, (n,) float64."""
        return np.array(self._cma.mean)

    @property
    def sigma(self) -> float:
        """The current step size."""
        return float(self._cma.sigma)

    def ask(self) -> np.ndarray:
        """The members of the next generation, (members, n) float64; the same until `tell`."""
        if self._asked is None:
            self._asked = self._cma.ask()
        return np.stack(self._asked)

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness of the members asked for, (members,), higher is better.

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
