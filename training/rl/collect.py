"""Collect a data set with a behaviour policy, in Minari's format.

    python -m namm_transfer.training.rl.collect --env hopper

makes `namm-transfer/hopper/medium-v0` with the policy shipped in `assets/behaviour/hopper-medium`, sampled as it was
trained. The same seed gives the same data on the same machine and library versions, and the same distribution anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, Trajectory, rollout
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import asset
from namm_transfer.training.rl import card
from namm_transfer.training.rl.actor import BehaviourActor, load_actor

ROWS = 20
"""Episodes collected side by side; part of what a seed means."""


@dataclass
class Options:
    """Collect a data set."""

    env: str
    """hopper, halfcheetah or walker2d."""
    actor: Path | None = None
    """Folder with the behaviour policy; the shipped one by default."""
    id: str | None = None
    """Minari id; `namm-transfer/ENV/medium-v0` by default."""
    steps: int = 200_000
    """Environment steps at least; the last episodes are whole."""
    seed: int = 0
    """Of the first episode's environment and of the policy's noise."""


def collect(actor: BehaviourActor, env: str, steps: int, seed: int) -> Iterator[Trajectory]:
    """Whole episodes by sampled actions until there are `steps` steps; episode i has environment seed `seed + i`."""
    environments = Environments(env, ROWS)
    generator = torch.Generator().manual_seed(seed)

    def act(observations: np.ndarray, _: np.ndarray) -> np.ndarray:
        return actor.act(torch.from_numpy(observations).float(), generator).numpy()

    done = 0
    with tqdm(total=steps, desc=f"collect {env}", unit="step") as bar:
        while done < steps:
            for trajectory in rollout(environments, range(seed, seed + ROWS), act):
                done += len(trajectory)
                bar.update(len(trajectory))
                yield trajectory
            seed += ROWS
    environments.close()


def main(options: Options) -> datasets.Dataset:
    """Collect and write; returns the data set as read back."""
    gym_id = task(options.env).gym_id
    folder = options.actor or asset(f"behaviour/{options.env}-medium")
    actor, facts = load_actor(folder, options.env)
    dataset_id = options.id or f"namm-transfer/{options.env}/medium-v0"
    description = (
        f"{gym_id}, medium: sampled actions of a {facts['algorithm']} policy stopped after {facts['steps']:,} steps; "
        f"collected with seed {options.seed}. Made by "
        f"`{card.command('namm_transfer.training.rl.collect', options, ('actor',))}`."
    )
    datasets.write(
        dataset_id,
        options.env,
        collect(actor, options.env, options.steps, options.seed),
        facts["algorithm"],
        description,
    )
    return datasets.load(dataset_id, options.env)


if __name__ == "__main__":
    try:
        made = main(tyro.cli(Options))
        print(made.id, made.summary())
    except NammTransferError as error:
        sys.exit(f"error: {error}")
