"""The two algorithms that train behaviour policies (stable-baselines3), with their checkpoints and actors.

Soft actor-critic learns from few steps and is slow; proximal policy optimisation (Schulman et al., 2017) needs five
times the steps at 15 times the speed. Everything is saved without pickled objects.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces, wrappers
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from namm_transfer.evals.tasks.rl.environments import Trajectory
from namm_transfer.evals.tasks.rl.tasks import flat, make, task
from namm_transfer.files import write_atomic
from namm_transfer.training.rl.actor import BehaviourActor
from namm_transfer.training.rl.experience import Recorder

REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def world(env: str, episodes: list[Trajectory]) -> gymnasium.Env[Any, Any]:
    """Make an environment of vectors whose actions lie between -1 and 1; its whole episodes go to `episodes`."""
    low, high = task(env).bounds
    made: gymnasium.Env[Any, Any] = make(env)
    if isinstance(made.observation_space, spaces.Dict):
        size = task(env).observation_size
        made = wrappers.TransformObservation(made, flat, spaces.Box(-np.inf, np.inf, (size,), np.float64))
    recorded = Recorder(made, episodes)
    if (low == -1).all() and (high == 1).all():
        return recorded
    return wrappers.RescaleAction(recorded, np.float32(-1), np.float32(1))


class Learner(Protocol):
    """The interface of a stable-baselines3 model that the training command uses."""

    model: Any
    episodes: list[Trajectory]
    """Whole episodes of the training since the list was last emptied, in the order in which they ended."""

    def actor(self) -> BehaviourActor:
        """Return the current policy."""

    def save(self, folder: Path) -> None:
        """Write everything that an interrupted training needs to continue."""

    def load(self, folder: Path) -> bool:
        """Continue from `save`'s folder; False when there is none."""


class SoftActorCritic:
    """SAC; its replay buffer holds every transition so far, in order."""

    def __init__(self, env: str, width: int, learning_rate: float, batch_size: int, steps: int, seed: int) -> None:
        self.width = width
        self.episodes: list[Trajectory] = []
        self.model: Any = SAC(
            "MlpPolicy",
            world(env, self.episodes),
            learning_rate=learning_rate,
            batch_size=batch_size,
            buffer_size=steps,
            learning_starts=5_000,
            seed=seed,
            device="cpu",
            policy_kwargs={"net_arch": [width, width], "optimizer_kwargs": {"fused": True}},
        )

    def actor(self) -> BehaviourActor:
        """Return the actor: tanh of a Gaussian whose standard deviation depends on the state."""
        source = self.model.policy.actor
        actor = BehaviourActor(source.latent_pi[0].in_features, source.mu.out_features, self.width, "tanh")
        actor.hidden.load_state_dict(source.latent_pi.state_dict())
        actor.mean.load_state_dict(source.mu.state_dict())
        actor.log_std.load_state_dict(source.log_std.state_dict())
        return actor.eval()

    def save(self, folder: Path) -> None:
        """Save the training; the step in progress is not in the buffer yet, so a restart loses that one transition."""
        _save_tensors(folder / "parameters.pt", self.model.get_parameters())
        replay = self.model.replay_buffer
        size = replay.buffer_size if replay.full else replay.pos
        arrays = {name: getattr(replay, name)[:size] for name in REPLAY_ARRAYS}
        np.savez(folder / "replay.tmp.npz", **arrays, steps=self.model.num_timesteps)
        os.replace(folder / "replay.tmp.npz", folder / "replay.npz")

    def load(self, folder: Path) -> bool:
        """Continue from a saved training, as `Learner` describes."""
        if not (folder / "replay.npz").is_file():
            return False
        self.model.set_parameters(torch.load(folder / "parameters.pt", weights_only=True))
        with np.load(folder / "replay.npz", allow_pickle=False) as saved:
            replay, size = self.model.replay_buffer, len(saved["rewards"])
            for name in REPLAY_ARRAYS:
                getattr(replay, name)[:size] = saved[name]
            replay.pos, self.model.num_timesteps = size, int(saved["steps"])
        return True


class ProximalPolicyOptimisation:
    """PPO on eight environments with normalised observations and rewards."""

    def __init__(self, env: str, width: int, learning_rate: float, batch_size: int, steps: int, seed: int) -> None:
        self.width = width
        self.episodes: list[Trajectory] = []
        environments = DummyVecEnv([lambda: world(env, self.episodes)] * 8)
        self.environments = VecNormalize(environments, clip_obs=np.inf)
        self.seen: dict[str, Any] = {"observations": self.environments.obs_rms, "returns": self.environments.ret_rms}
        self.model: Any = PPO(
            "MlpPolicy",
            self.environments,
            n_steps=256,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            device="cpu",
            policy_kwargs={
                "net_arch": {"pi": [width, width], "vf": [width, width]},
                "activation_fn": nn.ReLU,
                "log_std_init": -0.5,
            },
        )

    def actor(self) -> BehaviourActor:
        """Return the actor: a clipped Gaussian of constant deviation; its first layer normalises observations."""
        source, seen = self.model.policy, self.seen["observations"]
        actor = BehaviourActor(len(seen.mean), source.action_net.out_features, self.width, "clip")
        actor.hidden.load_state_dict(source.mlp_extractor.policy_net.state_dict())
        actor.mean.load_state_dict(source.action_net.state_dict())
        with torch.no_grad():
            first = actor.hidden[0]
            assert isinstance(first, nn.Linear)
            first.weight /= torch.from_numpy(np.sqrt(seen.var + self.environments.epsilon)).float()
            first.bias.sub_(first.weight @ torch.from_numpy(seen.mean).float())
            actor.log_std.weight.zero_()
            actor.log_std.bias.copy_(source.log_std)
        return actor.eval()

    def save(self, folder: Path) -> None:
        """Save parameters and running statistics; a restart loses the rollout in progress."""
        statistics = {
            name: {"mean": torch.as_tensor(found.mean), "var": torch.as_tensor(found.var), "count": float(found.count)}
            for name, found in self.seen.items()
        }
        state = {**self.model.get_parameters(), "statistics": statistics, "steps": int(self.model.num_timesteps)}
        _save_tensors(folder / "parameters.pt", state)

    def load(self, folder: Path) -> bool:
        """Continue from a saved training, as `Learner` describes."""
        if not (folder / "parameters.pt").is_file():
            return False
        state = torch.load(folder / "parameters.pt", weights_only=True)
        statistics, self.model.num_timesteps = state.pop("statistics"), state.pop("steps")
        self.model.set_parameters(state)
        for name, found in self.seen.items():
            saved = statistics[name]
            found.mean, found.var, found.count = saved["mean"].numpy(), saved["var"].numpy(), saved["count"]
        return True


def _save_tensors(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


LEARNERS: dict[str, Any] = {"sac": SoftActorCritic, "ppo": ProximalPolicyOptimisation}
