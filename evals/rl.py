"""Does a memory that forgets still act well? A Decision Transformer in MuJoCo, policy against policy.

    python evals/rl.py --env hopper
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

import numpy as np

from namm_transfer import EvictionPolicy, NammTransferError
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter, Statistics, Stepper, kept_tokens
from namm_transfer.evaluation import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.files import asset
from namm_transfer.report.schema import Report
from namm_transfer.rl import datasets
from namm_transfer.rl.environments import Environments, rollout
from namm_transfer.rl.scores import normalised_score, task


@dataclass
class Options(EvalOptions):
    """Play episodes with a Decision Transformer under each policy."""

    env: Literal["hopper", "halfcheetah", "walker2d"] = "hopper"
    """Hopper-v5, HalfCheetah-v5 or Walker2d-v5."""
    model: str | None = None
    """Folder or hub id of a Decision Transformer; the shipped one of the environment by default."""
    dataset: str | None = None
    """Minari id of its data: state statistics for a model whose folder has none (the published ones), and the data's
    mean return for the report."""
    context: Literal["episode", "window"] = "episode"
    """What the model looks at: everything since the episode began (three tokens a step), or the last --window steps,
    computed anew for every action as in Hugging Face's example."""
    window: int = 20
    """Steps of --context window."""
    episodes: int = 20
    """Episodes a policy, over all seeds. --limit says the same."""
    seeds: int = 1
    """Groups the episodes are split into, numbered from --seed; the report has a line for each."""
    target_return: float | None = None
    """Return to ask the model for; by default the one stored with the model."""
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


def shipped(env: str) -> str:
    """The folder of the shipped model, as seen from here where it lies below."""
    folder = asset(f"decision-transformer/{env}-medium")
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def load(options: Options, device: Any) -> tuple[DecisionTransformerAdapter, str, dict[str, float] | None]:
    """The model, where it came from, and the summary of its data set if one was named."""
    source = options.model or shipped(options.env)
    dataset = datasets.load(options.dataset, options.env) if options.dataset else None
    statistics = None
    if dataset is not None and not (Path(source) / "statistics.json").is_file():
        statistics = Statistics(*dataset.state_statistics, target_return=task(options.env).target_return)
    adapter = DecisionTransformerAdapter.load(source, device=device, statistics=statistics)
    config, reference = adapter.model.config, task(options.env)
    if (config.state_dim, config.act_dim) != (reference.observation_size, reference.action_size):
        raise NammTransferError(
            f"{source!r} takes states of {config.state_dim} numbers and gives actions of {config.act_dim}; "
            f"{reference.gym_id} has {reference.observation_size} and {reference.action_size}"
        )
    if adapter.statistics.env not in (None, options.env):
        raise NammTransferError(f"{source!r} was trained for {adapter.statistics.env!r}, not for {options.env!r}")
    if options.target_return is not None:
        adapter.statistics.target_return = options.target_return
    if adapter.statistics.target_return is None:
        raise NammTransferError(f"{source!r} names no target return; say --target-return")
    return adapter, source, dataset.summary() if dataset is not None else None


class Observer:
    """Plays a batch through a stepper and notes, for each episode, what its memory held while it ran."""

    def __init__(self, stepper: Stepper, environments: Environments) -> None:
        self.stepper, self.environments = stepper, environments
        rows = len(environments.envs)
        self.shares, self.lengths = np.zeros(rows), np.zeros(rows, dtype=int)
        self.last: list[Any] = [None] * rows
        self.kept = [np.zeros(0)] * rows

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """The model's actions; finished rows are computed too, so that the batch keeps its shape."""
        before = self.environments.alive.copy()
        self._note_finished()
        actions = self.stepper.act(observations, rewards)
        self.shares += before * np.array(self.stepper.cache.kept_share())
        self.lengths += before
        return actions

    def _note_finished(self) -> None:
        """Read the memory of the rows whose episode has ended, before the next step changes it."""
        running = self.environments.alive
        over = [row for row, seen in enumerate(self.lengths) if seen and not running[row] and self.last[row] is None]
        if not over:
            return
        report = self.stepper.cache.report()
        for row in over:
            self.last[row] = report.row(row)
            steps = min(int(self.lengths[row]), self.stepper.window or self.stepper.steps)
            self.kept[row] = kept_tokens(self.stepper.cache, steps, row)

    def outcome(self, row: int, env: str, episode_return: float, terminated: bool, seed: int) -> Outcome:
        """The outcome of a finished episode: cache size averaged over its steps."""
        self._note_finished()
        share = float(self.shares[row] / self.lengths[row])
        return Outcome(
            score=normalised_score(env, episode_return),
            memory=replace(self.last[row], kept_share=share),
            details={
                "return": episode_return,
                "length": int(self.lengths[row]),
                "fell": terminated,
                "env_seed": seed,
                "kept_share_at_end": self.last[row].kept_share,
            },
            arrays={"kept": self.kept[row]},
        )


def evaluator(
    options: Options, adapter: DecisionTransformerAdapter
) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """Plays up to `batch_envs` episodes under a policy, always in a batch of that many rows."""
    environments = Environments(options.env, options.batch_envs)
    targets = [adapter.statistics.target_return] * options.batch_envs

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        windowed = options.context == "window"
        memory = policy if windowed else adapter.memory(policy)
        observer = Observer(adapter.play(memory, targets, options.window if windowed else None), environments)
        played = rollout(environments, [sample.payload for sample in samples], observer.act)
        return [
            observer.outcome(row, options.env, episode.episode_return, episode.terminated, episode.seed)
            for row, episode in enumerate(played)
        ]

    return evaluate


def warn(options: Options, report: Report) -> None:
    """Say where a policy had no chance to act."""
    played = [record for record in report.records if record.policy != "full" and record.error is None]
    idle = [record for record in played if record.updates == 0]
    if idle:
        print(
            f"warning: {len(idle)} of {len(played)} episodes ended before the first update "
            f"(--update-interval {options.update_interval} tokens): there the policy did nothing",
            file=sys.stderr,
        )


def main(arguments: Sequence[str] | None = None) -> Report:
    """Parse, play, report."""
    options = parse(Options, arguments)
    samples = episodes(options)
    accelerator = start(options)
    adapter, source, data = load(options, accelerator.device)
    seen = 3 * options.window - 1
    if options.context == "window" and seen < options.update_interval and accelerator.is_main_process:
        print(
            f"warning: a window of {options.window} steps is {seen} tokens, fewer than --update-interval "
            f"{options.update_interval}: no policy will ever act",
            file=sys.stderr,
        )
    description = {
        "model": source,
        "data": options.dataset,
        "data_summary": data,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": "normalised return (0 random, 100 D4RL's expert)",
        "chance": 0.0,
        "world": f"Gymnasium {task(options.env).gym_id}, normalised by D4RL's references (measured on v2)",
        "target_return": adapter.statistics.target_return,
        "context": "whole episode" if options.context == "episode" else f"last {options.window} steps",
        "cache_size": "tokens held over tokens seen, averaged over the steps of an episode",
    }
    options = replace(options, limit=len(samples))
    report = run(
        options,
        task=f"rl/{options.env}",
        samples=samples,
        evaluate=evaluator(options, adapter),
        description=description,
        batch=options.batch_envs,
    )
    if accelerator.is_main_process:
        warn(options, report)
    return report


if __name__ == "__main__":
    try:
        main()
    except NammTransferError as error:
        sys.exit(f"error: {error}")
