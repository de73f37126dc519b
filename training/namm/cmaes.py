"""CMA-ES (pycma) that can be killed: its whole history is a table of fitness values, and a table needs no pickle.

Given the seed, every sample pycma draws is determined by the fitness values it was told. So the state on disk is that
table (a few kB), and resuming tells it again: milliseconds a generation in diagonal mode, and the same search bit for
bit.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pycma warns about optional plotting parts
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA


@dataclass(frozen=True)
class SearchOptions:
    """How pycma searches."""

    members: int = 16
    """Population size."""
    sigma: float = 0.1
    """Initial step size."""
    diagonal: bool = True
    """Only the diagonal of the covariance matrix (separable CMA-ES): linear time and memory."""


class Search:
    """One CMA-ES run that maximises; `mean` is the solution.

    Args:
        start: (n,) initial mean.
        options: how to search.
        seed: of the samples.
    """

    def __init__(self, start: np.ndarray, options: SearchOptions, seed: int) -> None:
        self.options = options
        generator = np.random.Generator(np.random.PCG64(seed))
        settings: dict[str, Any] = {
            "popsize": options.members,
            "CMA_diagonal": options.diagonal,
            "AdaptSigma": CMAAdaptSigmaCSA,
            "randn": lambda *shape: generator.standard_normal(shape),
            "verbose": -9,
            "verb_log": 0,
            "seed": float("nan"),  # leaves numpy's global generator alone
        }
        self._cma = cma.CMAEvolutionStrategy(np.asarray(start, dtype=np.float64), options.sigma, settings)
        self._asked: list[np.ndarray] | None = None
        self.history = np.zeros((0, options.members))

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
        """Step size."""
        return float(self._cma.sigma)

    def ask(self) -> np.ndarray:
        """The members of the next generation, (members, n) float64; the same until `tell`."""
        if self._asked is None:
            self._asked = self._cma.ask()
        return np.stack(self._asked)

    def tell(self, fitness: np.ndarray) -> None:
        """Fitness of the members asked for, (members,), higher is better."""
        fitness = np.asarray(fitness, dtype=np.float64)
        if fitness.shape != (self.options.members,) or not np.isfinite(fitness).all():
            raise NammTransferError(f"fitness {fitness}: expected {self.options.members} finite numbers, one a member")
        self.ask()
        self._cma.tell(self._asked, list(-fitness))
        self._asked = None
        self.history = np.concatenate([self.history, fitness[None]])

    def replay(self, history: np.ndarray) -> None:
        """Tell recorded generations again, (generations, members)."""
        for fitness in history:
            self.tell(fitness)
