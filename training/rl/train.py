"""Train a Decision Transformer on a Minari data set and measure it in the real environment.

    python -m namm_transfer.training.rl.train --env hopper --out runs/decision-transformer/hopper-medium

The model is the original's (Chen et al., 2021): width 128, 3 layers, 1 head, returns divided by 1,000, standardised
states, mean squared error on actions. Not its data feed: windows are 20 to 1,000 steps long instead of always 20, so
that a whole episode (3,000 tokens) is nothing new to the model. Kill it at any time: the same command goes on from
`OUT/checkpoint.pt`. In the end OUT is a folder in Hugging Face's format, with `statistics.json` and a card.
"""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer.adapters.decision_transformer import STATISTICS_FILE, DecisionTransformerAdapter, Statistics
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import write_atomic
from namm_transfer.training.rl.card import card, command, measure

WINDOWS = (20, 50, 130, 360, 1000)
WINDOW_SHARES = (0.3, 0.25, 0.2, 0.15, 0.1)
"""Lengths of the training windows in time steps, and how often an update draws each; its tokens are about as many."""
RETURN_SCALE = 1000.0


@dataclass
class Options:
    """Train a Decision Transformer."""

    env: str
    """hopper, halfcheetah or walker2d."""
    out: Path
    """Folder of the model."""
    tier: str = "medium"
    """medium or medium-replay: which of the environment's data sets."""
    dataset: str | None = None
    """Minari id; `namm-transfer/ENV/TIER-v0` by default."""
    updates: int = 2000
    """Gradient steps."""
    tokens: int = 3000
    """Tokens an update, at least (three a time step)."""
    learning_rate: float = 1e-3
    """Peak, after 5 % warm-up; a cosine takes it to zero."""
    width: int = 128
    """Size of the residual stream."""
    layers: int = 3
    """Transformer blocks."""
    heads: int = 1
    """Attention heads."""
    max_ep_len: int = 1024
    """Entries of the time-step embedding."""
    episodes: int = 20
    """Episodes of each measurement in the card."""
    seed: int = 0
    """Of weights, batches and dropout."""


