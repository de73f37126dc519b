"""Minari data sets: written from trajectories, read back with every shape checked, and their statistics.

Data lies where Minari keeps it: `$MINARI_DATASETS_PATH`, or `~/.minari/datasets`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.environments import Trajectory
from namm_transfer.evals.tasks.rl.identity import check_name, check_spec
from namm_transfer.evals.tasks.rl.store import folder, minari, open_dataset
from namm_transfer.evals.tasks.rl.tasks import flat, make, quiet_mujoco, task

CODE = "https://github.com/namm-transfer/namm-transfer"
OWN_NAMESPACE = "namm-transfer"
"""Namespace of the data sets that the commands of this project make; nobody hosts them."""
BOUNDS_SLACK = 0.01
"""Share of an action's range by which recorded actions may lie outside of it: rounding, not another unit."""


@dataclass
class Dataset:
    """The episodes of one Minari data set of one environment."""

    id: str
    """Minari's id, e.g. `namm-transfer/hopper/medium-v0`."""
    env: str
    """Name of the task, see `tasks`."""
    trajectories: list[Trajectory]
    """All episodes, in the order of the data set."""
    description: str = ""
    """Description by the data set's authors."""

    @cached_property
    def state_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation plus 1e-6, (observation_size,) float32, of all states with an action."""
        states = np.concatenate([trajectory.observations[:-1] for trajectory in self.trajectories])
        return states.mean(0).astype(np.float32), (states.std(0) + 1e-6).astype(np.float32)

    @cached_property
    def sha256(self) -> str:
        """Digest of all observations, actions, rewards and terminals, independent of the data set's id."""
        digest = hashlib.sha256()
        for trajectory in self.trajectories:
            digest.update(f"{len(trajectory)} {trajectory.terminated}".encode())
            for array in (trajectory.observations, trajectory.actions, trajectory.rewards):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, float]:
        """Summarise episodes, steps, returns (mean, standard deviation, best) and the score of the mean return."""
        returns = np.array([trajectory.episode_return for trajectory in self.trajectories])
        return {
            "episodes": len(returns),
            "steps": sum(len(trajectory) for trajectory in self.trajectories),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_best": float(returns.max()),
            "score": task(self.env).score(float(returns.mean())),
        }


def check_free(dataset_id: str) -> Path:
    """Return the folder of a new data set; raises `NammTransferError` for a malformed or existing id.

    Commands that run for hours before they write call it first.
    """
    place = folder(dataset_id)
    if place.exists():
        raise NammTransferError(f"data set {dataset_id!r} already exists at {place}; expected a new id")
    return place


def write(
    dataset_id: str,
    env: str,
    trajectories: Iterable[Trajectory],
    algorithm: str,
    description: str,
    metadata: dict[str, str] | None = None,
) -> None:
    """Make a Minari data set; its metadata carries the task's reference returns, each episode its seed.

    It is written under a hidden name and renamed when complete, so that a killed run leaves nothing that Minari lists
    and nothing that blocks the id.

    Args:
        dataset_id: Minari's id, checked before the first trajectory is drawn.
        env: name of the task.
        trajectories: the episodes; drawn only once.
        algorithm: what played them.
        description: for the reader of the data set.
        metadata: added to the data set's own.

    Raises:
        NammTransferError: the id is malformed or taken, an episode does not fit the environment, the disk is full.
    """
    place = check_free(dataset_id)
    episodes = list(trajectories)
    if not episodes:
        raise NammTransferError(f"data set {dataset_id!r}: there is no episode to write")
    for number, trajectory in enumerate(episodes):
        check_trajectory(trajectory, env, f"episode {number} of {dataset_id!r}")
    environment = make(env)
    facts: dict[str, Any] = {"algorithm_name": algorithm, "description": description}
    facts |= {"ref_min_score": task(env).random_return, "ref_max_score": task(env).expert_return}
    try:
        with _staged(place, dataset_id, _bytes(episodes)) as draft:
            _create(dataset_id, environment, episodes, facts, metadata or {})
            made = minari().MinariDataset(draft / "data")
            if made.total_episodes != len(episodes):
                raise NammTransferError(f"data set {dataset_id!r}: {made.total_episodes} of {len(episodes)} written")
    finally:
        environment.close()


