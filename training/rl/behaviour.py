"""Train a behaviour policy up to the `medium` tier (40 to 60 normalised).

    python -m namm_transfer.training.rl.behaviour --env halfcheetah --out assets/behaviour/halfcheetah-medium

Writes `OUT/actor.safetensors`, the first snapshot that is medium with sampled actions, as the data will have, and with
`--replay ID` the `medium-replay` data: what the training lived through on the way there. Kill it at any time: the same
command goes on from the state it keeps. Needs the extra `[train]`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, rollout
from namm_transfer.evals.tasks.rl.tasks import normalised_score, task
from namm_transfer.files import write_atomic
from namm_transfer.training.rl import card, experience
from namm_transfer.training.rl.actor import BehaviourActor, save_actor
from namm_transfer.training.rl.learners import LEARNERS, Learner

MEDIUM = (40.0, 60.0)
CARD = """# Behaviour policy, {env} {tier}

The actor of {algorithm} after {steps:,} steps in {gym_id} (seed {seed}): `actor.safetensors`, read by
`namm_transfer.rl.actor.load_actor`. It makes the `{env}` {tier} data.

Sampled actions, {episodes} episodes: mean return {return:.0f} (v5; normalised by D4RL's references {score:.1f}), mean
length {length:.0f}, mean distance {distance:.0f} m. Made with stable-baselines3 by

    {command}

The same command elsewhere gives another policy of the tier, not the same numbers.
"""


@dataclass
class Options:
    """Train a behaviour policy."""

    env: str
    """hopper, halfcheetah or walker2d."""
    out: Path
    """Folder of the policy."""
    state: Path | None = None
    """Folder of the training state; `runs/behaviour/ENV` by default."""
    replay: str | None = None
    """Minari id, e.g. `namm-transfer/ENV/medium-replay-v0`: every whole episode of the training, up to medium
    or to --steps."""
    algorithm: Literal["sac", "ppo"] = "sac"
    """Soft actor-critic or proximal policy optimisation: more steps, but a fraction of the time where it gets there."""
    steps: int = 250_000
    """Environment steps at most; training stops at the first snapshot confirmed as medium."""
    width: int = 128
    """Size of the two hidden layers; half of SAC's usual 256, for 2.7 times the steps a second."""
    batch_size: int = 128
    """Transitions an update."""
    learning_rate: float = 5e-4
    """Of everything that learns."""
    evaluate_every: int = 5_000
    """Steps between evaluations, which are also the checkpoints."""
    episodes: int = 5
    """Sampled episodes an evaluation; a candidate is confirmed with four times as many."""
    seed: int = 0
    """Of networks, exploration and environments."""


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

    def __init__(self, options: Options, learner: Learner, bar: tqdm) -> None:
        super().__init__()
        self.options, self.learner, self.bar = options, learner, bar

    def _on_step(self) -> bool:
        self.bar.update(self.num_timesteps - self.bar.n)
        if self.num_timesteps % self.options.evaluate_every:
            return True
        done = self.evaluate()
        experience.keep(state_folder(self.options), self.num_timesteps, self.learner.episodes)
        self.learner.save(state_folder(self.options))
        return not done

    def evaluate(self) -> bool:
        """One evaluation; True when the snapshot is medium in the confirmation too."""
        options, actor = self.options, self.learner.actor()
        for episodes, seed in ((options.episodes, 10_000), (4 * options.episodes, 20_000)):
            result = measure(actor, options.env, episodes, seed + options.seed)
            tqdm.write(f"{options.env} {self.num_timesteps} " + " ".join(f"{k} {v:.1f}" for k, v in result.items()))
            if not is_medium(result):
                return False
        facts = {"env": options.env, "gym_id": task(options.env).gym_id, "tier": "medium", "steps": self.num_timesteps}
        facts |= {"seed": options.seed, "algorithm": options.algorithm, "measured": result}
        save_actor(actor, options.out, facts)
        write_atomic(options.out / "README.md", readme(facts, options))
        return True


def state_folder(options: Options) -> Path:
    """Where an interrupted training goes on from."""
    return options.state or Path("runs/behaviour") / options.env


def command(options: Options) -> str:
    """The command line of these options, without where files lie."""
    return card.command("namm_transfer.training.rl.behaviour", options, ("out", "state", "replay"))


def readme(facts: dict[str, Any], options: Options) -> str:
    """The README.md of a behaviour policy."""
    made_by = f"{command(options)} --out assets/behaviour/{options.env}-medium"
    return CARD.format(**{**facts, **facts["measured"]}, command=made_by)


def write_replay(dataset_id: str, options: Options, steps: int, medium: bool) -> None:
    """The medium-replay tier as a Minari data set: what the training lived through in `steps` steps, all of it."""
    reached = "reached the medium tier" if medium else "was stopped, short of the medium tier,"
    description = (
        f"{task(options.env).gym_id}, medium-replay: every whole episode of the {options.algorithm} training (seed "
        f"{options.seed}) that {reached} after {steps:,} steps. Made by "
        f"`{command(options)} --replay {dataset_id} --out runs/behaviour/{options.env}-medium`."
    )
    datasets.write(dataset_id, options.env, experience.recall(state_folder(options)), options.algorithm, description)


def train(options: Options) -> dict[str, Any]:
    """Train until medium or until `steps`; returns the step count and whether a medium snapshot exists."""
    learner: Learner = LEARNERS[options.algorithm](
        options.env, options.width, options.learning_rate, options.batch_size, options.steps, options.seed
    )
    resumed = learner.load(state_folder(options))
    experience.forget_after(state_folder(options), learner.model.num_timesteps)
    steps, medium = learner.model.num_timesteps, options.out / "actor.safetensors"
    if not medium.is_file() and steps < options.steps:
        with tqdm(total=options.steps, initial=steps, desc=f"{options.algorithm} {options.env}", mininterval=10) as bar:
            callback = Medium(options, learner, bar)
            learner.model.learn(options.steps - steps, callback=callback, reset_num_timesteps=not resumed)
    if options.replay is not None:
        write_replay(options.replay, options, learner.model.num_timesteps, medium.is_file())
    return {"steps": learner.model.num_timesteps, "medium": medium.is_file()}


if __name__ == "__main__":
    try:
        print(train(tyro.cli(Options)))
    except NammTransferError as error:
        sys.exit(f"error: {error}")
