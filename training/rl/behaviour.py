"""Train a behaviour policy up to a tier: `medium` (40 to 60 normalised) or `expert` (90 or more).

    python -m namm_transfer.training.rl.behaviour --env halfcheetah --out runs/behaviour/halfcheetah-medium
    python -m namm_transfer.training.rl.behaviour --env Ant-v5 --reach 800 --algorithm ppo --out runs/behaviour/ant

Where an environment has no reference returns, --reach says which mean return makes a policy one of the tier.
Writes `OUT/actor.safetensors`, the first snapshot that reaches the tier with sampled actions, as the data will have,
and with `--replay ID` the `medium-replay` data: every episode of the training on the way there. A killed training goes
on from the state it keeps with the same command. Needs the extra `[train]`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, rollout
from namm_transfer.evals.tasks.rl.tasks import TASKS, Task, task
from namm_transfer.files import write_atomic
from namm_transfer.training.loop import check_identity
from namm_transfer.training.rl import card, experience
from namm_transfer.training.rl.actor import BehaviourActor, sampled, save_actor
from namm_transfer.training.rl.checks import check_positive, run_command, writing_to
from namm_transfer.training.rl.learners import LEARNERS, Learner

TIERS = {"medium": (40.0, 60.0), "expert": (90.0, math.inf)}
"""Smallest and largest mean normalised score of each tier."""
IDENTITY_FILE = "identity.json"
CARD = """# Behaviour policy, {env} {tier}

The actor of {algorithm} after {steps:,} steps in {gym_id} (seed {seed}): `actor.safetensors`, read by
`namm_transfer.training.rl.actor.load_actor`. It makes the `{env}` {tier} data.

Sampled actions, {episodes} episodes: mean return {return:.0f}{normalised}, mean
length {length:.0f}{moved}. Made with stable-baselines3 by

    {command}

The same command elsewhere gives another policy of the tier, not the same numbers.
"""


@dataclass
class Options:
    """Train a behaviour policy."""

    env: str
    """hopper, halfcheetah, walker2d, a Gymnasium id such as Ant-v5, or the id of a Minari data set."""
    out: Path
    """Folder of the policy."""
    tier: Literal["medium", "expert"] = "medium"
    """Tier at which training stops."""
    reach: float | None = None
    """Mean return from which on a policy is of the tier, for an environment without reference returns."""
    state: Path | None = None
    """Folder of the training state; `runs/behaviour/ENV-TIER` by default."""
    replay: str | None = None
    """Minari id, e.g. `namm-transfer/ENV/medium-replay-v0`: every whole episode of the training, up to the tier
    or to --steps."""
    algorithm: Literal["sac", "ppo"] = "sac"
    """Soft actor-critic or proximal policy optimisation: more steps, but a fraction of the time where it gets there."""
    steps: int = 250_000
    """Environment steps at most; training stops at the first snapshot that is confirmed."""
    width: int = 128
    """Size of the two hidden layers; half of SAC's usual 256, for 2.7 times the steps a second."""
    batch_size: int = 128
    """Transitions in an update."""
    learning_rate: float = 5e-4
    """Adam's, for actor and critic alike."""
    evaluate_every: int = 5_000
    """Steps between evaluations, which are also the checkpoints."""
    episodes: int = 5
    """Sampled episodes in an evaluation; a candidate is confirmed with four times as many."""
    seed: int = 0
    """Seed of networks, exploration and environments."""


def measure(actor: BehaviourActor, env: str, episodes: int, seed: int) -> dict[str, float]:
    """Average return, normalised score, length and distance of sampled episodes, environment seeds `seed`, ..."""
    environments = Environments(env, episodes)
    found = rollout(environments, range(seed, seed + episodes), sampled(actor, env, seed))
    distance = np.mean(environments.positions())
    environments.close()
    mean = float(np.mean([trajectory.episode_return for trajectory in found]))
    length = float(np.mean([len(trajectory) for trajectory in found]))
    facts = {"return": mean, "score": task(env).score(mean), "length": length, "distance": float(distance)}
    return {**facts, "episodes": episodes}


def reaches(options: Options, measured: dict[str, float]) -> bool:
    """Return True if a policy is of the tier and, in D4RL's tasks, moves: standing still earns 1 a step in Hopper."""
    if options.reach is not None:
        return measured["return"] >= options.reach
    low, high = TIERS[options.tier]
    moves = options.env not in TASKS or measured["return"] >= 1.5 * measured["length"]
    return low <= measured["score"] <= high and moves


class UntilTier(BaseCallback):
    """Evaluates every few thousand steps, checkpoints, and stops at the first snapshot confirmed to be of the tier."""

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
        """Evaluate once, and again if the tier seems reached; return True if both evaluations reach it."""
        options, actor = self.options, self.learner.actor()
        for episodes, seed in ((options.episodes, 10_000), (4 * options.episodes, 20_000)):
            result = measure(actor, options.env, episodes, seed + options.seed)
            tqdm.write(f"{options.env} {self.num_timesteps} " + " ".join(f"{k} {v:.1f}" for k, v in result.items()))
            if not reaches(options, result):
                return False
        facts = {
            "env": options.env,
            "gym_id": task(options.env).gym_id,
            "tier": options.tier,
            "steps": self.num_timesteps,
        }
        facts |= {"seed": options.seed, "algorithm": options.algorithm, "measured": result}
        save_actor(actor, options.out, facts)
        write_atomic(options.out / "README.md", readme(facts, options))
        return True


