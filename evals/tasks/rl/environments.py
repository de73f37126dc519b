"""Several MuJoCo environments stepped together, and whole episodes as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.scores import task

if TYPE_CHECKING:
    import gymnasium

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Observations (rows, observation_size) and last rewards (rows,) -> actions (rows, action_size)."""


@dataclass
class Trajectory:
    """One episode. `observations` has one row more than the others: the state after the last action."""

    seed: int
    """What the environment was reset with; -1 where the data does not say."""
    observations: np.ndarray
    """(steps + 1, observation_size) float64"""
    actions: np.ndarray
    """(steps, action_size) float32"""
    rewards: np.ndarray
    """(steps,) float64"""
    terminated: bool
    """Whether the episode ended by itself (a fall), not by the time limit."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """The undiscounted sum of rewards."""
        return float(self.rewards.sum())

    def returns_to_go(self) -> np.ndarray:
        """(steps,) float64: at each step, the sum of the rewards from there on."""
        return np.cumsum(self.rewards[::-1])[::-1].copy()


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """MuJoCo 4 logs to ./MUJOCO_LOG.TXT: switched off for good. Gymnasium's own models draw a deprecation notice each
    time they are compiled, so the console is silent too while environments are made."""
    import mujoco

    if not hasattr(mujoco, "MjLogConfig"):  # MuJoCo 3 writes its log only on errors
        yield
        return
    config = mujoco.MjLogConfig.get()
    console = config.logto_console
    config.logto_file = config.logto_console = False
    config.set()
    try:
        yield
    finally:
        config.logto_console = console
        config.set()


def make(name: str) -> gymnasium.Env[Any, Any]:
    """The Gymnasium environment of task `name`, with its 1,000-step limit and no log file.

    Raises `NammTransferError` if Gymnasium or MuJoCo is missing or too old for the v5 environments.
    """
    gym_id = task(name).gym_id
    try:
        import gymnasium

        with quiet_mujoco():
            return gymnasium.make(gym_id)
    except ImportError as problem:
        raise NammTransferError(f"{gym_id} needs pip install 'namm-transfer[rl]': {problem}") from problem
    except gymnasium.error.Error as problem:
        raise NammTransferError(f"{gym_id} cannot be made: {problem}") from problem


class Environments:
    """`count` copies of one environment. A finished row is no longer stepped, its observation stays."""

    def __init__(self, name: str, count: int) -> None:
        self.task = task(name)
        self.envs = [make(name) for _ in range(count)]
        self.observations = np.zeros((count, self.task.observation_size))
        self.alive = np.zeros(count, dtype=bool)
        self.terminated = np.zeros(count, dtype=bool)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start row i from `seeds[i]`; rows beyond the seeds count as finished. Returns (count, size) float64."""
        self.alive[:] = np.arange(len(self.envs)) < len(seeds)
        self.terminated[:] = False
        for row, env in enumerate(self.envs):
            self.observations[row] = env.reset(seed=int(seeds[row if row < len(seeds) else 0]))[0]
        return self.observations.copy()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (count, action_size) -> observations (count, size) and rewards (count,), zero in finished rows.

        Raises `NammTransferError` for actions of another shape or with NaN or infinity in a row that still runs.
        """
        if actions.shape != (len(self.envs), self.task.action_size):
            raise NammTransferError(
                f"actions have shape {actions.shape}, "
                f"{self.task.gym_id} expects {(len(self.envs), self.task.action_size)}"
            )
        if not np.isfinite(actions[self.alive]).all():
            raise NammTransferError(f"the policy gave actions that are not finite: {actions[self.alive].tolist()}")
        rewards = np.zeros(len(self.envs))
        for row in np.flatnonzero(self.alive):
            observation, reward, terminated, truncated, _ = self.envs[row].step(actions[row])
            self.observations[row], rewards[row] = observation, float(reward)
            self.terminated[row] = terminated
            self.alive[row] = not (terminated or truncated)
        return self.observations.copy(), rewards

    def positions(self) -> list[float]:
        """How far each row has got, in metres."""
        return [float(env.unwrapped.data.qpos[0]) for env in self.envs]  # type: ignore[attr-defined]

    def close(self) -> None:
        """Free MuJoCo's data."""
        for env in self.envs:
            env.close()


def rollout(environments: Environments, seeds: Sequence[int], act: Act) -> list[Trajectory]:
    """One episode a seed, all rows together until the last has finished; `act` sees the finished rows too."""
    observations = [environments.reset(seeds)]
    actions: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    lengths = np.zeros(len(environments.envs), dtype=int)
    reward = np.zeros(len(environments.envs))
    while environments.alive.any():
        action = act(observations[-1], reward).astype(np.float32)
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
    """Uniformly random actions: the policy whose return is 0 normalised."""
    generator = np.random.default_rng(seed)
    return lambda observations, _: generator.uniform(-1, 1, (len(observations), task(name).action_size))