@dataclass
class Windows:
    """Training windows of a data set: episodes drawn by their length, every start equally likely."""

    dataset: datasets.Dataset
    generator: np.random.Generator
    weights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        lengths = np.array([len(trajectory) for trajectory in self.dataset.trajectories])
        self.weights = lengths / lengths.sum()
        self.mean, self.std = self.dataset.state_statistics

    def batch(self, length: int, rows: int) -> dict[str, Tensor]:
        """`states`, `actions`, `returns_to_go`, `timesteps` and `real`, each (rows, longest, ...); shorter windows are
        filled up on the right, where causal attention keeps them from mattering, and `real` is False there."""
        reference = task(self.dataset.env)
        found = []
        for index in self.generator.choice(len(self.weights), rows, p=self.weights):
            trajectory = self.dataset.trajectories[index]
            first = int(self.generator.integers(max(1, len(trajectory) - length + 1)))
            found.append((trajectory, first, min(length, len(trajectory) - first)))
        longest = max(steps for _, _, steps in found)
        states = np.zeros((rows, longest, reference.observation_size), dtype=np.float32)
        actions = np.zeros((rows, longest, reference.action_size), dtype=np.float32)
        returns = np.zeros((rows, longest, 1), dtype=np.float32)
        timesteps = np.zeros((rows, longest), dtype=np.int64)
        real = np.zeros((rows, longest), dtype=bool)
        for row, (trajectory, first, steps) in enumerate(found):
            inside = slice(first, first + steps)
            states[row, :steps] = (trajectory.observations[inside] - self.mean) / self.std
            actions[row, :steps] = trajectory.actions[inside]
            returns[row, :steps, 0] = trajectory.returns_to_go()[inside] / RETURN_SCALE
            timesteps[row, :steps] = np.arange(first, first + steps)
            real[row, :steps] = True
        arrays = {"states": states, "actions": actions, "returns_to_go": returns, "timesteps": timesteps, "real": real}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def new_model(options: Options) -> DecisionTransformerModel:
    """Fresh weights. Attention dropout is 0: with it, attention over 3,000 tokens cannot be computed in blocks."""
    reference = task(options.env)
    torch.manual_seed(options.seed)
    config = DecisionTransformerConfig(
        state_dim=reference.observation_size,
        act_dim=reference.action_size,
        hidden_size=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        max_ep_len=options.max_ep_len,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return DecisionTransformerModel(config)


def rate(update: int, updates: int) -> float:
    """Share of the peak learning rate at an update: 5 % warm-up, then a cosine to zero."""
    warm_up = max(1, updates // 20)
    if update < warm_up:
        return (update + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (update - warm_up) / (updates - warm_up)))


def fit(options: Options, dataset: datasets.Dataset, device: torch.device) -> DecisionTransformerModel:
    """The training loop, from `OUT/checkpoint.pt` where there is one."""
    model = new_model(options).train()
    model.to(device)  # type: ignore[arg-type]
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-4, fused=True)
    checkpoint, first = options.out / "checkpoint.pt", 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["updates"]
    smooth = None
    with tqdm(total=options.updates, initial=first, desc=f"train {options.env}", mininterval=5) as bar:
        for update in range(first, options.updates):
            windows = Windows(dataset, np.random.default_rng((options.seed, update)))  # the same after a restart
            torch.manual_seed(options.seed * 1_000_003 + update)
            length = int(windows.generator.choice(WINDOWS, p=WINDOW_SHARES))
            batch = windows.batch(length, max(1, -(-options.tokens // (3 * length))))
            loss = action_loss(model, {name: value.to(device) for name, value in batch.items()})
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * rate(update, options.updates)
            optimiser.step()
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            bar.update()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if (update + 1) % 100 == 0:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                buffer = io.BytesIO()
                torch.save({**state, "updates": update + 1}, buffer)
                write_atomic(checkpoint, buffer.getvalue())
    return model.eval()


def action_loss(model: DecisionTransformerModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the predicted actions over all real time steps."""
    real = batch.pop("real")
    predicted = model(**batch, attention_mask=torch.ones_like(batch["timesteps"])).action_preds
    return ((predicted - batch["actions"]) ** 2)[real].mean()


def main(options: Options) -> dict[str, Any]:
    """Train, choose the target return, measure, and write the model folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = datasets.load(options.dataset or f"namm-transfer/{options.env}/{options.tier}-v0", options.env)
    model = fit(options, dataset, device)
    mean, std = dataset.state_statistics
    adapter = DecisionTransformerAdapter(model, Statistics(mean, std, RETURN_SCALE, env=options.env))
    data = dataset.summary()
    candidates = (data["return_mean"], data["return_best"], task(options.env).target_return)
    chosen = [measure(adapter, options.env, target, 10, 30_000).mean() for target in candidates]
    target = candidates[int(np.argmax(chosen))]
    adapter.statistics.target_return = target
    random_environments = Environments(options.env, options.episodes)
    seeds = range(40_000, 40_000 + options.episodes)
    random_returns = rollout(random_environments, seeds, random_policy(options.env, options.seed))
    rows = {
        "whole episode": measure(adapter, options.env, target, options.episodes, 40_000),
        "window of 20 steps": measure(adapter, options.env, target, options.episodes, 40_000, window=20),
        "(random actions)": np.array([trajectory.episode_return for trajectory in random_returns]),
    }
    model.save_pretrained(options.out)
    write_atomic(options.out / STATISTICS_FILE, adapter.statistics.to_json())
    made_by = command("namm_transfer.training.rl.train", options, ("out", "episodes"))
    made_by += f" --out assets/decision-transformer/{options.env}-{options.tier}"
    training = {**vars(options), "target": target, "windows": ", ".join(map(str, WINDOWS)), "command": made_by}
    write_atomic(options.out / "README.md", card(dataset, training, rows))
    (options.out / "checkpoint.pt").unlink(missing_ok=True)
    return {"target_return": target, **{name: float(returns.mean()) for name, returns in rows.items()}}


if __name__ == "__main__":
    try:
        print(main(tyro.cli(Options)))
    except NammTransferError as error:
        sys.exit(f"error: {error}")
