"""Measurement of episodes: return, length, and the tokens that the key/value cache kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from namm_transfer import MemoryCache
from namm_transfer.adapters.decision_transformer import KINDS, Stepper, kept_tokens
from namm_transfer.cache.report import RowReport
from namm_transfer.evals.tasks.rl.environments import Environments, Trajectory


@dataclass
class Observed:
    """One finished episode, as the harness records it."""

    score: float
    """Score of the episode's return, see `tasks.Task.score`."""
    memory: RowReport
    """The cache at the end of the episode, its kept share averaged over the steps."""
    details: dict[str, Any]
    """JSON-able facts: `return`, `length`, `env_seed`, `bytes`, ..."""
    arrays: dict[str, np.ndarray]
    """`kept`: (layers, steps, 3) float32, see `kept_tokens`."""


class Observer:
    """Plays a batch of episodes with a stepper and records for each how much its cache kept."""

    def __init__(self, stepper: Stepper, environments: Environments) -> None:
        self.stepper, self.environments = stepper, environments
        rows = len(environments.envs)
        self.shares, self.held, self.lengths = np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=int)
        self.last: list[Any] = [None] * rows
        self.bytes = [0] * rows
        self.kept: list[np.ndarray] = [np.zeros((0, 0, 3))] * rows

    @property
    def _cache(self) -> MemoryCache:
        """Return the cache of the last step; under a window every step has a new one."""
        assert isinstance(self.stepper.cache, MemoryCache)
        return self.stepper.cache

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Compute the model's actions, for finished rows too, so that the batch keeps its shape."""
        before = self.environments.alive.copy()
        self._note_finished()
        actions = self.stepper.act(observations, rewards)
        share = before * np.array(self._cache.kept_share())
        self.shares += share
        self.held += share * (3 * self.stepper.looked_at - 1)
        self.lengths += before
        return actions

    def _note_finished(self) -> None:
        """Record the cache of rows whose episode has ended, before the next step changes it."""
        running = self.environments.alive
        over = [row for row, seen in enumerate(self.lengths) if seen and not running[row] and self.last[row] is None]
        if not over:
            return
        report = self._cache.report()
        for row in over:
            self.last[row] = report.row(row)
            self.bytes[row] = report.bytes // len(self.last)
            self.kept[row] = kept_tokens(self._cache, self.stepper.looked_at, row)

    def observed(self, row: int, episode: Trajectory) -> Observed:
        """Return the record of a finished episode, with the cache size averaged over its steps."""
        self._note_finished()
        length, last = int(self.lengths[row]), self.last[row]
        details = {
            "return": episode.episode_return,
            "length": length,
            "fell": episode.terminated,
            "env_seed": episode.seed,
            "tokens_held": float(self.held[row] / length),
            "kept_share_at_end": last.kept_share,
            "bytes": self.bytes[row],
            "kept_by_kind": self._by_kind(row),
        }
        if self.environments.clipped[row]:
            details["clipped_steps"] = int(self.environments.clipped[row])
        return Observed(
            score=self.environments.task.score(episode.episode_return),
            memory=replace(last, kept_share=float(self.shares[row] / length)),
            details=details,
            arrays={"kept": self.kept[row]},
        )

    def _by_kind(self, row: int) -> dict[str, list[float]]:
        """Compute for each kind of token and each layer the share of tokens seen that the cache kept at the end."""
        steps = self.kept[row].shape[1]
        sums = self.kept[row].sum(1)
        return {kind: (sums[:, i] / max(1, steps - (kind == "action"))).tolist() for i, kind in enumerate(KINDS)}
