"""The environments served, D4RL's reference returns, and the normalised score.

Source: D4RL (Fu et al., 2020), https://github.com/Farama-Foundation/D4RL, `d4rl/infos.py`. The references were measured
on the v2 environments; the environments here are Gymnasium's v5, so a normalised score says "v5 return against the D4RL
references" and is not a D4RL number.
"""

from __future__ import annotations

from dataclasses import dataclass

from namm_transfer.errors import NammTransferError


@dataclass(frozen=True)
class Task:
    """One locomotion environment and what its returns are measured against."""

    gym_id: str
    """Gymnasium's environment id."""
    observation_size: int
    """Numbers in one observation."""
    action_size: int
    """Numbers in one action, each in [-1, 1]."""
    random_return: float
    """Undiscounted return of a uniformly random policy (D4RL)."""
    expert_return: float
    """Undiscounted return of the reference expert (D4RL)."""
    target_return: float
    """The higher of the two target returns the Decision Transformer's authors condition on."""


TASKS: dict[str, Task] = {
    "hopper": Task("Hopper-v5", 11, 3, -20.272305, 3234.3, 3600.0),
    "halfcheetah": Task("HalfCheetah-v5", 17, 6, -280.178953, 12135.0, 12000.0),
    "walker2d": Task("Walker2d-v5", 17, 6, 1.629008, 4592.3, 5000.0),
}


def task(name: str) -> Task:
    """The task called `name` (`hopper`, `halfcheetah`, `walker2d`); raises `NammTransferError` for any other name."""
    if name not in TASKS:
        raise NammTransferError(f"unknown environment {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def normalised_score(name: str, episode_return: float) -> float:
    """100 for the reference expert, 0 for a random policy: 100 (R - random) / (expert - random)."""
    reference = task(name)
    return 100.0 * (episode_return - reference.random_return) / (reference.expert_return - reference.random_return)