@contextmanager
def _staged(place: Path, dataset_id: str, size: int) -> Iterator[Path]:
    """Provide a hidden folder for Minari to write `dataset_id` to; its content is moved to `place` at the end."""
    root = Path(minari().storage.get_dataset_path(""))
    outside, before = Path(), os.environ.get("MINARI_DATASETS_PATH")
    try:
        free = shutil.disk_usage(root).free
        if free < size:
            raise NammTransferError(f"data set {dataset_id!r} needs {size:,} bytes, {root} has {free:,} left")
        outside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=root))
        os.environ["MINARI_DATASETS_PATH"] = str(outside)
        yield outside / dataset_id
        os.environ["MINARI_DATASETS_PATH"] = str(root)
        namespace = dataset_id.rpartition("/")[0]
        if namespace and namespace not in minari().namespace.list_local_namespaces():
            minari().namespace.create_namespace(namespace)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(outside / dataset_id, place)
    except NammTransferError:
        raise
    except Exception as problem:  # Minari, h5py and the operating system each have their own
        reason = f"{type(problem).__name__}: {problem}"
        raise NammTransferError(f"data set {dataset_id!r} cannot be written: {reason}") from problem
    finally:
        if before is None:
            os.environ.pop("MINARI_DATASETS_PATH", None)
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
        if outside != Path():
            shutil.rmtree(outside, ignore_errors=True)


def _create(
    dataset_id: str, environment: Any, episodes: list[Trajectory], facts: dict[str, Any], metadata: dict[str, str]
) -> None:
    import gymnasium

    buffers = [
        minari().data_collector.EpisodeBuffer(
            seed=trajectory.seed if trajectory.seed >= 0 else None,
            observations=trajectory.observations,
            actions=trajectory.actions,
            rewards=trajectory.rewards.tolist(),
            terminations=[False] * (len(trajectory) - 1) + [trajectory.terminated],
            truncations=[False] * (len(trajectory) - 1) + [not trajectory.terminated],
        )
        for trajectory in episodes
    ]
    space: Any = environment.observation_space
    if isinstance(space, gymnasium.spaces.Dict):
        space = gymnasium.spaces.Box(-np.inf, np.inf, episodes[0].observations.shape[1:], np.float64)
    with quiet_mujoco(), warnings.catch_warnings():  # Minari recommends an author's mail address
        warnings.simplefilter("ignore", UserWarning)
        made = minari().create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=environment,
            observation_space=space,
            author=OWN_NAMESPACE,
            code_permalink=CODE,
            requirements=[f"gymnasium>={version('gymnasium')}", f"mujoco>={version('mujoco')}"],
            **facts,
        )
    made.storage.update_metadata(metadata)


def _bytes(episodes: list[Trajectory]) -> int:
    """Estimate the disk space of the arrays in bytes, plus a third and 16 kB an episode for HDF5's bookkeeping."""
    numbers = sum(e.observations.nbytes + e.actions.nbytes + 10 * len(e) for e in episodes)
    return numbers * 4 // 3 + 16_384 * len(episodes)


def load(dataset_id: str, env: str) -> Dataset:
    """Read a local Minari data set; raises `NammTransferError` if it is missing, damaged or not of `env`."""
    task(env)
    try:
        source = open_dataset(dataset_id)
    except FileNotFoundError as problem:
        raise NammTransferError(f"no data set {dataset_id!r}; {_how_to_get(dataset_id, env)} ({problem})") from problem
    if source.env_spec is not None:
        check_spec(env, source.env_spec.id, f"data set {dataset_id!r}")
    else:
        check_name(env, dataset_id, f"the id of data set {dataset_id!r}")
    limit = None if source.env_spec is None else source.env_spec.max_episode_steps
    try:
        episodes = list(source.iterate_episodes())
        description = str(source.storage.metadata.get("description", ""))
    except Exception as problem:  # each storage format raises its own
        reason = f"{type(problem).__name__}: {problem}"
        raise NammTransferError(f"data set {dataset_id!r} cannot be read: {reason}") from problem
    if not episodes:
        raise NammTransferError(f"data set {dataset_id!r} holds no episode")
    return Dataset(dataset_id, env, [_trajectory(episode, dataset_id, env, limit) for episode in episodes], description)


