"""Train a Decision Transformer on a Minari data set and measure it in the real environment.

    python -m namm_transfer.training.rl.train --env hopper --out runs/decision-transformer/hopper-medium
    python -m namm_transfer.training.rl.train --env D4RL/pointmaze/umaze-v2 --out runs/maze

The model is the original's (Chen et al., 2021): width 128, 3 layers, 1 head, returns divided by 1,000, standardised
states, mean squared error on actions. The data feed is not: windows are 20 to 1,000 steps long instead of always 20,
so that the model has seen contexts as long as a whole episode (3,000 tokens). A killed training goes on from the
checkpoint in OUT with the same command. In the end OUT is a folder in Hugging Face's format, with `statistics.json`
and a card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm_transfer.adapters.decision_transformer import DecisionTransformerAdapter
from namm_transfer.adapters.state_statistics import STATISTICS_FILE, Statistics
from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl import datasets
from namm_transfer.evals.tasks.rl.environments import Environments, random_policy, rollout
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import write_atomic
from namm_transfer.training.half import save_half
from namm_transfer.training.loop import Loop
from namm_transfer.training.rl.card import card, command, measure
from namm_transfer.training.rl.checks import check_positive, run_command, writing_to

WINDOWS = (20, 50, 130, 360, 1000)
WINDOW_SHARES = (0.3, 0.25, 0.2, 0.15, 0.1)
"""Lengths of the training windows in time steps, and the probability of each; updates have about as many tokens."""
RETURN_SCALE = 1000.0
CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Options:
    """Train a Decision Transformer."""

    env: str
    """hopper, halfcheetah, walker2d, a Gymnasium id such as Ant-v5, or the id of a Minari data set."""
    out: Path
    """Folder of the model, and of the checkpoint until it is finished."""
    tier: str = "medium"
    """Tier of the environment's own data sets: random, medium, medium-replay, medium-expert or expert."""
    dataset: str | None = None
    """Minari id; `namm-transfer/ENV/TIER-v0` by default, or the data set that --env names."""
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
    opening: int = 0
    """First time steps of an episode that every window begins with, so that what they show is learned to be recalled
    over gaps; the whole episode is among the windows anyway."""
    ending: int = 0
    """Last time steps of an episode that every second window is drawn from, where these decide; 0 draws all windows
    from all steps."""
    starts: tuple[int, ...] = ()
    """Time steps of which one begins every second window, where what has to be recalled is acted on; none draws all
    windows from all steps."""
    max_ep_len: int = 1024
    """Entries of the time-step embedding."""
    episodes: int = 20
    """Episodes of each measurement in the card."""
    seed: int = 0
    """Seed of weights, batches and dropout."""


