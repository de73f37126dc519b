"""Recording of every whole episode of a behaviour policy's training, the data of a medium-replay tier."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from namm_transfer.evals.tasks.rl.environments import Trajectory
from namm_transfer.files import write_atomic


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that appends each episode that ends in it to `episodes`, actions as the environment got them."""

    def __init__(self, env: gymnasium.Env[Any, Any], episodes: list[Trajectory]) -> None:
        super().__init__(env)
        self.episodes = episodes
        self._observations: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and discard an episode that has not ended."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._observations, self._actions, self._rewards = [np.array(observation)], [], []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment (see `gymnasium.Env.step`) and record the transition."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observations.append(np.array(observation))
        self._actions.append(np.array(action, dtype=np.float32))
        self._rewards.append(float(reward))
        if terminated or truncated:
            arrays = (np.stack(self._observations), np.stack(self._actions), np.array(self._rewards))
            self.episodes.append(Trajectory(-1, *arrays, terminated=bool(terminated)))
        return observation, reward, terminated, truncated, info


def keep(folder: Path, steps: int, episodes: list[Trajectory]) -> None:
    """Move `episodes`, those since the last call, to `folder/episodes-STEPS.npz`."""
    if not episodes:
        return
    content = io.BytesIO()
    np.savez(
        content,
        observations=np.concatenate([episode.observations for episode in episodes]),
        actions=np.concatenate([episode.actions for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        lengths=np.array([len(episode) for episode in episodes]),
        terminated=np.array([episode.terminated for episode in episodes]),
    )
    write_atomic(folder / f"episodes-{steps:09d}.npz", content.getvalue())
    episodes.clear()


def forget_after(folder: Path, steps: int) -> None:
    """Delete episodes after the checkpoint at `steps`, since a training that continues there records them anew."""
    for path in folder.glob("episodes-*.npz"):
        if int(path.stem.partition("-")[2]) > steps:
            path.unlink()


def recall(folder: Path) -> Iterator[Trajectory]:
    """Load all episodes in `folder`, in the order in which they ended."""
    for path in sorted(folder.glob("episodes-*.npz")):
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        step = 0
        for number, (length, terminated) in enumerate(zip(arrays["lengths"], arrays["terminated"], strict=True)):
            yield Trajectory(
                seed=-1,
                observations=arrays["observations"][step + number : step + number + length + 1],
                actions=arrays["actions"][step : step + length],
                rewards=arrays["rewards"][step : step + length],
                terminated=bool(terminated),
            )
            step += int(length)