def _how_to_get(dataset_id: str, env: str) -> str:
    """Return the command that makes or downloads a data set, for error messages."""
    namespace, _, name = dataset_id.rpartition("/")
    if not namespace.startswith(OWN_NAMESPACE):
        return f"fetch a published one with `minari download {dataset_id}`"
    tier, module = name.rpartition("-v")[0], "python -m namm_transfer.training.rl"
    if tier == "medium-replay":
        return f"make it with `{module}.behaviour --env {env} --replay {dataset_id} --out runs/behaviour/{env}-medium`"
    if tier in ("random", "medium", "expert", "medium-expert"):
        return f"make it with `{module}.collect --env {env}{'' if tier == 'medium' else f' --tier {tier}'}`"
    return f"nobody hosts ids of {OWN_NAMESPACE}; make one with `{module}.collect --env {env} --id {dataset_id}`"


def _trajectory(episode: Any, dataset_id: str, env: str, limit: int | None) -> Trajectory:
    label = f"episode {episode.id} of {dataset_id!r}"
    try:
        observations = np.asarray(flat(episode.observations), dtype=np.float64)
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused below
            actions = np.asarray(episode.actions, dtype=np.float32)
        rewards = np.asarray(episode.rewards, dtype=np.float64)
        ends = np.asarray(episode.terminations, dtype=bool)
    except (ValueError, TypeError, KeyError) as problem:
        raise NammTransferError(f"{label} holds no arrays of numbers: {problem}") from problem
    if ends.shape != rewards.shape or ends[:-1].any():
        raise NammTransferError(f"{label} continues after a terminal; expected a terminal at its last step only")
    trajectory = Trajectory(-1, observations, actions, rewards, terminated=bool(ends[-1:].any()))
    check_trajectory(trajectory, env, label, limit)
    return trajectory


def check_trajectory(trajectory: Trajectory, env: str, label: str, limit: int | None = None) -> None:
    """Refuse an episode that task `env` cannot have produced.

    Args:
        trajectory: the episode.
        env: name of the task.
        label: names the episode in the error.
        limit: longest episode in steps, the environment's own unless given.

    Raises:
        NammTransferError: other shapes, values that are not finite, actions outside the bounds, more steps than the
            environment allows.
    """
    reference, steps = task(env), trajectory.rewards.size
    found = {"observations": trajectory.observations.shape, "actions": trajectory.actions.shape}
    expected = {"observations": (steps + 1, reference.observation_size), "actions": (steps, reference.action_size)}
    if found != expected or steps == 0 or trajectory.rewards.ndim != 1:
        raise NammTransferError(f"{label} has shapes {found} and {steps} rewards, {env} expects {expected}")
    if not all(np.isfinite(a).all() for a in (trajectory.observations, trajectory.actions, trajectory.rewards)):
        raise NammTransferError(f"{label} holds values that are not finite")
    if steps > (limit or reference.max_steps):
        raise NammTransferError(
            f"{label} has {steps:,} steps, {reference.gym_id} ends an episode after {limit or reference.max_steps:,}: "
            "are ends of episodes missing in the data?"
        )
    low, high = reference.bounds
    slack = np.where(np.isfinite(high - low), BOUNDS_SLACK * (high - low), 0)
    outside = (trajectory.actions < low - slack) | (trajectory.actions > high + slack)
    if outside.any():
        step = int(np.flatnonzero(outside.any(1))[0])
        raise NammTransferError(
            f"{label}: the action of step {step} is {trajectory.actions[step].tolist()}, outside the bounds of "
            f"{reference.gym_id}, {low.tolist()} to {high.tolist()}"
        )