@dataclass
class Windows:
    """Training windows of a data set: episodes drawn by their length, every start equally likely.

    With an `ending`, every second window starts in the last steps of its episode or, if it is longer, ends with it;
    with `starts`, every second window begins at one of these steps, or as late as its length allows.
    """

    dataset: datasets.Dataset
    generator: np.random.Generator
    opening: int = 0
    ending: int = 0
    starts: tuple[int, ...] = ()
    weights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        lengths = np.array([len(trajectory) for trajectory in self.dataset.trajectories])
        self.weights = lengths / lengths.sum()
        self.mean, self.std = self.dataset.state_statistics

    def batch(self, length: int, rows: int) -> dict[str, Tensor]:
        """Draw `states`, `actions`, `returns_to_go`, `timesteps` and `real`, each (rows, longest, ...).

        Shorter windows are padded on the right, where `real` is False and causal attention ignores them.
        """
        reference = task(self.dataset.env)
        found = []
        for row, index in enumerate(self.generator.choice(len(self.weights), rows, p=self.weights)):
            trajectory = self.dataset.trajectories[index]
            last = max(0, len(trajectory) - length)
            first = self._first(len(trajectory), last, decisive=row % 2 == 1)
            window = np.arange(first, min(first + length, len(trajectory)))
            found.append((trajectory, np.concatenate([np.arange(min(self.opening, first)), window])))
        longest = max(len(window) for _, window in found)
        states = np.zeros((rows, longest, reference.observation_size), dtype=np.float32)
        actions = np.zeros((rows, longest, reference.action_size), dtype=np.float32)
        returns = np.zeros((rows, longest, 1), dtype=np.float32)
        timesteps = np.zeros((rows, longest), dtype=np.int64)
        real = np.zeros((rows, longest), dtype=bool)
        for row, (trajectory, window) in enumerate(found):
            steps = len(window)
            states[row, :steps] = (trajectory.observations[window] - self.mean) / self.std
            actions[row, :steps] = trajectory.actions[window]
            returns[row, :steps, 0] = trajectory.returns_to_go()[window] / RETURN_SCALE
            timesteps[row, :steps] = window
            real[row, :steps] = True
        arrays = {"states": states, "actions": actions, "returns_to_go": returns, "timesteps": timesteps, "real": real}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _first(self, steps: int, last: int, decisive: bool) -> int:
        """Draw the first step of a window, at most `last`, from all of `steps` or from where it is decisive."""
        if decisive and self.starts:
            return min(last, int(self.generator.choice(self.starts)))
        earliest = max(0, min(last, steps - self.ending)) if decisive and self.ending else 0
        return int(self.generator.integers(earliest, last + 1))


def new_model(options: Options) -> DecisionTransformerModel:
    """Initialise a model without attention dropout, with which attention over 3,000 tokens cannot run in blocks."""
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
        n_positions=1,  # the encoder's own positions: all tokens have the first, their time step tells them apart
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return DecisionTransformerModel(config)


def rate(update: int, updates: int) -> float:
    """Compute the share of the peak learning rate at an update: 5 % warm-up, then a cosine to zero."""
    warm_up = max(1, updates // 20)
    if update < warm_up:
        return (update + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (update - warm_up) / max(1, updates - warm_up)))


def identity(options: Options, dataset: datasets.Dataset) -> dict[str, Any]:
    """Return the options and data that decide the weights, without paths and the number of measurements."""
    other = ("out", "tier", "dataset", "episodes")
    decisive = {name: value for name, value in vars(options).items() if name not in other}
    return {**decisive, "data_sha256": dataset.sha256}


