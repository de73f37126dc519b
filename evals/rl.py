"""Evaluate a Decision Transformer in MuJoCo under each eviction policy: does a smaller cache cost return?

    python evals/rl.py --env hopper
    python evals/rl.py --config evals/configs/report-rl.toml
    python evals/rl.py --env Ant-v5 --model runs/ant --target-return 500,1000 --render runs/ant.mp4
    accelerate launch evals/rl.py --env walker2d --episodes 20 --policy full,namm,h2o:match=namm,random:match=namm

Every policy plays the same episodes (environment seeds), so that differences are paired. The score is the normalised
return: 0 for random actions, 100 for D4RL's expert. The returns are of Gymnasium's v5 environments, the references of
D4RL's v2: comparable with each other, not with D4RL tables. Where there are no references the score is the raw return.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from namm_transfer import EvictionPolicy, NammTransferError
from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter
from namm_transfer.adapters.state_statistics import CARD_FILE, Statistics, file_of
from namm_transfer.evals.harness import EvalOptions, Outcome, Sample, parse, run, start
from namm_transfer.evals.harness.cli import script
from namm_transfer.evals.harness.lineup import lineup
from namm_transfer.evals.report.schema import Report
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, rollout
from namm_transfer.evals.tasks.rl.film import film, prepare
from namm_transfer.evals.tasks.rl.identity import check_name
from namm_transfer.evals.tasks.rl.observer import Observer
from namm_transfer.evals.tasks.rl.tasks import D4RL_NAME, task
from namm_transfer.files import asset, safe_name


@dataclass
class Options(EvalOptions):
    """Play episodes with a Decision Transformer under each policy."""

    env: str = ""
    """Environment, or several, separated by commas: hopper (the default), halfcheetah, walker2d, tasks whose cue has to
    be remembered (cued-halfcheetah, cued-swimmer, t-maze), any Gymnasium id such as Ant-v5, or a D4RL name such as
    hopper-medium-v2. With a Minari --dataset, that of the data by default."""
    model: str | None = None
    """Folder or hub id of a Decision Transformer; the shipped ones by default."""
    dataset: str | None = None
    """For the shipped models, what they were trained on: medium (the default) or medium-replay, or both, separated by a
    comma; sighted where there is a cue. With --model, a Minari id: its state statistics for a model that has none, and
    its mean return for the report."""
    context: Literal["episode", "window"] = "episode"
    """Context that the model attends to: everything since the episode began (three tokens a step), or the last --window
    steps, computed anew for every action as in Hugging Face's example."""
    window: int = 20
    """Steps of --context window."""
    episodes: int = 20
    """Episodes a policy, over all seeds."""
    limit: int | None = None
    """Episodes a policy, instead of --episodes."""
    seeds: int = 1
    """Groups the episodes are split into, numbered from --seed; the report has a line for each."""
    target_return: float | str | None = None
    """Return to ask the model for, or several, separated by commas; by default the one stored with the model, or else
    the higher of the two that the Decision Transformer's authors ask for, or else the best return in --dataset."""
    batch_envs: int = 10
    """Episodes played side by side. Part of the configuration: another number may change the last bit of an action."""
    update_interval: int = 128
    """The policy acts each time an episode has grown by this many tokens (43 steps)."""
    render: Path | None = None
    """Film (.mp4) of the first episode, one file for each policy; needs the extra [video] and an OpenGL backend."""
    out: Path = Path("runs/rl")
    """Folder of the records and of report.json, report.md and report.html."""


def episodes(options: Options) -> list[Sample]:
    """Make one sample for each episode; its payload is the environment seed, which decides the initial state."""
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


def targets(options: Options) -> list[float | None]:
    """Parse the target returns of --target-return; [None] if it is not given."""
    if options.target_return is None:
        return [None]
    try:
        found = [float(part) for part in str(options.target_return).split(",")]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise NammTransferError(
            f"--target-return {options.target_return}: expected finite numbers, separated by commas"
        )
    return list(dict.fromkeys(found))


