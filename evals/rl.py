"""Does a memory that forgets still act well? A Decision Transformer in MuJoCo, policy against policy.

    python evals/rl.py --env hopper
    python evals/rl.py --config evals/configs/report-rl.toml
    accelerate launch evals/rl.py --env walker2d --episodes 20 --policy full,namm,h2o:match=namm,random:match=namm

Every policy plays the same episodes (environment seeds), so that differences are paired. The score is the normalised
return: 0 for random actions, 100 for D4RL's expert. The returns are of Gymnasium's v5 environments, the references of
D4RL's v2: comparable with each other, not with D4RL tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from namm_transfer import EvictionPolicy, NammTransferError
from namm_transfer.adapters.decision_transformer import STATISTICS_FILE, DecisionTransformerAdapter, Statistics
from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, rollout
from namm_transfer.evals.tasks.rl.observer import Observer
from namm_transfer.evals.tasks.rl.scores import task
from namm_transfer.files import asset

TIERS = ("medium", "medium-replay")
"""Data sets of the shipped models."""


@dataclass
class Options(EvalOptions):
    """Play episodes with a Decision Transformer under each policy."""

    env: str = "hopper"
    """hopper, halfcheetah or walker2d (Hopper-v5, HalfCheetah-v5, Walker2d-v5), or several, separated by commas."""
    model: str | None = None
    """Folder or hub id of a Decision Transformer; the shipped ones by default."""
    dataset: str | None = None
    """Of shipped models, what they were trained on: medium (the default) or medium-replay, or both, separated by a
    comma. With --model, a Minari id: state statistics for a model whose folder has none, and the data's mean return for
    the report."""
    context: Literal["episode", "window"] = "episode"
    """What the model looks at: everything since the episode began (three tokens a step), or the last --window steps,
    computed anew for every action as in Hugging Face's example."""
    window: int = 20
    """Steps of --context window."""
    episodes: int = 20
    """Episodes a policy, over all seeds."""
    limit: int | None = None
    """Episodes a policy, instead of --episodes."""
    seeds: int = 1
    """Groups the episodes are split into, numbered from --seed; the report has a line for each."""
    target_return: float | None = None
    """Return to ask the model for; by default the one stored with the model, or else the higher of the two that the
    Decision Transformer's authors ask for."""
    batch_envs: int = 10
    """Episodes played side by side. Part of the configuration: another number may change the last bit of an action."""
    update_interval: int = 128
    """The policy acts each time an episode has grown by this many tokens (43 steps)."""
    out: Path = Path("runs/rl")
    """Folder of the records and of report.json, report.md and report.html."""


def episodes(options: Options) -> list[Sample]:
    """One sample an episode. Its payload is the environment seed, which decides the initial state."""
    total = options.episodes if options.limit is None else options.limit
    if min(total, options.seeds, options.batch_envs, options.window) < 1 or options.seeds > total:
        raise NammTransferError(
            f"--episodes {total} --seeds {options.seeds} --batch-envs {options.batch_envs} --window {options.window}: "
            "expected positive numbers, and an episode a seed at least"
        )
    groups = [options.seed + number % options.seeds for number in range(total)]
    return [
        Sample(
            id=f"{options.env}-{seed}-{number // options.seeds}",
            category=f"seed {seed}",
            payload=10_000 * seed + number // options.seeds,
        )
        for number, seed in enumerate(groups)
    ]


def worlds(options: Options) -> list[Options]:
    """The options of each environment and data set named in `options`, an evaluation each."""
    if options.model is not None:
        if "," in options.env:
            raise NammTransferError(f"--env {options.env}: a --model acts in one environment, expected one name")
        return [options]
    tiers = (options.dataset or TIERS[0]).split(",")
    for tier in tiers:
        if tier not in TIERS:
            raise NammTransferError(
                f"--dataset {tier!r}: the shipped models were trained on {' and '.join(TIERS)}; "
                "name another data set together with its --model"
            )
    return [replace(options, env=env, dataset=tier) for env in options.env.split(",") for tier in tiers]


@dataclass
class World:
    """One environment with one model."""

    options: Options
    """Of this environment and data set alone."""
    adapter: DecisionTransformerAdapter
    """The model."""
    source: str
    """Where it came from."""
    data: datasets.Dataset | None
    """What it was trained on, if that was named and lies here."""


