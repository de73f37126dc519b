"""Checks that a file belongs to the environment it is used for; HalfCheetah and Walker2d have the same sizes."""

from __future__ import annotations

import re
import warnings

import numpy as np

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.tasks.rl.tasks import TASKS, flat, make, task

RESETS = 16
"""Resets of an environment that show where its episodes begin."""

_FAMILIES = {
    "hopper": r"hopper",
    "halfcheetah": r"half[-_ ]?cheetah",
    "walker2d": r"walker(?:[-_ ]?2d)?",
    "ant": r"ant",
    "humanoid": r"humanoid",
    "humanoidstandup": r"humanoid[-_ ]?standup",
    "swimmer": r"swimmer",
    "reacher": r"reacher",
    "pusher": r"pusher",
    "pointmaze": r"(?:point[-_ ]?maze|maze2d)",
    "antmaze": r"ant[-_ ]?maze",
    "kitchen": r"(?:franka[-_ ]?)?kitchen",
    "pen": r"(?:adroithand)?pen",
    "door": r"(?:adroithand)?door",
    "hammer": r"(?:adroithand)?hammer",
    "relocate": r"(?:adroithand)?relocate",
}
"""Spellings of each family of environments in names of files, repositories and data sets."""


def named_in(text: str) -> set[str]:
    """Find the families of environments that a text names as separate words, ignoring case.

    >>> sorted(named_in("edbeeching/decision-transformer-gym-halfcheetah-medium"))
    ['halfcheetah']
    """
    return {
        family
        for family, pattern in _FAMILIES.items()
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z])", text, re.IGNORECASE)
    }


def family(env: str) -> set[str]:
    """Return the families that the environment of task `env` belongs to; empty for a custom environment."""
    return named_in(task(env).gym_id.rpartition("-v")[0].replace("_", " "))


def check_name(env: str, text: str, what: str) -> bool:
    """Return True if `text` (a file's name, a card, ...) names the environment of task `env`.

    Raises `NammTransferError` if it names another environment and not this one.
    """
    own, found = family(env), named_in(text)
    if found and own and not own & found:
        raise NammTransferError(f"{what} names {' and '.join(sorted(found))}, expected {env} ({task(env).gym_id})")
    return bool(own & found)


def check_spec(env: str, gym_id: str, what: str) -> None:
    """Refuse data recorded in another environment than that of task `env`; warn of another version of it."""
    own = task(env).gym_id
    if gym_id.rpartition("-v")[0] != own.rpartition("-v")[0]:
        raise NammTransferError(f"{what} was recorded in {gym_id}, expected {own}")
    if gym_id != own:
        warnings.warn(f"{what} was recorded in {gym_id}, another version of {own}", stacklevel=2)


def check_first_states(env: str, states: np.ndarray, what: str) -> None:
    """Check by the first states of episodes, (episodes, size), that data come from the environment of task `env`.

    A file may say nothing of its environment, and HalfCheetah and Walker2d have the same sizes; but where a body stands
    after a reset tells them apart.

    Raises:
        NammTransferError: most episodes begin as those of another known task do.
    """
    if _begin(env, states):
        return
    own = task(env)
    for name, other in TASKS.items():
        sizes = (other.observation_size, other.action_size)
        if name != env and sizes == (own.observation_size, own.action_size) and _begin(name, states):
            raise NammTransferError(f"{what}: its episodes begin as those of {name} do, expected {env}")
    warnings.warn(f"{what}: its episodes do not begin as {own.gym_id} does after a reset", stacklevel=2)


def _begin(env: str, states: np.ndarray) -> bool:
    """Return True if most of the states lie where the environment stands after a reset, generously widened."""
    environment = make(env)
    resets = np.stack([flat(environment.reset(seed=seed)[0]) for seed in range(RESETS)])
    environment.close()
    low, high = resets.min(0), resets.max(0)
    room = 2 * (high - low) + 0.1
    inside = ((states >= low - room) & (states <= high + room)).all(1)
    return bool(inside.mean() > 0.5)
