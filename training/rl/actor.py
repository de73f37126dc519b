"""The behaviour policy: a squashed Gaussian actor, read from safetensors, sampled with torch alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.environments import Act
from namm_transfer.evals.tasks.rl.tasks import task
from namm_transfer.files import write_atomic

LOG_STD_RANGE = (-20.0, 2.0)


class BehaviourActor(nn.Module):
    """Actor whose actions are a = squash(mean(s) + std(s) e) with e standard normal.

    With tanh the actor of soft actor-critic (Haarnoja et al., 2018), with clip and a constant std that of proximal
    policy optimisation (Schulman et al., 2017). Two hidden layers of size `width` with ReLU. Actions lie in [-1, 1].
    """

    def __init__(
        self, observation_size: int, action_size: int, width: int, squash: Literal["tanh", "clip"] = "tanh"
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(observation_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.mean = nn.Linear(width, action_size)
        self.log_std = nn.Linear(width, action_size)
        self.squash = squash

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample actions (..., action_size) float32 for observations (..., size); the mean if there is no generator."""
        features = self.hidden(observation)
        raw = self.mean(features)
        if generator is not None:
            noise = torch.randn(raw.shape, generator=generator)
            raw = raw + self.log_std(features).clamp(*LOG_STD_RANGE).exp() * noise
        return torch.tanh(raw) if self.squash == "tanh" else raw.clamp(-1, 1)


def sampled(actor: BehaviourActor, env: str, seed: int) -> Act:
    """Make the function that samples actions from a behaviour policy, scaled to the bounds of task `env`."""
    generator = torch.Generator().manual_seed(seed)
    low, high = task(env).bounds

    def act(observations: np.ndarray, _: np.ndarray) -> np.ndarray:
        actions = actor.act(torch.from_numpy(observations).float(), generator).numpy()
        return (low + high) / 2 + (high - low) / 2 * actions

    return act


def save_actor(actor: BehaviourActor, folder: Path, facts: dict[str, Any]) -> None:
    """Write `folder/actor.safetensors`; `facts` (env, steps, measured return, ...) go into the file's metadata."""
    metadata = {"facts": json.dumps({**facts, "squash": actor.squash}, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in actor.state_dict().items()}
    write_atomic(folder / "actor.safetensors", save(tensors, metadata=metadata))


def load_actor(folder: Path, env: str) -> tuple[BehaviourActor, dict[str, Any]]:
    """Load the actor in `folder` and its facts; raises `NammTransferError` if it was not made for `env`."""
    path = Path(folder) / "actor.safetensors"
    if not path.is_file():
        raise NammTransferError(
            f"no behaviour policy at {path}; train one: python -m namm_transfer.training.rl.behaviour --env {env} "
            f"--out {folder}"
        )
    reference = task(env)
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        made_for = facts.get("env")
        if made_for != reference.name:
            raise NammTransferError(f"{path} was trained for {made_for!r}, expected {reference.name!r}")
        width = tensors["hidden.0.weight"].shape[0]
        actor = BehaviourActor(reference.observation_size, reference.action_size, width, facts["squash"])
        actor.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, AttributeError, RecursionError, SafetensorError, OSError) as problem:
        raise NammTransferError(f"{path} does not hold the actor of {env}: {problem}") from problem
    if not all(math.isfinite(float(value.sum())) for value in tensors.values()):
        raise NammTransferError(f"{path} holds values that are not finite")
    return actor.eval(), facts
