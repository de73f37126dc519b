"""Collect a data set with a behaviour policy, in Minari's format.

    python -m namm_transfer.training.rl.collect --env hopper
    python -m namm_transfer.training.rl.collect --env Ant-v5 --tier random
    python -m namm_transfer.training.rl.collect --env t-maze --tier sighted

The first makes `namm-transfer/hopper/medium-v0` with the policy shipped in `assets/behaviour/hopper-medium`, sampled as
it was trained. The same seed gives the same data on the same machine and library versions, and the same distribution
anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.cued import without_cue
from namm_transfer.evals.tasks.rl.environments import Act, Environments, Trajectory, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import asset
from namm_transfer.training.rl import card
from namm_transfer.training.rl.actor import load_actor, sampled
from namm_transfer.training.rl.checks import check_positive, run_command
from namm_transfer.training.rl.sighted import BEHAVIOURS, sighted_policy

ROWS = 20
"""Episodes collected side by side; part of what a seed means."""


@dataclass
class Options:
    """Collect a data set."""

    env: str
    """hopper, halfcheetah, walker2d, a Gymnasium id such as Ant-v5, or the id of a Minari data set."""
    tier: Literal["random", "medium", "expert", "medium-expert", "sighted"] = "medium"
    """Policy that plays: uniformly random actions, a trained one, two trained ones for half of the steps each, or, in a
    task with a cue, one that has the cue in sight; the data do not show it then."""
    actor: Path | None = None
    """Folder with the behaviour policy (medium or expert); assets/behaviour/ENV-TIER by default."""
    expert: Path | None = None
    """Folder with the expert of --tier medium-expert; assets/behaviour/ENV-expert by default."""
    id: str | None = None
    """Minari id; `namm-transfer/ENV/TIER-v0` by default."""
    steps: int = 200_000
    """Environment steps at least; the last episodes are whole."""
    seed: int = 0
    """Seed of the first episode's environment and of the policy's noise."""


def collect(act: Act, env: str, steps: int, seed: int, **options: Any) -> Iterator[Trajectory]:
    """Play whole episodes in `env` made with `options` until there are `steps` steps; episode i has seed `seed + i`."""
    environments, done = Environments(env, ROWS, **options), 0
    with tqdm(total=steps, desc=f"collect {env}", unit="step") as bar:
        while done < steps:
            for trajectory in rollout(environments, range(seed, seed + ROWS), act):
                done += len(trajectory)
                bar.update(len(trajectory))
                yield trajectory
            seed += ROWS
    environments.close()


def players(options: Options) -> list[tuple[Act, str, str]]:
    """Load the policies of a tier: for each its action function, its algorithm and a description."""
    if options.tier == "random":
        return [(random_policy(options.env, options.seed), "random actions", "uniformly random actions")]
    if options.tier == "sighted":
        if options.env not in BEHAVIOURS:
            raise NammTransferError(f"--tier sighted: {options.env} has no cue; expected another tier")
        told = "noisy actions of the behaviour in `training/rl/sighted.py`, which has the cue in sight"
        return [(sighted_policy(options.env, options.seed), "scripted behaviour", told)]
    found = []
    for tier in options.tier.split("-"):
        given = options.expert if (options.tier, tier) == ("medium-expert", "expert") else options.actor
        actor, facts = load_actor(given or asset(f"behaviour/{options.env}-{tier}"), options.env)
        told = f"sampled actions of a {facts['algorithm']} policy stopped after {facts['steps']:,} steps"
        if facts.get("tier", tier) != tier:
            raise NammTransferError(f"--actor {given}: its policy is of the tier {facts['tier']!r}, expected {tier!r}")
        found.append((sampled(actor, options.env, options.seed), str(facts["algorithm"]), told))
    return found


def main(options: Options) -> datasets.Dataset:
    """Collect and write a data set; return it as read back."""
    check_positive(options, "steps")
    reference = task(options.env)
    options = replace(options, env=reference.name)
    dataset_id = options.id or f"{datasets.OWN_NAMESPACE}/{options.env}/{options.tier}-v0"
    datasets.check_free(dataset_id)
    found = players(options)
    description = (
        f"{reference.gym_id}, {options.tier}: {'; then '.join(told for _, _, told in found)}; "
        f"collected with seed {options.seed}. Made by "
        f"`{card.command('namm_transfer.training.rl.collect', options, ('actor', 'expert'))}`."
    )
    share = -(-options.steps // len(found))
    in_sight = {"in_sight": True} if options.tier == "sighted" else {}
    played = (
        episode
        for number, (act, _, _) in enumerate(found)
        for episode in collect(act, options.env, share, options.seed + 1_000_000 * number, **in_sight)
    )
    if in_sight:
        played = (replace(e, observations=without_cue(options.env, e.observations)) for e in played)
    algorithm = " and ".join(dict.fromkeys(name for _, name, _ in found))
    datasets.write(dataset_id, options.env, played, algorithm, description)
    return datasets.load(dataset_id, options.env)


def report(options: Options) -> str:
    """Collect a data set; return its id and summary for printing."""
    made = main(options)
    return f"{made.id} {made.summary()}"


if __name__ == "__main__":
    run_command(report, Options)
