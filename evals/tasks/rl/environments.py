"""Several copies of one environment stepped together, and whole episodes as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.tasks import flat, make, task

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Observations (rows, observation_size) and last rewards (rows,) -> actions (rows, action_size)."""


@dataclass
class Trajectory:
    """One episode. `observations` has one row more than the others: the state after the last action."""

    seed: int
    """Seed with which the environment was reset; -1 where the data does not state it."""
    observations: np.ndarray
    """Observations, (steps + 1, observation_size) float64."""
    actions: np.ndarray
    """Actions, (steps, action_size) float32."""
    rewards: np.ndarray
    """Rewards, (steps,) float64."""
    terminated: bool
    """True if the episode ended in a terminal state (a fall), not by the time limit."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """Sum of rewards, undiscounted."""
        return float(self.rewards.sum())

    def returns_to_go(self) -> np.ndarray:
        """Compute returns-to-go, (steps,) float64: at each step, the sum of the rewards from there on."""
        return np.cumsum(self.rewards[::-1])[::-1].copy()


class Environments:
    """`count` copies of an environment made with `options`. A finished row is no longer stepped and keeps its state."""

    def __init__(self, name: str, count: int, **options: Any) -> None:
        self.task = task(name)
        self.envs = [make(name, **options) for _ in range(count)]
        self.observations = np.zeros((count, self.task.observation_size))
        self.alive = np.zeros(count, dtype=bool)
        self.terminated = np.zeros(count, dtype=bool)
        self.clipped = np.zeros(count, dtype=int)
        """(count,) steps of the episode whose action lay outside the environment's bounds and was clipped."""

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Reset row i with `seeds[i]`; rows beyond the seeds count as finished. Returns (count, size) float64."""
        self.alive[:] = np.arange(len(self.envs)) < len(seeds)
        self.terminated[:] = False
        self.clipped[:] = 0
        for row, env in enumerate(self.envs):
            self.observations[row] = flat(env.reset(seed=int(seeds[row if row < len(seeds) else 0]))[0])
        return self.observations.copy()

    def inside(self, actions: np.ndarray) -> np.ndarray:
        """Clip actions (count, action_size) to the environment's bounds, as D4RL's environments do themselves.

        Warns at the first one. Raises `NammTransferError` for actions of another shape, or with NaN or infinity in a
        row that still runs.
        """
        if actions.shape != (len(self.envs), self.task.action_size):
            raise NammTransferError(
                f"actions have shape {actions.shape}, "
                f"{self.task.gym_id} expects {(len(self.envs), self.task.action_size)}"
            )
        if not np.isfinite(actions[self.alive]).all():
            raise NammTransferError(f"the policy gave actions that are not finite: {actions[self.alive].tolist()}")
        low, high = (bound.astype(actions.dtype) for bound in self.task.bounds)
        outside = self.alive & ((actions < low) | (actions > high)).any(1)
        if not outside.any():
            return actions
        self.clipped += outside
        warnings.warn(
            f"{self.task.gym_id}: actions outside its bounds are clipped to them, as in D4RL's environments",
            stacklevel=2,
        )
        return np.where(outside[:, None], np.clip(actions, low, high), actions)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step with actions (count, action_size): observations (count, size) and rewards (count,), 0 in finished rows.

        Raises `NammTransferError` as `inside` does, and for observations or rewards that are not finite.
        """
        actions = self.inside(actions)
        rewards = np.zeros(len(self.envs))
        for row in np.flatnonzero(self.alive):
            observation, reward, terminated, truncated, _ = self.envs[row].step(actions[row])
            self.observations[row], rewards[row] = flat(observation), float(reward)
            if not (np.isfinite(rewards[row]) and np.isfinite(self.observations[row]).all()):
                raise NammTransferError(f"{self.task.gym_id} gave an observation or a reward that is not finite")
            self.terminated[row] = terminated
            self.alive[row] = not (terminated or truncated)
        return self.observations.copy(), rewards

    def positions(self) -> list[float]:
        """Return the distance of each row in a locomotion environment in metres; NaN if it has no forward direction."""
        states = [getattr(env.unwrapped, "data", None) for env in self.envs]
        return [float("nan") if state is None else float(state.qpos[0]) for state in states]

    def close(self) -> None:
        """Close the environments, which frees the simulators' memory."""
        for env in self.envs:
            env.close()


def rollout(environments: Environments, seeds: Sequence[int], act: Act) -> list[Trajectory]:
    """Play one episode a seed, all rows together until the last has finished; `act` gets finished rows too.

    The trajectories hold the actions as the environments got them.
    """
    observations = [environments.reset(seeds)]
    actions: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    lengths = np.zeros(len(environments.envs), dtype=int)
    reward = np.zeros(len(environments.envs))
    while environments.alive.any():
        action = environments.inside(act(observations[-1], reward).astype(np.float32))
        lengths += environments.alive
        observation, reward = environments.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    return [
        Trajectory(
            seed=int(seed),
            observations=np.stack([step[row] for step in observations[: lengths[row] + 1]]),
            actions=np.stack([step[row] for step in actions[: lengths[row]]]),
            rewards=np.array([step[row] for step in rewards[: lengths[row]]]),
            terminated=bool(environments.terminated[row]),
        )
        for row, seed in enumerate(seeds)
    ]


def random_policy(name: str, seed: int) -> Act:
    """Return a policy of uniformly random actions, whose normalised score defines 0.

    Raises `NammTransferError` if the environment's actions are not bounded.
    """
    generator, found = np.random.default_rng(seed), task(name)
    low, high = found.bounds
    if not np.isfinite([low, high]).all():
        raise NammTransferError(f"{name}: its actions have no bounds to draw from at random")
    return lambda observations, _: generator.uniform(low, high, (len(observations), found.action_size))
