"""Measure a Decision Transformer where nothing is evicted, and write its model card."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from textwrap import TextWrapper
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from transformers import DynamicCache

from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter
from namm_transfer.evals.tasks.rl.datasets import Dataset
from namm_transfer.evals.tasks.rl.environments import Environments, rollout
from namm_transfer.evals.tasks.rl.tasks import task

CARD = """---
license: apache-2.0
library_name: transformers
tags: [reinforcement-learning, decision-transformer, {gym_id}]
---

# Decision Transformer, {env}, trained on {dataset}

`DecisionTransformerModel` in Hugging Face's format; `statistics.json` holds the state mean and standard deviation, the
return scale and the target return. {width} wide, {layers} layers, {heads} heads.
The file holds float16, of which loading makes float32.

- Data: `{dataset}`, {data_episodes} episodes, {data_steps:,} steps, mean return {data_return:.0f} (standard deviation
  {data_std:.0f}, best {data_best:.0f}{data_score}).
{data_description}
- Training: {updates} updates of at least {tokens:,} tokens in windows of {windows} steps, peak learning rate
  {learning_rate}, seed {seed}; made by
  `{command}`.
- Target return {target:.0f}, the best of {candidates} candidates on ten other episodes.

Measured in {gym_id}, {episodes} episodes from seeds that neither the data nor the choice of the target used,
nothing evicted:

| context | return | 95 % interval | score |
| --- | --- | --- | --- |
{table}

{verdict}
The training is short: a small base model to measure memories on, not a state-of-the-art agent.
"""

PARAGRAPH = TextWrapper(
    118, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
)
"""Wraps text under an item of a list without breaking commands."""
PLAIN = TextWrapper(118, break_long_words=False, break_on_hyphens=False)


def measure(
    adapter: DecisionTransformerAdapter,
    env: str,
    target: float,
    episodes: int,
    first_seed: int,
    window: int | None = None,
) -> np.ndarray:
    """Measure returns (episodes,) in the real environment with nothing evicted, seeds `first_seed`, ..."""
    environments = Environments(env, episodes)
    memory = None if window else DynamicCache(config=adapter.model.config)
    player = adapter.play(memory, [target] * episodes, window)
    found = rollout(environments, range(first_seed, first_seed + episodes), player.act)
    environments.close()
    return np.array([trajectory.episode_return for trajectory in found])


def interval(returns: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of the mean."""
    if np.ptp(returns) == 0:
        return float(returns[0]), float(returns[0])
    found = bootstrap((returns,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def command(module: str, options: Any, leave_out: Collection[str] = ()) -> str:
    """Return `python -m MODULE --NAME VALUE ...` with every option (a dataclass) that is not at its default.

    Options named in `leave_out` do not decide the result, or are given elsewhere.
    """
    given = [
        f"--{field.name.replace('_', '-')} {_shown(getattr(options, field.name))}"
        for field in fields(options)
        if field.name not in leave_out and getattr(options, field.name) != field.default
    ]
    return " ".join([f"python -m {module}", *given])


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def card(dataset: Dataset, training: dict[str, Any], rows: dict[str, np.ndarray]) -> str:
    """Return the model's README.md: data, training, measured returns, and the commands.

    `training` holds the options of the training, its command, the target return and the window lengths; `rows` the
    returns of each way to act, `whole episode` among them.
    """
    data, reference = dataset.summary(), task(dataset.env)
    lines = [
        f"| {name} | {returns.mean():.0f} | {interval(returns)[0]:.0f} to {interval(returns)[1]:.0f} "
        f"| {reference.score(float(returns.mean())):.1f} |"
        for name, returns in rows.items()
    ]
    best = reference.score(float(rows["whole episode"].mean()))
    if reference.has_references:
        verdict = (
            f"The model's mean score is {best:.1f}, its data's {data['score']:.1f}. A score is normalised by "
            f"{reference.references}."
        )
    else:
        verdict = f"Without reference returns the score is the return. The mean of its data is {data['score']:.1f}."
    about_data = {
        "dataset": dataset.id,
        "data_episodes": data["episodes"],
        "data_steps": data["steps"],
        "data_return": data["return_mean"],
        "data_std": data["return_std"],
        "data_best": data["return_best"],
        "data_score": f", mean normalised {data['score']:.1f}" if reference.has_references else "",
        "data_description": PARAGRAPH.fill(dataset.description),
    }
    facts = {**training, **about_data, "gym_id": reference.gym_id}
    return CARD.format(**facts, table="\n".join(lines), verdict="\n".join(PLAIN.wrap(verdict)))
