"""Minari data sets: written from trajectories, read back with every shape checked, and their statistics.

Data lies where Minari keeps it: `$MINARI_DATASETS_PATH`, or `~/.minari/datasets`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.environments import Trajectory, make, quiet_mujoco
from namm_transfer.evals.tasks.rl.scores import normalised_score, task

CODE = "https://github.com/namm-transfer/namm-transfer"


@dataclass
class Dataset:
    """The episodes of one Minari data set of one environment."""

    id: str
    """Minari's id, e.g. `namm-transfer/hopper/medium-v0`."""
    env: str
    """hopper, halfcheetah or walker2d."""
    trajectories: list[Trajectory]
    """All episodes, in the order of the data set."""
    description: str = ""
    """What the data set's makers say of it."""

    @cached_property
    def state_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (observation_size,) float32 over all states an action was taken in (+1e-6)."""
        states = np.concatenate([trajectory.observations[:-1] for trajectory in self.trajectories])
        return states.mean(0).astype(np.float32), (states.std(0) + 1e-6).astype(np.float32)

    def summary(self) -> dict[str, float]:
        """Episodes, steps, and the mean, standard deviation, best and normalised mean return."""
        returns = np.array([trajectory.episode_return for trajectory in self.trajectories])
        return {
            "episodes": len(returns),
            "steps": sum(len(trajectory) for trajectory in self.trajectories),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_best": float(returns.max()),
            "score": normalised_score(self.env, float(returns.mean())),
        }


def write(
    dataset_id: str,
    env: str,
    trajectories: Iterable[Trajectory],
    algorithm: str,
    description: str,
    metadata: dict[str, str] | None = None,
) -> None:
    """Make the Minari data set `dataset_id`; its metadata carries D4RL's reference scores, each episode its seed.

    `metadata` is added to it. Raises `NammTransferError` if the id is not well formed or exists already.
    """
    reference, minari = task(env), _minari()
    buffers = [
        minari.data_collector.EpisodeBuffer(
            seed=trajectory.seed if trajectory.seed >= 0 else None,
            observations=trajectory.observations,
            actions=trajectory.actions,
            rewards=trajectory.rewards.tolist(),
            terminations=[False] * (len(trajectory) - 1) + [trajectory.terminated],
            truncations=[False] * (len(trajectory) - 1) + [not trajectory.terminated],
        )
        for trajectory in trajectories
    ]
    environment = make(env)
    try:
        with quiet_mujoco(), warnings.catch_warnings():  # Minari recommends an author's mail address
            warnings.simplefilter("ignore", UserWarning)
            made = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=environment,
                algorithm_name=algorithm,
                author="namm-transfer",
                code_permalink=CODE,
                description=description,
                ref_min_score=reference.random_return,
                ref_max_score=reference.expert_return,
                requirements=[f"gymnasium>={version('gymnasium')}", f"mujoco>={version('mujoco')}"],
            )
        made.storage.update_metadata(metadata or {})
    except ValueError as problem:
        raise NammTransferError(f"data set {dataset_id!r} cannot be written: {problem}") from problem
    finally:
        environment.close()


def load(dataset_id: str, env: str) -> Dataset:
    """Read a local Minari data set; raises `NammTransferError` if it is missing, damaged or not of `env`."""
    try:
        source = _minari().load_dataset(dataset_id)
        episodes = list(source.iterate_episodes())
        description = str(source.storage.metadata.get("description", ""))
    except FileNotFoundError as problem:
        raise NammTransferError(
            f"no data set {dataset_id!r}; make it with `python -m namm_transfer.training.rl.collect --env {env}` "
            f"or fetch a published one with `minari download {dataset_id}` ({problem})"
        ) from problem
    except (OSError, ValueError, KeyError, AssertionError) as problem:
        raise NammTransferError(f"data set {dataset_id!r} cannot be read: {problem}") from problem
    if not episodes:
        raise NammTransferError(f"data set {dataset_id!r} holds no episode")
    return Dataset(dataset_id, env, [_checked(episode, dataset_id, env) for episode in episodes], description)


def _minari() -> Any:
    try:
        import minari
    except ImportError as problem:
        raise NammTransferError(f"data sets need pip install 'namm-transfer[rl]': {problem}") from problem
    return minari


def _checked(episode: Any, dataset_id: str, env: str) -> Trajectory:
    reference, steps = task(env), len(episode.rewards)
    found = {"observations": np.shape(episode.observations), "actions": np.shape(episode.actions)}
    expected = {"observations": (steps + 1, reference.observation_size), "actions": (steps, reference.action_size)}
    if found != expected or steps == 0:
        raise NammTransferError(f"episode {episode.id} of {dataset_id!r} has shapes {found}, {env} expects {expected}")
    trajectory = Trajectory(
        seed=-1,
        observations=np.asarray(episode.observations, dtype=np.float64),
        actions=np.asarray(episode.actions, dtype=np.float32),
        rewards=np.asarray(episode.rewards, dtype=np.float64),
        terminated=bool(episode.terminations[-1]),
    )
    arrays = (trajectory.observations, trajectory.actions, trajectory.rewards)
    if not all(np.isfinite(array).all() for array in arrays):
        raise NammTransferError(f"episode {episode.id} of {dataset_id!r} holds values that are not finite")
    return trajectory