def worlds(options: Options) -> list[Options]:
    """Split `options` into those of single evaluations: one environment, data set and target return each."""
    own = options.dataset if options.model is not None and "/" in (options.dataset or "") else None
    env = options.env or (own if own is not None else "hopper")
    if options.model is not None:
        if "," in env:
            raise NammTransferError(f"--env {env}: a --model acts in one environment, expected one name")
        found = [replace(options, env=task(env).name)]
    else:
        found = [one for name in env.split(",") for one in _shipped(options, name)]
    return [replace(one, target_return=target) for one in found for target in targets(options)]


def _shipped(options: Options, name: str) -> list[Options]:
    """Make the options of each shipped model for one --env; a D4RL name implies the data set."""
    d4rl, env = D4RL_NAME.fullmatch(name), task(name).name
    shipped = task(env).tiers
    if not shipped:
        raise NammTransferError(f"--env {name}: no model ships for it; expected --model with one of your own")
    tiers = (options.dataset or (d4rl[2] if d4rl else shipped[0])).split(",")
    for tier in tiers:
        if tier not in shipped:
            raise NammTransferError(
                f"--dataset {tier!r}: the shipped models were trained on {' and '.join(shipped)}; "
                "name another data set together with its --model"
            )
    return [replace(options, env=env, dataset=tier) for tier in tiers]


@dataclass
class World:
    """One environment with one model and target return."""

    options: Options
    """Options of this environment, data set and target return alone."""
    adapter: DecisionTransformerAdapter
    """The Decision Transformer."""
    source: str
    """Folder or hub id of the model."""
    data: datasets.Dataset | None
    """Data set the model was trained on, if it was named and is available."""
    target: float
    """Target return to condition on."""
    target_from: str
    """Source of the target return, for the report."""


def load(options: Options, device: Any) -> World:
    """Load the model and its data, and check that they fit the environment.

    Raises:
        NammTransferError: they do not fit, or the model has fewer time steps than an episode may last.
    """
    reference, data = task(options.env), None
    if options.model is None:
        folder = asset(f"decision-transformer/{options.env}-{options.dataset}")
        source = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    else:
        source = options.model
        if options.dataset:
            data = datasets.load(options.dataset, options.env)
    statistics = None
    if data is not None:
        statistics = Statistics(*data.state_statistics, found_in=f"data set {data.id}")
    adapter = DecisionTransformerAdapter.load(source, device=device, statistics=statistics)
    config = adapter.model.config
    if (config.state_dim, config.act_dim) != (reference.observation_size, reference.action_size):
        raise NammTransferError(
            f"{source!r} takes states of {config.state_dim} numbers and gives actions of {config.act_dim}; "
            f"{reference.gym_id} has {reference.observation_size} and {reference.action_size}"
        )
    check_environment(adapter, source, options.env)
    if config.max_ep_len < reference.max_steps:
        raise NammTransferError(
            f"{source!r} has {config.max_ep_len} time steps, an episode of {reference.gym_id} may last "
            f"{reference.max_steps}; expected a model trained with max_ep_len {reference.max_steps} or more"
        )
    offers = {
        "--target-return": options.target_return,
        "the model": adapter.statistics.target_return,
        "the Decision Transformer's authors": reference.target_return,
        f"the best episode of {options.dataset}": None if data is None else data.summary()["return_best"],
    }
    chosen = next(((place, value) for place, value in offers.items() if value is not None), None)
    if chosen is None:
        raise NammTransferError(f"no target return is known for {source!r}; expected --target-return or --dataset")
    return World(options, adapter, source, data, float(chosen[1]), chosen[0])


def check_environment(adapter: DecisionTransformerAdapter, source: str, env: str) -> None:
    """Compare `env` with what the model's `statistics.json`, or else its card and its name, say it was trained for.

    Raises:
        NammTransferError: they name another environment. If they name none, a warning is printed.
    """
    stored = adapter.statistics.env
    if stored is not None:
        if stored != env and task(stored).gym_id != task(env).gym_id:
            raise NammTransferError(f"{source!r} was trained for {stored!r}, not for {env!r}")
        return
    card = file_of(source, CARD_FILE)
    text = "" if card is None else card.read_text(errors="replace")
    name = source if not Path(source).is_dir() else Path(source).resolve().name
    certain = [
        check_name(env, name, f"the name of the model {source!r}"),
        check_name(env, text, f"the card of {source!r}"),
    ]
    if not any(certain):
        print(f"warning: nothing in {source!r} says which environment it was trained for", file=sys.stderr)