def state_folder(options: Options) -> Path:
    """Return the folder of the state from which an interrupted training continues."""
    return options.state or Path("runs/behaviour") / f"{options.env}-{options.tier}-state"


def identity(options: Options) -> dict[str, Any]:
    """Return the options that decide the policy; `steps` and `reach`, where to stop, may change when it continues."""
    places = ("out", "state", "replay", "steps", "reach")
    return {name: value for name, value in vars(options).items() if name not in places}


def check_state(options: Options) -> None:
    """Record the options of a training in its state folder, or compare them with the recorded ones.

    Raises:
        NammTransferError: the state is of other options, or OUT holds a policy that this training did not make.
    """
    path = state_folder(options) / IDENTITY_FILE
    if path.exists() or (path.parent / "parameters.pt").exists():
        try:
            stored = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as problem:
            raise NammTransferError(
                f"{path} cannot be read, expected the options of this state: {problem}"
            ) from problem
        check_identity(path, stored, identity(options))
    elif (options.out / "actor.safetensors").exists():
        raise NammTransferError(f"{options.out} holds a finished policy; expected another --out")
    write_atomic(path, json.dumps(identity(options), indent=2) + "\n")


def command(options: Options) -> str:
    """Return the command line of these options, without paths."""
    return card.command("namm_transfer.training.rl.behaviour", options, ("out", "state", "replay"))


def readme(facts: dict[str, Any], options: Options) -> str:
    """Return the README.md of a behaviour policy."""
    score = f" (v5; normalised by D4RL's references {facts['measured']['score']:.1f})"
    distance = facts["measured"]["distance"]
    told = {"normalised": score if options.env in TASKS else ""}
    told["moved"] = f", mean distance {distance:.0f} m" if math.isfinite(distance) else ""
    return CARD.format(**facts, **facts["measured"], **told, command=f"{command(options)} --out {options.out}")


def write_replay(dataset_id: str, options: Options, steps: int, done: bool) -> None:
    """Write every whole episode of the `steps` steps of training as a Minari data set."""
    reached = f"reached the {options.tier} tier" if done else f"was stopped, short of the {options.tier} tier,"
    description = (
        f"{task(options.env).gym_id}, {options.tier}-replay: every whole episode of the {options.algorithm} training "
        f"(seed {options.seed}) that {reached} after {steps:,} steps. Made by "
        f"`{command(options)} --replay {dataset_id} --out {options.out}`."
    )
    datasets.write(dataset_id, options.env, experience.recall(state_folder(options)), options.algorithm, description)


def train(options: Options) -> dict[str, Any]:
    """Train until the tier or `steps`; return the step count and True if a snapshot of the tier exists."""
    options = replace(options, env=check(options).name)
    with writing_to(options.out):
        return _train(options)


def check(options: Options) -> Task:
    """Return the task; raise `NammTransferError` for invalid options before anything is trained."""
    check_positive(options, "steps", "width", "batch_size", "learning_rate", "evaluate_every", "episodes")
    found = task(options.env)
    if options.reach is not None and not math.isfinite(options.reach):
        raise NammTransferError(f"--reach {options.reach}: expected a finite number")
    if found.has_references == (options.reach is not None):
        raise NammTransferError(
            f"--reach {options.reach}: {found.name} has reference returns, which define its tiers"
            if found.has_references
            else f"{found.name} has no reference returns that define a tier; expected --reach with a mean return"
        )
    if options.replay is not None:
        datasets.check_free(options.replay)
    return found


def _train(options: Options) -> dict[str, Any]:
    check_state(options)
    learner: Learner = LEARNERS[options.algorithm](
        options.env, options.width, options.learning_rate, options.batch_size, options.steps, options.seed
    )
    try:
        resumed = learner.load(state_folder(options))
    except Exception as problem:  # torch, NumPy's archives and stable-baselines3 each have their own
        raise NammTransferError(f"the state in {state_folder(options)} cannot be read: {problem}") from problem
    experience.forget_after(state_folder(options), learner.model.num_timesteps)
    steps, actor = learner.model.num_timesteps, options.out / "actor.safetensors"
    if not actor.is_file() and steps < options.steps:
        with tqdm(total=options.steps, initial=steps, desc=f"{options.algorithm} {options.env}", mininterval=10) as bar:
            callback = UntilTier(options, learner, bar)
            learner.model.learn(options.steps - steps, callback=callback, reset_num_timesteps=not resumed)
    if options.replay is not None:
        write_replay(options.replay, options, learner.model.num_timesteps, actor.is_file())
    return {"steps": learner.model.num_timesteps, options.tier: actor.is_file()}


if __name__ == "__main__":
    run_command(train, Options)
