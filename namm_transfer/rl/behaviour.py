"""Train a behaviour policy by soft actor-critic up to the `medium` tier (40 to 60 normalised).

    python -m namm_transfer.rl.behaviour --env hopper --out runs/behaviour/hopper

Writes `OUT/medium/actor.safetensors` (the first snapshot that is medium, with sampled actions as the data will have)
and `OUT/state/` (networks, optimisers, replay buffer: kill it at any time, run the same command again, and it goes on).
Needs the extra `[train]`. The replay buffer is the `medium-replay` tier's data.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from namm_transfer.files import write_atomic
from namm_transfer.rl.actor import BehaviourActor, save_actor
from namm_transfer.rl.environments import Environments, make, rollout
from namm_transfer.rl.scores import normalised_score, task

MEDIUM = (40.0, 60.0)
CARD = """# Behaviour policy, {env} {tier}

The actor of soft actor-critic after {steps:,} steps in {gym_id} ({width} wide, seed {seed}): `actor.safetensors`, read
by `namm_transfer.rl.actor.load_actor`. It makes the `{env}` {tier} data.

Sampled actions, {episodes} episodes: mean return {return_:.0f} (v5; normalised by D4RL's references {score:.1f}), mean
length {length:.0f}, mean distance {distance:.0f} m.

Made by `python -m namm_transfer.rl.behaviour --env {env} --out runs/behaviour/{env}` with stable-baselines3; the same
command elsewhere gives another policy of the tier, not the same numbers.
"""
REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass
class Options:
    """Train a behaviour policy."""

    env: str
    """hopper, halfcheetah or walker2d."""
    out: Path
    """Folder of the snapshot and of the training state."""
    steps: int = 250_000
    """Environment steps at most; training stops at the first snapshot confirmed as medium."""
    width: int = 128
    """Size of the two hidden layers of actor and critics; half of the usual 256, for 2.7 times the steps a second."""
    batch_size: int = 128
    """Transitions an update."""
    learning_rate: float = 5e-4
    """Of actor, critics and temperature."""
    evaluate_every: int = 5_000
    """Steps between evaluations, which are also the checkpoints."""
    episodes: int = 5
    """Sampled episodes an evaluation; a candidate is confirmed with four times as many."""
    seed: int = 0
    """Of networks, exploration and environments."""


def exported(model: Any, width: int) -> BehaviourActor:
    """The actor inside a stable-baselines3 model, as this package's module."""
    source = model.policy.actor
    actor = BehaviourActor(model.observation_space.shape[0], model.action_space.shape[0], width)
    actor.hidden.load_state_dict(source.latent_pi.state_dict())
    actor.mean.load_state_dict(source.mu.state_dict())
    actor.log_std.load_state_dict(source.log_std.state_dict())
    return actor.eval()


def measure(actor: BehaviourActor, env: str, episodes: int, seed: int) -> dict[str, float]:
    """Means over sampled episodes from environment seeds `seed`, ...: return, normalised score, length, distance."""
    environments = Environments(env, episodes)
    generator = torch.Generator().manual_seed(seed)

    def act(observations: np.ndarray, _: np.ndarray) -> np.ndarray:
        return actor.act(torch.from_numpy(observations).float(), generator).numpy()

    found = rollout(environments, range(seed, seed + episodes), act)
    distance = np.mean(environments.positions())
    environments.close()
    mean = float(np.mean([trajectory.episode_return for trajectory in found]))
    length = float(np.mean([len(trajectory) for trajectory in found]))
    facts = {"return": mean, "score": normalised_score(env, mean), "length": length, "distance": float(distance)}
    return {**facts, "episodes": episodes}


def is_medium(measured: dict[str, float]) -> bool:
    """40 to 60 normalised, and moving: standing still earns 1 a step in Hopper and Walker2d, 0 in HalfCheetah."""
    return MEDIUM[0] <= measured["score"] <= MEDIUM[1] and measured["return"] >= 1.5 * measured["length"]


class Medium(BaseCallback):
    """Evaluates every few thousand steps, checkpoints, and stops at the first snapshot confirmed as medium."""

    def __init__(self, options: Options, bar: tqdm) -> None:
        super().__init__()
        self.options, self.bar = options, bar

    def _on_step(self) -> bool:
        self.bar.update(self.num_timesteps - self.bar.n)
        if self.num_timesteps % self.options.evaluate_every:
            return True
        done = self.evaluate()
        save_state(self.model, self.options.out / "state")
        return not done

    def evaluate(self) -> bool:
        """One evaluation; True when the snapshot is medium in the confirmation too."""
        options = self.options
        actor = exported(self.model, options.width)
        for episodes, seed in ((options.episodes, 10_000), (4 * options.episodes, 20_000)):
            result = measure(actor, options.env, episodes, seed + options.seed)
            tqdm.write(f"{options.env} {self.num_timesteps} " + " ".join(f"{k} {v:.1f}" for k, v in result.items()))
            if not is_medium(result):
                return False
        facts = {"env": options.env, "gym_id": task(options.env).gym_id, "tier": "medium", "steps": self.num_timesteps}
        facts |= {"seed": options.seed, "width": options.width, "measured": result, "algorithm": "SAC"}
        save_actor(actor, options.out / "medium", facts)
        numbers = {**facts, **result, "return_": result["return"]}
        write_atomic(options.out / "medium" / "README.md", CARD.format(**numbers))
        return True


def save_state(model: Any, folder: Path) -> None:
    """Networks, optimisers, replay buffer and step count, each file replaced atomically, the step count last.

    The step in progress is not in the buffer yet: a restart loses that one transition.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(model.get_parameters(), buffer)
    write_atomic(folder / "parameters.pt", buffer.getvalue())
    replay = model.replay_buffer
    size = replay.buffer_size if replay.full else replay.pos
    temporary = folder / "replay.tmp.npz"
    np.savez(temporary, **{name: getattr(replay, name)[:size] for name in REPLAY_ARRAYS}, steps=model.num_timesteps)
    os.replace(temporary, folder / "replay.npz")


def load_state(model: Any, folder: Path) -> bool:
    """Continue from `save_state`'s folder; False when there is none."""
    if not (folder / "replay.npz").is_file():
        return False
    model.set_parameters(torch.load(folder / "parameters.pt", weights_only=True))
    with np.load(folder / "replay.npz", allow_pickle=False) as saved:
        replay, size = model.replay_buffer, len(saved["rewards"])
        for name in REPLAY_ARRAYS:
            getattr(replay, name)[:size] = saved[name]
        replay.pos, model.num_timesteps = size, int(saved["steps"])
    return True


def train(options: Options) -> dict[str, Any]:
    """Train until medium or until `steps`; returns the step count and whether a medium snapshot exists."""
    env = make(options.env)
    model = SAC(
        "MlpPolicy",
        env,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        buffer_size=options.steps,
        learning_starts=5_000,
        seed=options.seed,
        device="cpu",
        policy_kwargs={"net_arch": [options.width, options.width], "optimizer_kwargs": {"fused": True}},
    )
    resumed = load_state(model, options.out / "state")
    actor = options.out / "medium" / "actor.safetensors"
    if not actor.is_file() and model.num_timesteps < options.steps:
        with tqdm(total=options.steps, initial=model.num_timesteps, desc=f"SAC {options.env}", mininterval=10) as bar:
            left = options.steps - model.num_timesteps
            model.learn(left, callback=Medium(options, bar), reset_num_timesteps=not resumed)
    return {"steps": model.num_timesteps, "medium": actor.is_file()}


if __name__ == "__main__":
    print(train(tyro.cli(Options)))