def load(options: Options, device: Any) -> World:
    """The model and its data, which have to fit the environment."""
    reference, shipped, data = task(options.env), options.model is None, None
    if options.model is None:
        folder = asset(f"decision-transformer/{options.env}-{options.dataset}")
        source = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    else:
        source = options.model
    if options.dataset and not shipped:
        data = datasets.load(options.dataset, options.env)
    statistics = None
    if data is not None and not (Path(source) / STATISTICS_FILE).is_file():
        statistics = Statistics(*data.state_statistics)
    adapter = DecisionTransformerAdapter.load(source, device=device, statistics=statistics)
    config = adapter.model.config
    if (config.state_dim, config.act_dim) != (reference.observation_size, reference.action_size):
        raise NammTransferError(
            f"{source!r} takes states of {config.state_dim} numbers and gives actions of {config.act_dim}; "
            f"{reference.gym_id} has {reference.observation_size} and {reference.action_size}"
        )
    if adapter.statistics.env not in (None, options.env):
        raise NammTransferError(f"{source!r} was trained for {adapter.statistics.env!r}, not for {options.env!r}")
    targets = (options.target_return, adapter.statistics.target_return, reference.target_return)
    adapter.statistics.target_return = next(target for target in targets if target is not None)
    return World(options, adapter, source, data)


def evaluator(world: World) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """Plays up to `batch_envs` episodes under a policy, always in a batch of that many rows."""
    options, adapter = world.options, world.adapter
    environments = Environments(options.env, options.batch_envs)
    targets = [adapter.statistics.target_return] * options.batch_envs

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        windowed = options.context == "window"
        memory = policy if windowed else adapter.memory(policy)
        observer = Observer(adapter.play(memory, targets, options.window if windowed else None), environments)
        played = rollout(environments, [sample.payload for sample in samples], observer.act)
        return [observer.outcome(row, options.env, episode) for row, episode in enumerate(played)]

    return evaluate


def evolved_intervals(options: Options) -> dict[str, int]:
    """The interval each NAMM was evolved with: zero-shot, --update-interval may be another."""
    return {spec.text: spec.make().update_interval for spec in options.policies() if spec.name == "namm"}


def describe(world: World) -> dict[str, Any]:
    """What the report says of an evaluation."""
    options, adapter = world.options, world.adapter
    return {
        "model": world.source,
        "data": options.dataset,
        "data_summary": world.data.summary() if world.data is not None else None,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": "normalised return (0 random, 100 D4RL's expert)",
        "chance": 0.0,
        "world": f"Gymnasium {task(options.env).gym_id}, normalised by D4RL's references (measured on v2)",
        "target_return": adapter.statistics.target_return,
        "context": "whole episode" if options.context == "episode" else f"last {options.window} steps",
        "cache_size": "tokens held over tokens seen, averaged over the steps of an episode",
        "evolved_interval": evolved_intervals(options),
    }


def play(world: World, samples: list[Sample]) -> Report:
    """One environment and data set under every policy."""
    options = world.options
    return run(
        replace(options, limit=len(samples)),
        task=f"rl/{options.env}" + (f"-{options.dataset}" if options.model is None else ""),
        samples=samples,
        evaluate=evaluator(world),
        description=describe(world),
        batch=options.batch_envs,
    )


def warn(options: Options, report: Report) -> None:
    """Say where a policy had no chance to act.

    Raises:
        NammTransferError: episodes failed. The others are in the report.
    """
    played = [record for record in report.records if record.policy != "full" and record.error is None]
    idle = [record for record in played if record.updates == 0]
    if idle:
        print(
            f"warning: {len(idle)} of {len(played)} episodes ended before the first update "
            f"(--update-interval {options.update_interval} tokens): there the policy did nothing",
            file=sys.stderr,
        )
    failed = [record for record in report.records if record.error is not None]
    if failed:
        raise NammTransferError(
            f"{len(failed)} of {len(report.records)} episodes failed, the first ({failed[0].id} under "
            f"{failed[0].policy}) with {failed[0].error}; what was played is in {options.out}"
        )


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, play, report."""
    options = parse(Options, arguments)
    accelerator = start(options)
    found = [load(one, accelerator.device) for one in worlds(options)]
    games = [(world, episodes(world.options)) for world in found]
    seen = 3 * options.window - 1
    if options.context == "window" and seen < options.update_interval and accelerator.is_main_process:
        print(
            f"warning: a window of {options.window} steps is {seen} tokens, fewer than --update-interval "
            f"{options.update_interval}: no policy will ever act",
            file=sys.stderr,
        )
    for world, samples in games:
        report = play(world, samples)
    if accelerator.is_main_process:
        warn(options, report)
    return report


if __name__ == "__main__":
    script(main)