def evaluator(world: World) -> Callable[[list[Sample], EvictionPolicy], list[Outcome]]:
    """Make the function that plays up to `batch_envs` episodes under a policy, always in a batch of that many rows."""
    options, adapter = world.options, world.adapter
    environments = Environments(options.env, options.batch_envs)
    asked = [world.target] * options.batch_envs

    def evaluate(samples: list[Sample], policy: EvictionPolicy) -> list[Outcome]:
        windowed = options.context == "window"
        memory = policy if windowed else adapter.memory(policy)
        observer = Observer(adapter.play(memory, asked, options.window if windowed else None), environments)
        played = rollout(environments, [sample.payload for sample in samples], observer.act)
        return [Outcome(**vars(observer.observed(row, episode))) for row, episode in enumerate(played)]

    return evaluate


def evolved_intervals(options: Options) -> dict[str, int]:
    """List the update interval that each NAMM was trained with; --update-interval may be another in zero-shot use."""
    return {spec.text: spec.make().update_interval for spec in options.policies() if spec.name == "namm"}


def describe(world: World) -> dict[str, Any]:
    """Describe an evaluation for the report."""
    options, adapter, found = world.options, world.adapter, task(world.options.env)
    scale = f"normalised by {found.references}" if found.has_references else "raw returns"
    return {
        "model": world.source,
        "data": options.dataset,
        "data_summary": world.data.summary() if world.data is not None else None,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "score": f"normalised return (0 and 100: {found.references})" if found.has_references else "return",
        "chance": 0.0 if found.has_references else None,
        "world": f"Gymnasium {found.gym_id}, {scale}",
        "target_return": world.target,
        "target_return_from": world.target_from,
        "statistics_from": adapter.statistics.found_in,
        "context": "whole episode" if options.context == "episode" else f"last {options.window} steps",
        "cache_size": "tokens held over tokens seen, averaged over the steps of an episode",
        "evolved_interval": evolved_intervals(options),
    }


def play(world: World, samples: list[Sample], several: bool = False) -> Report:
    """Evaluate one environment, data set and target return (one of `several`) under every policy."""
    options = world.options
    task_name = f"rl/{options.env}" + (f"-{options.dataset}" if options.model is None else "")
    return run(
        replace(options, limit=len(samples), render=None),
        task=task_name + (f" return {world.target:g}" if several else ""),
        samples=samples,
        evaluate=evaluator(world),
        description=describe(world),
        batch=options.batch_envs,
    )


def render(world: World, sample: Sample) -> None:
    """Film one episode under each policy of the run; a policy with match=NAME has no cache size of its own here."""
    options, windowed = world.options, world.options.context == "window"
    assert options.render is not None
    entries = [entry for entry in lineup(options.policies(), options.update_interval) if entry.match is None]
    for entry in entries:
        memory = entry.policy if windowed else world.adapter.memory(entry.policy)
        player = world.adapter.play(memory, [world.target], options.window if windowed else None)
        stem = options.render.stem if len(entries) == 1 else f"{options.render.stem}-{safe_name(entry.spec.text)}"
        name = options.render.with_stem(stem)
        steps, total = film(name, options.env, int(sample.payload), player.act)
        print(f"{name}: {entry.spec.text}, return {total:.0f} in {steps} steps")


def warn(options: Options, report: Report) -> None:
    """Warn of episodes that ended before a policy's first update.

    Raises:
        NammTransferError: episodes failed. The others are in the report.
    """
    baselines = {policy.spec for run in report.runs for policy in run.policies if policy.baseline}
    played = [record for record in report.records if record.policy not in baselines and record.error is None]
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
    """Parse the command line, play the episodes and write the report."""
    options = parse(Options, arguments)
    accelerator = start(options)
    if options.render is not None:
        prepare(options.render, task(worlds(options)[0].env).name)
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
        report = play(world, samples, several=len(targets(options)) > 1)
    if accelerator.is_main_process:
        if options.render is not None:
            render(games[0][0], games[0][1][0])
        warn(options, report)
    return report


if __name__ == "__main__":
    script(main)
