"""Behaviour for the tasks with a cue: scripted policies that have the cue in sight, with some noise."""

from __future__ import annotations

import numpy as np
import torch

from namm_transfer.evals.tasks.rl.cued import RUN_STEPS
from namm_transfer.evals.tasks.rl.environments import Act
from namm_transfer.files import asset
from namm_transfer.training.rl.actor import load_actor

NOISE = 0.05
"""Standard deviation of the normal noise added to every action."""
GAIT = np.array([0.4, 0.6, 1.0])
"""Share of the trained cheetah's actions that gives it the three speeds of `cued.HALFCHEETAH_SPEEDS`."""
STROKES, LAG = 2, 1.2
"""The swimmer's two joints swing as sine waves: periods in a run, and by how much one lags behind, in radians."""


def sighted_policy(env: str, seed: int) -> Act:
    """Make the behaviour of a task with a cue, for observations recorded with `in_sight=True`."""
    generator = np.random.default_rng(seed)
    play = BEHAVIOURS[env]()

    def act(observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        actions = play(observations, rewards)
        return np.clip(actions + generator.normal(scale=NOISE, size=actions.shape), -1, 1)

    return act


def _halfcheetah() -> Act:
    actor, _ = load_actor(asset("behaviour/halfcheetah-medium"), "halfcheetah")

    def act(observations: np.ndarray, _: np.ndarray) -> np.ndarray:
        cue, running = observations[:, -4:-1], observations[:, -1:] > 0
        gait = actor.act(torch.from_numpy(observations[:, :-4]).float()).numpy()
        return np.where(running, (cue @ GAIT)[:, None] * gait, 0.0)

    return act


def _swimmer() -> Act:
    def act(observations: np.ndarray, _: np.ndarray) -> np.ndarray:
        direction, passed = observations[:, -4:-1] @ np.array([-1, 0, 1]), observations[:, -1]
        angle = 2 * np.pi * STROKES * (passed - 1 / RUN_STEPS)
        swing = np.stack([np.sin(angle), np.sin(angle - direction * LAG)], axis=1)
        return np.where((direction * passed != 0)[:, None], swing, 0.0)

    return act


def _maze() -> Act:
    def act(observations: np.ndarray, _: np.ndarray) -> np.ndarray:
        x, y, _, speed = observations[:, :4].T
        left, right = observations[:, -2:].T
        in_corridor = np.stack([np.full_like(x, 0.95), -2 * y - speed], axis=1)
        in_arm = np.stack([np.full_like(x, 0.2), left - right], axis=1)
        return np.clip(np.where((x < 19.9)[:, None], in_corridor, in_arm), -0.95, 0.95)

    return act


BEHAVIOURS = {"cued-halfcheetah": _halfcheetah, "cued-swimmer": _swimmer, "t-maze": _maze}
"""Makers of the behaviour without noise, by the task's name."""