def fit(options: Options, dataset: datasets.Dataset, device: torch.device) -> DecisionTransformerModel:
    """Train, continuing from a checkpoint in `options.out` of the same options and data if there is one."""
    model = new_model(options).train()
    model.to(device)

    def loss(update: int, _: int) -> tuple[Tensor, tuple[()]]:
        generator = np.random.default_rng((options.seed, update))  # the same after a restart
        windows = Windows(dataset, generator, options.opening, options.ending, options.starts)
        torch.manual_seed(options.seed * 1_000_003 + update)
        length = int(windows.generator.choice(WINDOWS, p=WINDOW_SHARES))
        batch = windows.batch(length, max(1, -(-options.tokens // (3 * (options.opening + length)))))
        return action_loss(model, {name: value.to(device) for name, value in batch.items()}), ()

    Loop(
        module=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-4, fused=True),
        loss=loss,
        steps=options.updates,
        schedule=lambda update: rate(update, options.updates),
        accelerator=Accelerator(cpu=device.type == "cpu"),
        path=options.out / CHECKPOINT,
        identity=identity(options, dataset),
        clip=0.25,
        label=f"train {options.env}",
    ).run()
    return model.eval()


def action_loss(model: DecisionTransformerModel, batch: dict[str, Tensor]) -> Tensor:
    """Compute the mean squared error of the predicted actions over all real time steps."""
    real = batch.pop("real")
    predicted = model(**batch, attention_mask=torch.ones_like(batch["timesteps"])).action_preds
    return ((predicted - batch["actions"]) ** 2)[real].mean()


def check(options: Options) -> Options:
    """Check the options, and return them with the environment's and the data set's full names.

    Raises:
        NammTransferError: a value no training can have, or a folder that holds a finished model.
    """
    check_positive(options, "updates", "tokens", "learning_rate", "width", "layers", "heads", "max_ep_len", "episodes")
    if options.width % options.heads:
        raise NammTransferError(f"--heads {options.heads}: expected a divisor of --width {options.width}")
    for name in ("opening", "ending"):
        if (steps := getattr(options, name)) < 0:
            raise NammTransferError(f"--{name} {steps}: expected 0 or more steps")
    if options.ending and options.starts:
        raise NammTransferError(f"--ending {options.ending} with --starts: expected one of them")
    found = task(options.env)
    if not all(0 <= step < found.max_steps for step in options.starts):
        told = " ".join(map(str, options.starts))
        raise NammTransferError(f"--starts {told}: expected steps from 0 to {found.max_steps - 1}")
    if options.max_ep_len < found.max_steps:
        raise NammTransferError(
            f"--max-ep-len {options.max_ep_len}: an episode of {found.gym_id} may last {found.max_steps} steps, "
            "expected as many or more"
        )
    if (options.out / "model.safetensors").exists():
        raise NammTransferError(f"{options.out} holds a finished model; expected another --out")
    default = found.name if "/" in found.name else f"{datasets.OWN_NAMESPACE}/{found.name}/{options.tier}-v0"
    return replace(options, env=found.name, dataset=options.dataset or default)


def main(options: Options) -> dict[str, Any]:
    """Train, choose the target return, measure, and write the model folder."""
    options = check(options)
    assert options.dataset is not None
    dataset = datasets.load(options.dataset, options.env)
    longest = max(map(len, dataset.trajectories))
    if longest > options.max_ep_len:
        raise NammTransferError(f"--max-ep-len {options.max_ep_len}: an episode of {dataset.id} has {longest} steps")
    with writing_to(options.out):
        return _made(options, dataset)


def _made(options: Options, dataset: datasets.Dataset) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = fit(options, dataset, device).half().float()  # rounded to what the file will hold, then measured
    statistics = Statistics(*dataset.state_statistics, RETURN_SCALE, env=options.env)
    adapter = DecisionTransformerAdapter(model, statistics)
    data, reference = dataset.summary(), task(options.env)
    candidates = [data["return_mean"], data["return_best"], reference.target_return]
    targets = [target for target in candidates if target is not None]
    chosen = [measure(adapter, options.env, target, 10, 30_000).mean() for target in targets]
    target = adapter.statistics.target_return = targets[int(np.argmax(chosen))]
    random_environments = Environments(options.env, options.episodes)
    seeds = range(40_000, 40_000 + options.episodes)
    random_returns = rollout(random_environments, seeds, random_policy(options.env, options.seed))
    rows = {
        "whole episode": measure(adapter, options.env, target, options.episodes, 40_000),
        "window of 20 steps": measure(adapter, options.env, target, options.episodes, 40_000, window=20),
        "(random actions)": np.array([trajectory.episode_return for trajectory in random_returns]),
    }
    made_by = command("namm_transfer.training.rl.train", options, ("episodes",))
    training = {**vars(options), "target": target, "windows": ", ".join(map(str, WINDOWS)), "command": made_by}
    write_atomic(options.out / STATISTICS_FILE, adapter.statistics.to_json())
    write_atomic(options.out / "README.md", card(dataset, {**training, "candidates": len(targets)}, rows))
    save_half(model, options.out)  # the weights last: a folder that holds them is finished
    for leftover in (CHECKPOINT, Path(CHECKPOINT).with_suffix(".jsonl")):
        (options.out / leftover).unlink(missing_ok=True)
    return {"target_return": target, **{name: float(returns.mean()) for name, returns in rows.items()}}


if __name__ == "__main__":
    run_command(main, Options)
